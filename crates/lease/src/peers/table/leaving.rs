//! Peers whose record is gone, and records of a store that went back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::Peer;
use super::super::entry::{Entry, read};
use super::{PeerTable, Touched};
use crate::{Identity, Record};

impl PeerTable {
    /// Lets go what has had its time. Whether anything changed.
    pub fn settle(&mut self, now: Duration) -> bool {
        let is_due = |key: &&String| {
            let at = self.entries.get(*key).and_then(|entry| entry.leaves_at);
            at.is_none_or(|at| at <= now)
        };
        let due: Vec<String> = self.leaving.iter().filter(is_due).cloned().collect();
        self.forget(&due);
        let over = self.grace_until.is_some_and(|until| until <= now);
        if over {
            self.grace_until = None;
            self.touched = Touched::Everything;
            for entry in self.entries.values_mut() {
                entry.good = entry.newer.take().or(entry.good.take());
            }
        }
        over || !due.is_empty()
    }

    /// When [`settle`](Self::settle) has something to do.
    pub fn wake_at(&self) -> Option<Duration> {
        let leaving = self
            .leaving
            .iter()
            .filter_map(|key| self.entries.get(key)?.leaves_at);
        leaving.chain(self.grace_until).min()
    }

    /// A record of a store that went back: it changes nothing that is in use, and it brings back nobody whom we know by
    /// another subnet.
    pub(super) fn doubted(
        &self,
        record: &Record,
        in_use: Option<Arc<Peer>>,
        before: &BTreeMap<String, Entry>,
    ) -> Entry {
        let mut entry = read(record, None);
        let Some(new) = entry.good.take() else {
            entry.good = in_use;
            return entry;
        };
        let owner = Identity::of(&new.value);
        let elsewhere = |entry: &Entry| entry.owner().is_some_and(|other| other.is(&owner));
        match in_use {
            Some(old) if old.value.same_as(&new.value) => entry.good = Some(new),
            Some(old) => {
                entry.good = Some(old);
                entry.newer = Some(new);
            }
            None if before.values().chain(self.entries.values()).any(elsewhere) => entry.newer = Some(new),
            None => entry.good = Some(new),
        }
        entry
    }

    /// A key that was known and is not in a complete list.
    pub(super) fn absent(&mut self, key: String, entry: Entry, now: Duration) {
        let leaves_at = match (self.grace(now), entry.leaves_at) {
            (Some(until), _) => until,
            (None, Some(at)) => at,
            // Only the cache knew it: it left while nobody looked.
            (None, None) if entry.stored.is_none() => return,
            (None, None) => now + self.patience.hold,
        };
        let entry = Entry {
            good: entry.good,
            leaves_at: Some(leaves_at),
            ..Entry::default()
        };
        self.leaving.insert(key.clone());
        self.entries.insert(key, entry);
    }

    /// After `key` was written: a peer that is gone is not waited for when its node, or another one with its subnet, is
    /// there.
    pub(super) fn drop_replaced_by(&mut self, key: &str) {
        let Some(there) = self.entries.get(key).filter(|entry| entry.stored.is_some()) else {
            return;
        };
        let is_replaced = |gone: &&String| self.entries.get(*gone).is_none_or(|gone| replaces(there, gone));
        let replaced: Vec<String> = self.leaving.iter().filter(is_replaced).cloned().collect();
        self.forget(&replaced);
    }

    /// The same for keys that are gone.
    pub(super) fn drop_if_replaced(&mut self, gone: Vec<String>) {
        let there = || self.entries.values().filter(|entry| entry.stored.is_some());
        let is_replaced = |key: &String| {
            let gone = self.entries.get(key);
            gone.is_none_or(|gone| there().any(|there| replaces(there, gone)))
        };
        let replaced: Vec<String> = gone.into_iter().filter(is_replaced).collect();
        self.forget(&replaced);
    }

    fn forget(&mut self, keys: &[String]) {
        for key in keys {
            self.touched.add(key);
            self.leaving.remove(key);
            self.entries.remove(key);
        }
    }
}

/// Whether an entry that stands in the store, and that is believed, makes one that is gone superfluous.
fn replaces(there: &Entry, gone: &Entry) -> bool {
    let (Some(there_peer), Some(gone_peer)) = (&there.good, &gone.good) else {
        return gone.good.is_none();
    };
    let owner = Identity::of(&gone_peer.value);
    there.newer.is_none()
        && (owner.is(&Identity::of(&there_peer.value)) || there_peer.key.overlaps(&gone_peer.key))
}
