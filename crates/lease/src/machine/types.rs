//! What goes into the machine and comes out of it.

use std::time::Duration;

use flannel_model::{LeaseKey, LeaseValue};

use crate::choose::Useless;
use crate::{Identity, LastUse, Record};

/// What the operator set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Lifetime of the etcd lease; flannel's is 24 hours.
    pub ttl: Duration,
    /// The lease is renewed at the latest this long before it ends.
    pub renew_margin: Duration,
    /// How long a wiped or restored store is given to hear from all nodes again.
    pub grace: Duration,
}

/// What a claim is fenced with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expected {
    /// Nobody has the key.
    Absent,
    /// Its last write is this revision.
    Modified(i64),
}

/// What the claimed key shall hang on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseTerms {
    /// The etcd lease with this number, granted if it is not there.
    Grant {
        /// Its number.
        lease: i64,
        /// Its lifetime.
        ttl: Duration,
    },
    /// The etcd lease that is there; 0 keeps a reservation permanent.
    Keep(i64),
}

/// What stands in the store from us.
#[derive(Debug, Clone)]
pub struct Published {
    /// The value.
    pub value: LeaseValue,
    /// Whether it has to be written anew whatever it says.
    pub rewrite: bool,
    /// Whether it was written by somebody else in our name, while we held it.
    pub foreign: bool,
}

/// What the driver shall do.
#[derive(Debug, Clone)]
pub enum Op {
    /// Read every record below `<prefix>/subnets/`.
    List,
    /// Read which subnets were in use before.
    ReadUsed,
    /// Write our value under the key if nobody wrote since. When it would write what `published` says already, it answers
    /// `Won` without a write.
    Claim {
        /// The key.
        key: LeaseKey,
        /// The fence.
        expected: Expected,
        /// Below which etcd lease.
        terms: LeaseTerms,
        /// What stands there from us.
        published: Option<Box<Published>>,
    },
    /// Delete a lease of ours if nobody wrote since.
    Drop {
        /// The key.
        key: LeaseKey,
        /// Revision of its last write.
        modified: i64,
        /// Why.
        why: Useless,
    },
    /// Refresh the etcd lease.
    KeepAlive(i64),
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimOutcome {
    /// The key is ours.
    Won {
        /// The etcd lease below it; 0 for a reservation.
        lease: i64,
        /// Revision of its last write.
        modified: i64,
    },
    /// Somebody was faster.
    Lost,
}

/// A write to the key that we hold, as the watch saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnPut {
    /// Who wrote it, if the value can be read.
    pub owner: Option<Identity>,
    /// The etcd lease below it.
    pub lease: i64,
    /// Its revision.
    pub modified: i64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Begin.
    Start,
    /// Answer to [`Op::List`].
    Listed(Vec<Record>),
    /// Answer to [`Op::ReadUsed`].
    UsedRead(Vec<LastUse>),
    /// Answer to [`Op::Claim`].
    Claimed(ClaimOutcome),
    /// Answer to [`Op::Drop`], whether or not it was still there.
    Dropped,
    /// Answer to [`Op::KeepAlive`]: it lives for this long, counted from when that was asked.
    KeptAlive(Duration),
    /// Answer to [`Op::KeepAlive`]: the etcd lease is gone.
    Expired,
    /// The operation under way failed; nothing is known of its effect.
    Failed,
    /// Our key was written.
    OwnPut(OwnPut),
    /// Our key is not there at this revision.
    OwnDeleted(i64),
    /// There is another lease of ours besides the one that we hold, or an older one of somebody else with a part of its subnets.
    Clash,
    /// The store was wiped, or restored from a backup.
    StoreReset,
    /// A lease of somebody was deleted.
    Freed,
    /// The addresses that this node publishes are other ones from now on; its identity of our own is as before.
    Moved(Identity),
    /// The operator asks to begin anew after a revocation.
    Resume,
    /// The time of [`LeaseMachine::wake_at`](crate::LeaseMachine::wake_at) has come.
    Timer,
}

/// A subnet that we hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holding {
    /// Its key.
    pub key: LeaseKey,
    /// The etcd lease below it; 0 for a reservation.
    pub lease: i64,
    /// Revision of the last write that we know.
    pub modified: i64,
    /// Until then the store has confirmed it, as time since boot; `None` for a reservation, which never ends.
    pub valid_until: Option<Duration>,
}

/// What the machine is about, for status and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Situation {
    /// Looking for a subnet.
    Acquiring,
    /// Every subnet of the pool is taken; it keeps trying.
    Exhausted,
    /// It holds one.
    Held,
    /// The operator took it away.
    Revoked,
}

/// How sure the node's subnet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// There is none yet.
    None,
    /// It is this node's, and pods may be added.
    Confirmed,
    /// It stood in the store a moment ago and is being renewed; how long it lives is not known yet.
    Adopted,
    /// The store did not confirm it for a whole TTL: somebody else may have it by now. Pods stay, none is added.
    Unconfirmed,
    /// Somebody else has it. Pods stay, none is added.
    Taken(Identity),
    /// The operator took it away. Pods stay, none is added.
    Revoked,
}

impl Standing {
    /// Whether pods may be added.
    pub fn may_add_pods(&self) -> bool {
        *self == Self::Confirmed
    }
}
