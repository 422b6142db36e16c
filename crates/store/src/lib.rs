//! etcd as the rest of the project sees it: reads, fenced writes, leases, and one stream of events for a key range.
//!
//! [`EtcdStore`] speaks to etcd (3.4 or later, API v3); [`MemoryStore`](memory::MemoryStore) (feature `fake`) keeps the
//! same promises in memory. Both are used through [`Store`]. [`follow`](follow()) turns a store and a prefix into
//! [`Event`]s and never gives up.
//!
//! Every call has a deadline of [`CALL_DEADLINE`]; none of them hangs.

mod backoff;
mod credentials;
mod endpoint;
mod error;
mod etcd;
mod follow;
mod leased;
mod options;
mod store;
mod types;

#[cfg(feature = "fixture")]
pub mod fixture;
#[cfg(feature = "fake")]
pub mod memory;

pub use error::{ErrorKind, StoreError};
pub use etcd::{CALL_DEADLINE, EtcdStore, MemberStatus};
pub use follow::{Event, LostReason, follow, follow_since};
pub use leased::{Kept, LeasedKey};
pub use options::{EtcdOptions, Password, Secret, endpoint_address};
pub use store::{Change, Position, Store, Watch, WatchEnd, WatchItem};
pub use types::{
    Created, KeptAlive, KeyValue, LeaseId, Listing, NewLease, Renewal, Replaced, Revision, TimeToLive,
};
