//! From what the store says of other nodes to the facts of which the kernel is made: as a whole, or by the single peers that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use flannel_lease::{Limits, PeerChange, PeerView, Touched};
use flannel_model::LeaseKey;
use flannel_store::Event;

use super::Node;
use crate::facts::{self, Own, Worked, node_addresses};
use crate::lease_driver::LeaseStatus;
use crate::overlay::Step;
use crate::{clock, stranded};

/// What was published last. It serves as long as nothing but peers changes.
pub(super) struct Known {
    status: LeaseStatus,
    own: LeaseKey,
    /// The peers, and the records that are none.
    pub view: PeerView,
    /// Peers that are of no use to the backend.
    pub useless: BTreeSet<LeaseKey>,
    /// How many peers have an address.
    addresses: BTreeMap<IpAddr, usize>,
    /// Some records are of no use only because of others: then each change is a matter of all.
    contested: bool,
}

impl Node<'_> {
    pub(super) fn take_events(&mut self, events: impl Iterator<Item = Event>) {
        let mut peers = false;
        for event in events {
            match &event {
                Event::Lost { reason } => {
                    tracing::warn!("etcd cannot be followed: {reason}; peers stay as they are");
                    self.lost = Some(reason.to_string());
                    if self.has_cache && !self.offline && !self.feed.is_synced() {
                        self.offline = true;
                        peers = true;
                    }
                }
                Event::Resumed { .. } | Event::InitDone { .. } => {
                    self.offline = false;
                    if self.lost.take().is_some() {
                        tracing::info!("etcd is followed again");
                    }
                }
                Event::Init | Event::InitApply(_) | Event::Apply(_) | Event::Delete { .. } => {}
            }
            let news = self.feed.take(event, clock::since_boot());
            peers |= news.peers;
            if let Some(own) = news.own {
                self.send_lease(own.into());
            }
            for change in news.moved {
                tracing::warn!(subnet = %change.key, from = %change.from, to = %change.to, "a subnet in use went to another node");
            }
        }
        if peers {
            self.take_touched();
        }
    }

    /// Goes by what changed since the last time.
    pub(super) fn take_touched(&mut self) {
        let touched = self.feed.take_touched();
        self.tell_lease(&touched);
        let done = match &touched {
            Touched::Keys(keys) => self.publish_few(keys).is_some(),
            Touched::Everything => false,
        };
        if !done {
            self.publish_facts();
        }
    }

    /// The peers that may be used now, and what follows for the kernel.
    pub(super) fn view(&self, status: &LeaseStatus, own: LeaseKey) -> Option<(PeerView, Worked)> {
        let stranded = stranded::still_in_use(&status.lost);
        let view = self.feed.view(&self.limits(&own, &stranded));
        let peers: Vec<_> = view.peers.values().map(Arc::as_ref).collect();
        let worked = facts::facts(self.own(status, own), &peers)?;
        Some((view, worked))
    }

    fn limits<'a>(&'a self, own: &'a LeaseKey, stranded: &'a [LeaseKey]) -> Limits<'a> {
        Limits {
            pools: &self.usable.pools,
            own,
            identity: &self.identity,
            stranded,
            protected: &self.protected,
        }
    }

    fn own(&self, status: &LeaseStatus, key: LeaseKey) -> Own<'_> {
        Own {
            usable: &self.usable,
            backend: &self.backend,
            underlay: &self.underlay,
            key,
            macs: status.macs,
            blackhole: self.options.blackhole,
        }
    }

    /// Hands the world as it is known to the tasks that write it into the kernel, once a lease and a complete list are there.
    pub(super) fn publish_facts(&mut self) {
        self.known = None;
        let Some(status) = self.lease.borrow().clone() else {
            return;
        };
        let Some(held) = status.held else { return };
        if !self.feed.is_synced() && !self.offline {
            return;
        }
        // A view of now knows of all that was touched.
        self.feed.take_touched();
        let Some((view, worked)) = self.view(&status, held.key) else {
            return;
        };
        let Worked {
            mut facts,
            useless,
            contested,
        } = worked;
        let known = Known {
            own: held.key,
            useless: useless.iter().filter_map(|(key, _)| key.parse().ok()).collect(),
            addresses: addresses(&view),
            contested,
            status,
            view,
        };
        let rejects = known.view.rejects.iter();
        let general = rejects.map(|reject| (reject.key.clone(), reject.reason.to_string()));
        self.rejects.update(
            "record",
            "is skipped, everything else goes on",
            general.chain(useless),
        );
        self.facts.send_if_modified(|old| {
            let changed = old.as_deref() != Some(&facts);
            if changed {
                if let Some(old) = old {
                    facts.steps = old.steps.made_anew();
                }
                *old = Some(Arc::new(facts));
            }
            changed
        });
        self.known = Some(known);
        self.cache.changed();
    }

    /// The same where only these records were touched, without a look at the others. `None` where they bear upon others, or something
    /// else has changed since the last time.
    fn publish_few(&mut self, keys: &BTreeSet<String>) -> Option<()> {
        let mut known = self.known.take().filter(Known::serves)?;
        let changes = {
            let limits = self.limits(&known.own, &[]);
            self.feed.refresh(&mut known.view, keys, &limits)?
        };
        let mut step = facts::step(self.own(&known.status, known.own), &changes)?;
        known.move_addresses(&changes, &mut step);
        let fits = self
            .facts
            .borrow()
            .as_deref()
            .is_some_and(|facts| facts.admit(&step));
        fits.then_some(())?;
        if !step.is_idle() {
            let step = Arc::new(step);
            self.facts.send_modify(|facts| {
                if let Some(facts) = facts {
                    // In place, unless somebody looks at them at this moment.
                    Arc::make_mut(facts).take(step);
                }
            });
        }
        self.known = Some(known);
        self.cache.changed();
        Some(())
    }
}

impl Known {
    /// Whether single peers can be judged by it.
    fn serves(&self) -> bool {
        // Whether pods still live in a subnet that was lost is asked of the kernel, each time anew.
        !self.contested && self.status.lost.is_empty()
    }

    /// Counts the addresses of nodes anew, and tells which came and which went.
    fn move_addresses(&mut self, changes: &[PeerChange], step: &mut Step) {
        let before = changes.iter().filter_map(|change| change.before.as_deref());
        let after = changes.iter().filter_map(|change| change.after.as_deref());
        for address in after.flat_map(node_addresses) {
            let count = self.addresses.entry(address).or_default();
            *count += 1;
            if *count == 1 {
                step.new.push(address);
            }
        }
        for address in before.flat_map(node_addresses) {
            let Some(count) = self.addresses.get_mut(&address) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
                step.gone.push(address);
            }
        }
    }
}

fn addresses(view: &PeerView) -> BTreeMap<IpAddr, usize> {
    let mut counts = BTreeMap::new();
    for address in view.peers.values().flat_map(|peer| node_addresses(peer)) {
        *counts.entry(address).or_default() += 1;
    }
    counts
}
