//! What the store in memory holds.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::{Change, ErrorKind, KeyValue, LeaseId, NewLease, Position, Revision, TimeToLive, WatchEnd};

pub(super) struct Lease {
    ttl_secs: u32,
    expires: Instant,
}

pub(super) struct State {
    pub position: Position,
    pub keys: BTreeMap<String, KeyValue>,
    pub leases: BTreeMap<LeaseId, Lease>,
    pub history: Vec<Change>,
    pub compacted: Revision,
    pub failure: Option<ErrorKind>,
    pub lose_answers: bool,
    pub frozen: bool,
    pub watch_generation: u64,
    pub watch_end: WatchEnd,
    pub watches_started: u64,
    granted: i64,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            // An empty etcd stands at revision 1, and its first leader has term 2.
            position: Position {
                cluster: 1,
                term: 2,
                revision: 1,
            },
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            failure: None,
            lose_answers: false,
            frozen: false,
            watch_generation: 0,
            watch_end: WatchEnd::Closed,
            watches_started: 0,
            granted: 0,
        }
    }

    pub(super) fn wipe(&mut self) {
        *self = Self {
            watch_generation: self.watch_generation,
            granted: self.granted,
            ..Self::new()
        };
    }

    /// Revision of the last change of a key; 0 when there is none, as in etcd's comparisons.
    pub(super) fn mod_revision(&self, key: &str) -> Revision {
        self.keys.get(key).map_or(0, |kv| kv.mod_revision)
    }

    pub(super) fn grant(&mut self, lease: NewLease) -> LeaseId {
        let NewLease { ttl_secs, id } = lease;
        if self.leases.contains_key(&id) {
            return id;
        }
        self.granted += 1;
        let id = if id.is_none() { LeaseId(self.granted) } else { id };
        let expires = Instant::now() + Duration::from_secs(ttl_secs.into());
        self.leases.insert(id, Lease { ttl_secs, expires });
        id
    }

    pub(super) fn renew(&mut self, id: LeaseId) -> Option<u32> {
        let lease = self.leases.get_mut(&id)?;
        lease.expires = Instant::now() + Duration::from_secs(lease.ttl_secs.into());
        Some(lease.ttl_secs)
    }

    pub(super) fn time_to_live(&self, id: LeaseId) -> TimeToLive {
        match self.leases.get(&id) {
            None => TimeToLive::Expired,
            Some(lease) => {
                let left = lease.expires.saturating_duration_since(Instant::now());
                TimeToLive::Remaining {
                    secs: u32::try_from(left.as_secs()).unwrap_or(lease.ttl_secs),
                    granted_secs: lease.ttl_secs,
                }
            }
        }
    }

    /// The moment at which the next lease expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.expires).min()
    }

    pub(super) fn put(&mut self, key: &str, value: &str, lease: LeaseId) -> Revision {
        self.position.revision += 1;
        self.put_at(key, value, lease);
        self.position.revision
    }

    pub(super) fn write_all(&mut self, puts: &[(String, String)], deletes: &[String]) -> Revision {
        let effective = !puts.is_empty() || deletes.iter().any(|key| self.keys.contains_key(key));
        if effective {
            self.position.revision += 1;
        }
        for (key, value) in puts {
            self.put_at(key, value, LeaseId::NONE);
        }
        for key in deletes {
            self.delete_at(key);
        }
        self.position.revision
    }

    /// Deletes what hung on leases that are over; one revision a lease, as in etcd.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let over = |lease: &Lease| lease.expires <= now;
        let ids: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, l)| over(l))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.leases.remove(&id);
            let attached = self.keys.values().filter(|kv| kv.lease == id);
            let keys: Vec<String> = attached.map(|kv| kv.key.clone()).collect();
            self.write_all(&[], &keys);
        }
    }

    pub(super) fn put_at(&mut self, key: &str, value: &str, lease: LeaseId) {
        let revision = self.position.revision;
        let created = self.keys.get(key).map_or(revision, |kv| kv.create_revision);
        let kv = KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: created,
            mod_revision: revision,
            lease,
        };
        self.keys.insert(key.to_owned(), kv.clone());
        self.history.push(Change::Put(kv));
    }

    fn delete_at(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.history.push(Change::Delete {
                key: key.to_owned(),
                mod_revision: self.position.revision,
            });
        }
    }
}
