//! What goes into a store and comes out of it.

use std::fmt;

/// A revision of the whole store: it grows by one with every transaction that changes something.
pub type Revision = i64;

/// Identifier of an etcd lease; 0 means that a key has none and never expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// No lease.
    pub const NONE: Self = Self(0);

    /// Whether this stands for no lease.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Display for LeaseId {
    /// Sixteen hexadecimal digits, as `etcdctl lease list` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key. Bytes that are not UTF-8 are replaced by U+FFFD: no key of ours has any.
    pub key: String,
    /// The value, unchecked: anything may stand there, up to 1.5 MiB.
    pub value: Vec<u8>,
    /// Revision at which the key was created.
    pub create_revision: Revision,
    /// Revision of the last change.
    pub mod_revision: Revision,
    /// The lease that the key hangs on.
    pub lease: LeaseId,
}

/// All keys under a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In ascending order of the key.
    pub kvs: Vec<KeyValue>,
    /// The revision that all of them were read at.
    pub revision: Revision,
    /// Where the store stood; [`Store::watch`](crate::Store::watch) goes on from here.
    pub position: crate::Position,
}

/// A lease to grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewLease {
    /// Time to live in seconds, at least 1.
    pub ttl_secs: u32,
    /// Its number, when the caller chose one: a grant whose answer was lost can then be repeated without a second lease, and
    /// one that is there already serves. [`LeaseId::NONE`] leaves the choice to the store.
    pub id: LeaseId,
}

impl NewLease {
    /// A lease whose number the store chooses.
    pub const fn any(ttl_secs: u32) -> Self {
        Self {
            ttl_secs,
            id: LeaseId::NONE,
        }
    }
}

/// Outcome of [`Store::create`](crate::Store::create).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The key is ours.
    Won {
        /// The lease it hangs on.
        lease: LeaseId,
        /// Revision of the creation.
        revision: Revision,
    },
    /// The key existed already and was left alone.
    Lost,
}

/// What happens to the lease of a key that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The key keeps hanging on this lease.
    Keep(LeaseId),
    /// A fresh lease is granted.
    Grant(NewLease),
    /// The key never expires.
    None,
}

/// Outcome of [`Store::replace`](crate::Store::replace).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// The new value stands.
    Won {
        /// The lease that the key hangs on now.
        lease: LeaseId,
        /// Revision of the change.
        revision: Revision,
    },
    /// Somebody else changed or deleted the key; nothing was written.
    Lost,
}

/// Outcome of [`Store::keep_alive`](crate::Store::keep_alive).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptAlive {
    /// The lease lives on.
    Alive {
        /// For this many seconds, unless it is kept alive again.
        ttl_secs: u32,
    },
    /// The lease is gone, and with it the keys that hung on it.
    Expired,
}

/// Outcome of [`Store::time_to_live`](crate::Store::time_to_live).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeToLive {
    /// The lease lives.
    Remaining {
        /// Seconds that are left.
        secs: u32,
        /// Seconds for which it was granted.
        granted_secs: u32,
    },
    /// There is no such lease (any more).
    Expired,
}
