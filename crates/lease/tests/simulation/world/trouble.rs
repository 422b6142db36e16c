//! Faults as they happen, and their repair.

use super::{Found, What, World};
use crate::faults::Fault;

/// Forged records in one history: after each, the node waits twice as long before it puts its record right.
const MOST_FORGED: u32 = 2;

impl World {
    pub(super) fn trouble(&mut self, fault: &Fault) {
        self.say(|| format!("{fault:?}"));
        let now = self.now;
        match fault {
            Fault::Cut { node, lasts } => {
                let until = &mut self.nodes[*node].cut_until;
                *until = (*until).max(now + lasts);
            }
            Fault::StoreDown { lasts } => {
                self.store.stop();
                self.at(now + lasts, What::StoreStarts);
            }
            Fault::Crash {
                node,
                lasts,
                reboot,
                keep_disk,
            } => {
                let it = &mut self.nodes[*node];
                it.alive = false;
                it.asleep_until = 0;
                if !keep_disk {
                    it.disk = None;
                }
                if *reboot {
                    it.reboot(now);
                }
                self.at(now + lasts, What::Start { node: *node });
            }
            Fault::Sleep { node, lasts } => self.nodes[*node].asleep_until = now + lasts,
            Fault::Slow { lasts } => self.slow_until = now + lasts,
            Fault::Lossy { lasts } => self.lossy_until = now + lasts,
            Fault::Compact => self.store.compact(),
            Fault::Stranger => self.stranger(),
            Fault::Junk => self.junk(),
            Fault::DeleteKey => {
                if let Some(key) = self.some_key() {
                    self.store.delete_by_hand(&key);
                }
            }
            Fault::Overwrite => {
                if let Some(key) = self.some_key() {
                    self.put_as_stranger(&key);
                }
            }
            Fault::Forge => self.forge(),
            Fault::BackUp => self.store.back_up(),
            Fault::Restore => self.goes_back(false),
            Fault::Wipe => self.goes_back(true),
        }
    }

    fn goes_back(&mut self, wipe: bool) {
        self.found.insert(match self.store.has_backup() && !wipe {
            true => Found::Restored,
            false => Found::Wiped,
        });
        self.store.go_back(self.now, wipe);
    }

    pub(super) fn repair(&mut self) {
        self.say(|| "everything is repaired".into());
        self.slow_until = 0;
        self.lossy_until = 0;
        self.at(self.now, What::StoreStarts);
        for node in 0..self.nodes.len() {
            let it = &mut self.nodes[node];
            it.cut_until = 0;
            it.asleep_until = it.asleep_until.min(self.now);
            self.at(self.now, What::Start { node });
        }
    }

    fn some_key(&mut self) -> Option<String> {
        let keys: Vec<String> = self.store.records().map(|record| record.key.clone()).collect();
        let pick = self.rng.range(0, keys.len().max(1) as u64 - 1);
        keys.get(usize::try_from(pick).unwrap()).cloned()
    }

    fn stranger(&mut self) {
        let pool = *self.pools.ipv4().unwrap();
        let free: Vec<String> = pool
            .subnets()
            .map(|subnet| format!("{}-{}", subnet.network(), subnet.length()))
            .filter(|key| self.store.get(key).is_none())
            .collect();
        let pick = self.rng.range(0, free.len().max(1) as u64 - 1);
        if let Some(key) = free.get(usize::try_from(pick).unwrap()) {
            self.put_as_stranger(key);
        }
    }

    /// A lease as a node of flannel writes it, which then goes away.
    fn put_as_stranger(&mut self, key: &str) {
        self.strangers += 1;
        let last = 200 + self.strangers % 50;
        let value = format!(
            r#"{{"PublicIP":"192.168.50.{last}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:ff:00:00:00:{last:02x}"}}}}"#
        );
        let ttl = self.rng.range(10_000, 90_000);
        self.store.put_leased(key, &value, -self.strangers, ttl, self.now);
    }

    /// Another address in the name of a node, on the same etcd lease. Not too often: a record that is put right again and again
    /// is left alone for longer than a history is.
    fn forge(&mut self) {
        let records: Vec<_> = self.store.records().cloned().collect();
        let pick = self.rng.range(0, records.len().max(1) as u64 - 1);
        let Some(record) = records.get(usize::try_from(pick).unwrap()) else {
            return;
        };
        let named = self
            .nodes
            .iter()
            .map(|node| node.value())
            .find(|value| value.as_bytes() == record.value);
        if let Some(value) = named.filter(|_| self.forged < MOST_FORGED) {
            self.forged += 1;
            let value = value.replace("192.168.50.", "192.168.51.");
            self.store.change_by_hand(record, &value);
        }
    }

    fn junk(&mut self) {
        let one = self.rng.range(0, 5);
        let (key, value) = match one {
            0 => ("0.0.0.0-0", r#"{"PublicIP":"192.168.50.66"}"#),
            1 => ("foo", "junk"),
            2 => ("10.5.0.4-30/meta", "{}"),
            3 => ("10.9.0.0-24", r#"{"PublicIP":"192.168.50.66"}"#),
            4 => ("10.5.0.0-16", r#"{"PublicIP":"192.168.50.66"}"#),
            _ => ("10.5.0.4-32", "\u{0}"),
        };
        self.store.put_by_others(key, value);
    }
}
