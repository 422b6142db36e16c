//! The peers that may be programmed at this moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use flannel_model::{Ipv4Subnet, Ipv6Subnet, LeaseKey};

use super::check::{Limits, objection};
use super::entry::Entry;
use super::{Peer, Reject, RejectReason};

/// Longest key that is kept for the report of a reject, in characters.
const SHOWN_KEY: usize = 120;

/// The peers that may be programmed, and the records that may not.
#[derive(Debug, Clone, Default)]
pub struct PeerView {
    /// One peer a subnet.
    pub peers: BTreeMap<LeaseKey, Arc<Peer>>,
    /// Everything else, in key order.
    pub rejects: Vec<Reject>,
    /// Reservations that no node uses yet.
    pub reserved: usize,
    /// Peers whose record is gone and that are kept for a moment.
    pub leaving: usize,
    /// Records beyond the most that are kept.
    pub overflow: usize,
    pub(super) holders: Holders,
    /// Those of the peers that are kept for a moment.
    pub(super) on_leave: BTreeSet<LeaseKey>,
    /// Records that are neither a peer's nor rejected.
    pub(super) passed_over: BTreeSet<String>,
}

/// Who has which subnet in this view.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders {
    ipv4: HashMap<Ipv4Subnet, LeaseKey>,
    ipv6: HashMap<Ipv6Subnet, LeaseKey>,
}

impl Holders {
    pub(super) fn of(&self, key: &LeaseKey) -> Option<LeaseKey> {
        let ipv4 = key.ipv4().and_then(|subnet| self.ipv4.get(&subnet));
        let ipv6 = || key.ipv6().and_then(|subnet| self.ipv6.get(&subnet));
        ipv4.or_else(ipv6).copied()
    }

    pub(super) fn add(&mut self, key: LeaseKey) {
        key.ipv4().and_then(|subnet| self.ipv4.insert(subnet, key));
        key.ipv6().and_then(|subnet| self.ipv6.insert(subnet, key));
    }

    pub(super) fn remove(&mut self, key: LeaseKey) {
        key.ipv4().and_then(|subnet| self.ipv4.remove(&subnet));
        key.ipv6().and_then(|subnet| self.ipv6.remove(&subnet));
    }
}

/// A key as reports have it.
fn shown(key: &str) -> String {
    key.chars().take(SHOWN_KEY).collect()
}

/// Checks every entry. One bad record never changes what becomes of another, except that of two records for one subnet the
/// older wins, and one that is in the store wins over one that is gone.
pub(super) fn view(entries: &BTreeMap<String, Entry>, limits: &Limits<'_>) -> PeerView {
    let own = limits.own.to_string();
    let mut view = PeerView::default();
    let mut candidates: Vec<(&str, &Arc<Peer>, bool)> = Vec::with_capacity(entries.len());
    for (text, entry) in entries.iter().filter(|(text, _)| **text != own) {
        let leaving = entry.leaves_at.is_some();
        if let Some(reason) = &entry.bad {
            view.reject(text, reason.clone());
        }
        if entry.newer.is_some() && entry.good.is_none() {
            view.reject(text, RejectReason::Unconfirmed);
        }
        let Some(peer) = &entry.good else { continue };
        if entry.is_unused_reservation() {
            view.reserved += 1;
            view.passed_over.insert(text.clone());
            continue;
        }
        match objection(peer, limits) {
            None => candidates.push((text, peer, leaving)),
            Some(_) if leaving => drop(view.passed_over.insert(text.clone())),
            Some(reason) => view.reject(text, reason),
        }
    }
    view.accept(candidates);
    view.rejects.sort_by(|one, other| one.key.cmp(&other.key));
    view
}

impl PeerView {
    fn reject(&mut self, key: &str, reason: RejectReason) {
        self.rejects.push(Reject {
            key: shown(key),
            reason,
        });
    }

    fn accept(&mut self, mut candidates: Vec<(&str, &Arc<Peer>, bool)>) {
        candidates.sort_by_key(|(text, peer, leaving)| (*leaving, peer.revisions.created, *text));
        for (text, peer, leaving) in candidates {
            match self.holders.of(&peer.key) {
                None => {
                    self.holders.add(peer.key);
                    self.leaving += usize::from(leaving);
                    self.on_leave.extend(leaving.then_some(peer.key));
                    self.peers.insert(peer.key, Arc::clone(peer));
                }
                Some(_) if leaving => drop(self.passed_over.insert(text.to_owned())),
                Some(holder) => self.reject(text, RejectReason::Duplicate(holder)),
            }
        }
    }
}
