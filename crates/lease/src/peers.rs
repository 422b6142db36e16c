//! The table of peers: every record of others, checked before it may move a route.

mod check;
mod entry;
mod refresh;
mod reject;
mod table;
#[cfg(test)]
mod tests;
mod view;

pub use check::{Limits, Protected};
pub use refresh::{PeerChange, Touched};
pub use reject::{Reject, RejectReason};
pub use table::{MAX_RECORDS, OwnerChange, Patience, PeerTable};
pub use view::PeerView;

use flannel_model::{LeaseKey, LeaseValue};

use crate::Revisions;

/// A peer whose record passed every check that does not depend on the backend.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its lease.
    pub key: LeaseKey,
    /// What it published.
    pub value: LeaseValue,
    /// When.
    pub revisions: Revisions,
}
