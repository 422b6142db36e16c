//! Every record below the range, as the store has it and as this node uses it.

mod leaving;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey};

use super::entry::{Entry, read};
use super::refresh::{PeerChange, Touched, refresh};
use super::view::view;
use super::{Limits, Peer, PeerView};
use crate::overlap::counted;
use crate::{Event, Holding, Identity, OwnPut, Record};

/// Most records that are kept: as many as a /8 has subnets of /24. What is beyond costs no memory.
pub const MAX_RECORDS: usize = 65_536;

/// How long a peer that is gone from the store stays in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// After an ordinary deletion: a node that lost its lease only by a mishap is back by then.
    pub hold: Duration,
    /// After the store was wiped or restored: every node needs time to register again.
    pub grace: Duration,
}

/// A subnet that is in use went from one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerChange {
    /// The lease.
    pub key: LeaseKey,
    /// Who had it.
    pub from: Identity,
    /// Who has it.
    pub to: Identity,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct PeerTable {
    entries: BTreeMap<String, Entry>,
    /// Keys of the entries that have a time to leave.
    leaving: BTreeSet<String>,
    patience: Patience,
    /// Until then a restored store is not taken at its word.
    grace_until: Option<Duration>,
    /// Everything up to here was seen; `None` before the first complete list.
    revision: Option<i64>,
    overflow: usize,
    /// What changed since [`PeerTable::take_touched`].
    touched: Touched,
}

impl PeerTable {
    /// An empty table.
    pub fn new(patience: Patience) -> Self {
        Self {
            entries: BTreeMap::new(),
            leaving: BTreeSet::new(),
            patience,
            grace_until: None,
            revision: None,
            overflow: 0,
            touched: Touched::Everything,
        }
    }

    /// Begins with what an earlier run knew. Nothing of it is believed to be in the store before a list says so.
    pub fn preload(&mut self, peers: impl IntoIterator<Item = Peer>) {
        self.touched = Touched::Everything;
        for peer in peers.into_iter().take(MAX_RECORDS) {
            let key = peer.key.to_string();
            let entry = Entry {
                good: Some(Arc::new(peer)),
                ..Entry::default()
            };
            self.entries.insert(key, entry);
        }
    }

    /// Whether a complete list was seen: before, nothing may be removed for being absent.
    pub fn is_synced(&self) -> bool {
        self.revision.is_some()
    }

    /// What the store says is not the last word for the time of grace: it was wiped or restored.
    pub fn distrust(&mut self, now: Duration) {
        self.touched = Touched::Everything;
        self.grace_until = Some(now + self.patience.grace);
        self.revision = None;
    }

    /// Takes a complete list, read at `revision`: records that are not in it are gone. Values are compared, not only keys.
    pub fn reset(
        &mut self,
        records: impl IntoIterator<Item = Record>,
        revision: i64,
        now: Duration,
    ) -> Vec<OwnerChange> {
        self.touched = Touched::Everything;
        let mut before = std::mem::take(&mut self.entries);
        self.leaving.clear();
        self.overflow = 0;
        let mut changes = Vec::new();
        for record in records {
            if self.entries.len() >= MAX_RECORDS {
                self.overflow += 1;
                continue;
            }
            let known = before.remove(&record.key).and_then(|entry| entry.good);
            let entry = match self.grace(now) {
                Some(_) => self.doubted(&record, known, &before),
                None => {
                    let owner = known.as_ref().map(|peer| Identity::of(&peer.value));
                    let entry = read(&record, known);
                    changes.extend(owner_change(owner, &entry));
                    entry
                }
            };
            self.entries.insert(record.key, entry);
        }
        for (key, entry) in before.into_iter().filter(|(_, entry)| entry.good.is_some()) {
            self.absent(key, entry, now);
        }
        self.revision = Some(revision);
        self.drop_if_replaced(self.leaving.iter().cloned().collect());
        changes
    }

    /// Takes one new or changed record: its owner's own word.
    pub fn put(&mut self, record: &Record) -> Option<OwnerChange> {
        self.seen(record.revisions.modified);
        self.touched.add(&record.key);
        let known = self.entries.remove(&record.key);
        self.leaving.remove(&record.key);
        if known.is_none() && self.entries.len() >= MAX_RECORDS {
            self.overflow += 1;
            return None;
        }
        let known = known.and_then(|entry| entry.good);
        let owner = known.as_ref().map(|peer| Identity::of(&peer.value));
        let entry = read(record, known);
        let change = owner_change(owner, &entry);
        self.entries.insert(record.key.clone(), entry);
        self.drop_replaced_by(&record.key);
        change
    }

    /// Takes the deletion of a key. The peer stays in use for a moment, unless its node or its subnet appeared elsewhere.
    pub fn delete(&mut self, key: &str, revision: i64, now: Duration) {
        self.seen(revision);
        self.touched.add(key);
        let grace = self.grace(now).unwrap_or(Duration::ZERO);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.good.is_none() {
            self.entries.remove(key);
            return;
        }
        *entry = Entry {
            good: entry.good.take(),
            leaves_at: Some(grace.max(now + self.patience.hold)),
            ..Entry::default()
        };
        self.leaving.insert(key.to_owned());
        self.drop_if_replaced(vec![key.to_owned()]);
    }

    /// What may be programmed.
    pub fn view(&self, limits: &Limits<'_>) -> PeerView {
        PeerView {
            overflow: self.overflow,
            ..view(&self.entries, limits)
        }
    }

    /// What changed since this was asked last.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Brings a view of this table, as it was before `keys` were touched, to what [`view`](Self::view) would say now with the
    /// same limits. `None` where one of the keys may bear upon others: the view is worth nothing then.
    pub fn refresh(
        &self,
        view: &mut PeerView,
        keys: &BTreeSet<String>,
        limits: &Limits<'_>,
    ) -> Option<Vec<PeerChange>> {
        view.overflow = self.overflow;
        refresh(view, &self.entries, keys, limits)
    }

    /// What the store says of the key that we hold, if it is other than what we know of it.
    pub fn own_news(&self, held: &Holding) -> Option<Event> {
        let revision = self.revision?;
        let stored = self
            .entries
            .get(&held.key.to_string())
            .and_then(|entry| entry.stored);
        match stored {
            Some(stamp) => (stamp.modified > held.modified).then_some(Event::OwnPut(OwnPut {
                owner: stamp.owner,
                lease: stamp.lease,
                modified: stamp.modified,
            })),
            None => (revision > held.modified).then_some(Event::OwnDeleted(revision)),
        }
    }

    /// The last write among the records that stand against the lease that this node holds: another lease that surely is this
    /// node's, one too many, and an older record of somebody else with a part of the same subnets. Only records `among` those that
    /// were touched are looked at, unless our own is one of them.
    pub fn clash(
        &self,
        identity: &Identity,
        held: &LeaseKey,
        pools: &Families<Ipv4Pool, Ipv6Pool>,
        among: &Touched,
    ) -> Option<i64> {
        let own = held.to_string();
        let created = self.entries.get(&own)?.stored?.created;
        let against = |text: &str, entry: &Entry| {
            let stamp = entry.stored?;
            let is = |mine: fn(&Identity, &Identity) -> bool| stamp.owner.is_some_and(|o| mine(identity, &o));
            let surplus = || is(Identity::is_surely) && stamp.lease != 0 && !stamp.reserved;
            let older = || stamp.created < created && !is(Identity::is);
            let key = || {
                entry
                    .good
                    .as_ref()
                    .map(|peer| peer.key)
                    .or_else(|| text.parse().ok())
            };
            let overlaps = || Some(counted(&key()?, pools)?.overlaps(held));
            (surplus() || older() && overlaps()?).then_some(stamp.modified)
        };
        let against = |(text, entry): (&String, &Entry)| (*text != own).then(|| against(text, entry))?;
        match among {
            // Whether a record stands against ours depends on ours.
            Touched::Keys(keys) if !keys.contains(&own) => {
                let touched = keys.iter().filter_map(|key| self.entries.get_key_value(key));
                touched.filter_map(against).max()
            }
            Touched::Keys(_) | Touched::Everything => self.entries.iter().filter_map(against).max(),
        }
    }

    /// Every peer in use, for the next run to begin with.
    pub fn snapshot(&self) -> impl Iterator<Item = &Peer> {
        self.entries.values().filter_map(|entry| entry.good.as_deref())
    }

    fn seen(&mut self, revision: i64) {
        if let Some(seen) = &mut self.revision {
            *seen = revision.max(*seen);
        }
    }

    fn grace(&self, now: Duration) -> Option<Duration> {
        self.grace_until.filter(|until| now < *until)
    }
}

fn owner_change(before: Option<Identity>, entry: &Entry) -> Option<OwnerChange> {
    let peer = entry.good.as_ref()?;
    let (from, to) = (before?, Identity::of(&peer.value));
    (!from.is(&to)).then_some(OwnerChange {
        key: peer.key,
        from,
        to,
    })
}
