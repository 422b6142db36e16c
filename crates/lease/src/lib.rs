//! Who owns which subnet: the choice of a node's own, its life as a lease, and the table of everybody else's.
//!
//! Pure: records and the time go in, decisions come out. Time is the time since boot, so that a wall clock that jumps
//! or a suspended machine cannot make a lease look younger than it is.

mod choose;
mod identity;
mod machine;
mod overlap;
mod peers;
mod record;
mod timing;
mod used;

pub use choose::{Choice, Chooser, Earlier, Useless};
pub use identity::Identity;
pub use machine::{
    ClaimOutcome, Event, Expected, Holding, LeaseMachine, LeaseTerms, Op, OwnPut, Published, Settings,
    Situation, Standing,
};

pub use peers::{
    Limits, MAX_RECORDS, OwnerChange, Patience, Peer, PeerChange, PeerTable, PeerView, Protected, Reject,
    RejectReason, Touched,
};
pub use record::{Record, Revisions};
pub use used::{HOLD_DOWN, LastUse, UsedBefore};
