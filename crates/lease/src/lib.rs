//! Who owns which subnet: the choice of a node's own, its life as a lease, and the table of everybody else's.
//!
//! Pure: records and the time go in, decisions come out. Time is the time since boot, so that a wall clock that jumps
//! or a suspended machine cannot make a lease look younger than it is.

mod choose;
mod machine;
mod peers;
mod record;

pub use choose::{Choice, choose};
pub use machine::{
    ClaimOutcome, Event, Expected, Holding, LeaseMachine, LeaseTerms, Op, OwnPut, Settings, Situation,
};
pub use peers::{Limits, Peer, PeerTable, PeerView, Reject, RejectReason};
pub use record::{Record, Revisions};
