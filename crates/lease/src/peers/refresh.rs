//! From a view to the next one, where only single records were touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flannel_model::LeaseKey;

use super::check::{Limits, objection};
use super::entry::Entry;
use super::{Peer, PeerView};

/// More keys than this are no single records any more: a look at all of them costs less.
const MOST: usize = 64;

/// What of a table changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// It may be anything.
    Everything,
    /// The records with these keys.
    Keys(BTreeSet<String>),
}

impl Default for Touched {
    fn default() -> Self {
        Self::Keys(BTreeSet::new())
    }
}

impl Touched {
    pub(super) fn add(&mut self, key: &str) {
        match self {
            Self::Everything => {}
            Self::Keys(keys) if keys.len() < MOST => drop(keys.insert(key.to_owned())),
            Self::Keys(_) => *self = Self::Everything,
        }
    }
}

/// What became of one peer.
#[derive(Debug, Clone)]
pub struct PeerChange {
    /// As it was; `None` for a new one.
    pub before: Option<Arc<Peer>>,
    /// As it is; `None` for one that is gone.
    pub after: Option<Arc<Peer>>,
}

/// See [`PeerTable::refresh`](super::PeerTable::refresh).
pub(super) fn refresh(
    view: &mut PeerView,
    entries: &BTreeMap<String, Entry>,
    keys: &BTreeSet<String>,
    limits: &Limits<'_>,
) -> Option<Vec<PeerChange>> {
    let own = limits.own.to_string();
    let mut changes = Vec::with_capacity(keys.len());
    for text in keys.iter().filter(|text| **text != own) {
        let key: LeaseKey = text.parse().ok()?;
        let after = match entries.get(text) {
            Some(entry) => Some((Arc::clone(plain(entry, limits)?), entry.leaves_at.is_some())),
            None => None,
        };
        stands_alone(view, &key).then_some(())?;
        changes.push(view.exchange(key, after)?);
    }
    Some(changes)
}

/// The peer of a record that has nothing special.
fn plain<'a>(entry: &'a Entry, limits: &Limits<'_>) -> Option<&'a Arc<Peer>> {
    let peer = entry.good.as_ref()?;
    let special = entry.bad.is_some() || entry.newer.is_some() || entry.is_unused_reservation();
    (!special && objection(peer, limits).is_none()).then_some(peer)
}

/// Whether so far nothing was said against the record, nor against another that shares addresses with it: which of its holders such
/// a one is rejected for may change, and whether it is.
fn stands_alone(view: &PeerView, key: &LeaseKey) -> bool {
    let shares = |other: &str| other.parse().is_ok_and(|other: LeaseKey| other.overlaps(key));
    // One that is leaving and has no subnet of its own gets it back when its holder goes.
    !view.rejects.iter().any(|reject| shares(&reject.key))
        && !view.passed_over.iter().any(|other| shares(other))
}

impl PeerView {
    /// Puts a peer, which may be leaving, in the place of the one with the key.
    fn exchange(&mut self, key: LeaseKey, after: Option<(Arc<Peer>, bool)>) -> Option<PeerChange> {
        let before = self.peers.remove(&key);
        if self.on_leave.remove(&key) {
            self.leaving -= 1;
        }
        match (&before, &after) {
            (None, Some(_)) if self.holders.of(&key).is_some() => return None,
            (None, Some(_)) => self.holders.add(key),
            (Some(_), None) => self.holders.remove(key),
            (Some(_), Some(_)) | (None, None) => {}
        }
        let after = after.map(|(peer, leaving)| {
            self.leaving += usize::from(leaving);
            self.on_leave.extend(leaving.then_some(key));
            self.peers.insert(key, Arc::clone(&peer));
            peer
        });
        Some(PeerChange { before, after })
    }
}
