//! What is known of one key.

use std::sync::Arc;
use std::time::Duration;

use flannel_model::{LeaseKey, LeaseValue, LeaseValueError};

use super::{Peer, RejectReason};
use crate::{Identity, Record};

/// What stands in the store under the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub created: i64,
    pub modified: i64,
    pub lease: i64,
    /// `None` when the value cannot be read.
    pub owner: Option<Identity>,
    pub reserved: bool,
}

/// Only what was understood is kept, never the bytes: a record of a megabyte costs us nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    /// `None` when the key is gone, or was only read from the cache.
    pub stored: Option<Stamp>,
    /// In use. Views share it.
    pub good: Option<Arc<Peer>>,
    pub bad: Option<RejectReason>,
    /// What a restored store says instead of `good`; it waits for the owner's word.
    pub newer: Option<Arc<Peer>>,
    /// The key is gone; the peer goes then.
    pub leaves_at: Option<Duration>,
}

impl Entry {
    pub(super) fn owner(&self) -> Option<Identity> {
        self.good.as_ref().map(|peer| Identity::of(&peer.value))
    }

    /// Whether it is a reservation that no node uses yet.
    pub(super) fn is_unused_reservation(&self) -> bool {
        let reserved = self
            .stored
            .is_some_and(|stamp| stamp.lease == 0 || stamp.reserved);
        let silent =
            |peer: &Arc<Peer>| peer.value.backend_type.is_none() && peer.value.backend_data.is_none();
        reserved && self.good.as_ref().is_some_and(silent)
    }
}

/// Reads a record. What was good before stays in use when the new value cannot be read.
pub(super) fn read(record: &Record, before: Option<Arc<Peer>>) -> Entry {
    let stamp = Stamp {
        created: record.revisions.created,
        modified: record.revisions.modified,
        lease: record.lease,
        owner: None,
        reserved: false,
    };
    let rejected = |good, reason| Entry {
        stored: Some(stamp),
        good,
        bad: Some(reason),
        ..Entry::default()
    };
    let key: LeaseKey = match record.key.parse() {
        Ok(key) => key,
        Err(error) => return rejected(None, RejectReason::Key(error)),
    };
    let value = match LeaseValue::parse(&record.value) {
        Ok(value) => value,
        Err(error) => return rejected(before, RejectReason::Value(with_cause(&error))),
    };
    Entry {
        stored: Some(Stamp {
            owner: Some(Identity::of(&value)),
            reserved: value.reserved,
            ..stamp
        }),
        good: Some(Arc::new(Peer {
            key,
            value,
            revisions: record.revisions,
        })),
        ..Entry::default()
    }
}

fn with_cause(error: &LeaseValueError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error} ({cause})"),
        None => error.to_string(),
    }
}
