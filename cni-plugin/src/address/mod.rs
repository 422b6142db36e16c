//! Addresses of containers: which one comes next, and what on the disk remembers who has which.

mod allocate;
mod index;
mod lease_file;
mod range;
mod reconcile;
mod record;
mod store;

pub use allocate::{Given, choose};
pub use lease_file::{Holder, Lease, read_named, read_small, write_plain};
pub use range::{Range, RangeSet};
pub use reconcile::{Live, LiveEnd};
pub use record::{Pending, Record, Stage, Stored};
pub use store::{Look, Store};
