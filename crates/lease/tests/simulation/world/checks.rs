//! The invariants.

use std::collections::BTreeSet;

use flannel_lease::{Identity, PeerTable, PeerView, Situation, Standing};
use flannel_model::{LeaseKey, LeaseValue};

use super::World;
use crate::faults::Kind;
use crate::node::{Node, PATIENCE};

/// More calls than any history needs: about four a second for its whole length.
const MOST_CALLS: u64 = 2_500;

impl World {
    /// I1 at every moment: two nodes never add pods to one subnet. Who deletes or overwrites records by hand, or takes the
    /// store back, takes ownership away without the owner's knowledge; those histories are judged by their end.
    pub(super) fn one_owner(&self) -> Result<(), String> {
        if self.kind == Kind::Tampered {
            return Ok(());
        }
        let owners: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.acts_as_owner(self.now))
            .collect();
        for (n, one) in owners.iter().enumerate() {
            for (m, other) in owners.iter().enumerate().skip(n + 1) {
                if let (Some(one), Some(other)) = (one, other)
                    && one.overlaps(other)
                {
                    return Err(format!(
                        "at {} ms: nodes {n} and {m} act as owners of {one} and {other}",
                        self.now
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn in_the_end(&self) -> Result<(), String> {
        let end = |problem: String| format!("in the end: {problem}");
        for (n, node) in self.nodes.iter().enumerate() {
            let about = |problem: String| end(format!("node {n}: {problem}"));
            self.has_its_subnet(node).map_err(about)?;
            self.sees_its_peers(node).map_err(about)?;
            self.has_one_record(node).map_err(about)?;
            if node.calls > MOST_CALLS && self.kind != Kind::Calm {
                return Err(about(format!("made {} calls", node.calls)));
            }
            if self.kind == Kind::Gentle || self.kind == Kind::Calm {
                self.kept_its_subnet(node).map_err(about)?;
            }
        }
        self.no_etcd_lease_is_left_over().map_err(end)
    }

    /// I1, I11: it holds what the store says is its, or there was nothing to have.
    fn has_its_subnet(&self, node: &Node) -> Result<(), String> {
        let standing = node.machine.standing(node.clock(self.now));
        match node.machine.situation() {
            Situation::Revoked if self.kind == Kind::Tampered => return Ok(()),
            Situation::Held if standing == Standing::Confirmed => {}
            Situation::Exhausted if self.free() == 0 => return Ok(()),
            // the next try of a node that waits may be under way
            Situation::Acquiring if self.free() == 0 => return Ok(()),
            other => {
                return Err(format!(
                    "is {other:?} and {standing:?}, with {} subnets free",
                    self.free()
                ));
            }
        }
        let key = node
            .machine
            .holding()
            .map(|held| held.key)
            .ok_or("holds nothing")?;
        let record = self
            .store
            .get(&key.to_string())
            .ok_or(format!("holds {key}, which is not in the store"))?;
        let owner = LeaseValue::parse(&record.value).map(|value| Identity::of(&value));
        match owner {
            Ok(owner) if owner.is_surely(&node.identity) => {}
            other => return Err(format!("holds {key}, but the store has it as {other:?}")),
        }
        match record.value == node.value().as_bytes() {
            true => Ok(()),
            false => Err(format!(
                "holds {key}, but its record says {}",
                String::from_utf8_lossy(&record.value)
            )),
        }
    }

    /// Of the family that has fewer.
    fn free(&self) -> usize {
        let keys: Vec<LeaseKey> = self.store.records().filter_map(|r| r.key.parse().ok()).collect();
        let ipv4 = self.pools.ipv4().map(|pool| {
            let taken = |subnet| keys.iter().any(|key| key.ipv4() == Some(subnet));
            pool.subnets().filter(|subnet| !taken(*subnet)).count()
        });
        let ipv6 = self.pools.ipv6().map(|pool| {
            let taken = |subnet| keys.iter().any(|key| key.ipv6() == Some(subnet));
            pool.subnets().filter(|subnet| !taken(*subnet)).count()
        });
        ipv4.into_iter().chain(ipv6).min().unwrap_or(0)
    }

    /// I2, I4, I12: what it would write into its kernel is what the store says, no more and no less, whatever junk is there.
    fn sees_its_peers(&self, node: &Node) -> Result<(), String> {
        let mut fresh = PeerTable::new(PATIENCE);
        fresh.reset(self.store.list(), self.store.revision, node.clock(self.now));
        let (Some(seen), Some(wanted)) = (node.view(), node.view_of(&fresh)) else {
            return Ok(());
        };
        if peers(&seen) != peers(&wanted) || seen.leaving != 0 {
            return Err(format!(
                "has peers {:?} ({} leaving), the store has {:?}",
                peers(&seen),
                seen.leaving,
                peers(&wanted)
            ));
        }
        let pool = self.pools.ipv4().copied();
        let outside = seen.peers.keys().find(|key| {
            let subnet = key.ipv4();
            !subnet
                .zip(pool)
                .is_some_and(|(subnet, pool)| pool.offers(&subnet))
        });
        match outside {
            Some(key) => Err(format!("routes {key}, which the network does not offer")),
            None => Ok(()),
        }
    }

    /// I9: a node has one record, and so one etcd lease.
    fn has_one_record(&self, node: &Node) -> Result<(), String> {
        let mine: Vec<&str> = self
            .store
            .records()
            .filter(|record| {
                let owner = LeaseValue::parse(&record.value).map(|value| Identity::of(&value));
                owner.is_ok_and(|owner| owner.is_surely(&node.identity)) && record.lease != 0
            })
            .map(|record| record.key.as_str())
            .collect();
        match mine.len() {
            0 | 1 => Ok(()),
            _ => Err(format!("has the records {mine:?}")),
        }
    }

    /// I7: it has the subnet that it had first.
    fn kept_its_subnet(&self, node: &Node) -> Result<(), String> {
        let now = node.machine.holding().map(|held| held.key);
        match (node.first_key, now) {
            (Some(first), Some(now)) if first != now => {
                Err(format!("began with {first} and ended with {now}"))
            }
            _ => Ok(()),
        }
    }

    fn no_etcd_lease_is_left_over(&self) -> Result<(), String> {
        let used: BTreeSet<i64> = self
            .store
            .records()
            .map(|record| record.lease)
            .filter(|lease| *lease != 0)
            .collect();
        match self.store.leases() == used.len() {
            true => Ok(()),
            false => Err(format!(
                "{} etcd leases for {} in use",
                self.store.leases(),
                used.len()
            )),
        }
    }
}

fn peers(view: &PeerView) -> Vec<String> {
    view.peers
        .iter()
        .map(|(key, peer)| format!("{key}={}", peer.value.to_json()))
        .collect()
}
