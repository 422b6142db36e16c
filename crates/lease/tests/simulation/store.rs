//! etcd as far as leases need it: revisions, leases that expire, fenced writes, a history to watch, and a backup.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use flannel_lease::{ClaimOutcome, Event, Expected, Identity, LeaseTerms, Op, Record, Revisions};
use flannel_model::LeaseValue;

/// Simulated time in milliseconds.
pub type Time = u64;

#[derive(Debug, Clone, Hash)]
struct Lease {
    ttl: Time,
    expires: Time,
}

/// One change of the history.
#[derive(Debug, Clone)]
pub enum Change {
    Put(Record),
    Delete { key: String, revision: i64 },
}

impl Change {
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(record) => record.revisions.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// What is done to the store besides the calls of nodes; who replays a history on a real etcd does the same there.
#[derive(Debug, Clone)]
pub enum Deed {
    Expired(i64),
    Put {
        key: String,
        value: String,
        lease: i64,
    },
    /// Another value on the lease that the key has.
    Changed {
        key: String,
        value: String,
    },
    Deleted(String),
    Compacted,
    BackedUp,
    Restored,
    Wiped,
    Stopped,
    Started,
}

#[derive(Debug, Clone)]
pub struct Store {
    pub up: bool,
    pub revision: i64,
    /// Grows when the store is wiped or restored: what a watcher sees as a revision or a term that went back.
    pub epoch: u32,
    pub compacted: i64,
    records: BTreeMap<String, Record>,
    leases: BTreeMap<i64, Lease>,
    pub history: Vec<Change>,
    backup: Option<Box<Store>>,
    /// Off only to show that the checks can fail.
    pub fences: bool,
    /// What was done, for who asks for it.
    deeds: Option<Vec<Deed>>,
}

impl Store {
    pub fn new() -> Self {
        Self {
            up: true,
            revision: 1,
            epoch: 0,
            compacted: 0,
            records: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: Vec::new(),
            backup: None,
            fences: true,
            deeds: None,
        }
    }

    /// Whether to keep what is done from here on.
    pub fn keep_deeds(&mut self, keep: bool) {
        self.deeds = keep.then(Vec::new);
    }

    /// What was done since the last time.
    pub fn take_deeds(&mut self) -> Vec<Deed> {
        self.deeds.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note(&mut self, deed: Deed) {
        if let Some(deeds) = &mut self.deeds {
            deeds.push(deed);
        }
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub fn list(&self) -> Vec<Record> {
        self.records.values().cloned().collect()
    }

    pub fn get(&self, key: &str) -> Option<&Record> {
        self.records.get(key)
    }

    /// What stands in it now; where it came from does not matter.
    pub fn hash_into(&self, into: &mut impl Hasher) {
        (self.up, self.revision, self.epoch, &self.records, &self.leases).hash(into);
    }

    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Deletes what hung on leases that are over.
    pub fn expire(&mut self, now: Time) {
        if !self.up {
            return;
        }
        let over: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.expires <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.leases.remove(&id);
            self.note(Deed::Expired(id));
            let keys: Vec<String> = self
                .records
                .values()
                .filter(|record| record.lease == id)
                .map(|record| record.key.clone())
                .collect();
            for key in keys {
                self.delete(&key);
            }
        }
    }

    pub fn put(&mut self, key: &str, value: &str, lease: i64) -> i64 {
        self.revision += 1;
        let created = self
            .records
            .get(key)
            .map_or(self.revision, |r| r.revisions.created);
        let record = Record {
            key: key.into(),
            value: value.into(),
            revisions: Revisions {
                created,
                modified: self.revision,
            },
            lease,
        };
        self.records.insert(key.into(), record.clone());
        self.history.push(Change::Put(record));
        self.revision
    }

    /// A write of somebody who is no node of ours.
    pub fn put_by_others(&mut self, key: &str, value: &str) {
        self.note(Deed::Put {
            key: key.into(),
            value: value.into(),
            lease: 0,
        });
        self.put(key, value, 0);
    }

    /// The same on a lease.
    pub fn put_leased(&mut self, key: &str, value: &str, lease: i64, ttl: Time, now: Time) {
        let expires = now + ttl;
        self.leases.insert(lease, Lease { ttl, expires });
        self.note(Deed::Put {
            key: key.into(),
            value: value.into(),
            lease,
        });
        self.put(key, value, lease);
    }

    /// Another value for a key that stays on its lease.
    pub fn change_by_hand(&mut self, record: &Record, value: &str) {
        self.note(Deed::Changed {
            key: record.key.clone(),
            value: value.into(),
        });
        self.put(&record.key, value, record.lease);
    }

    /// An operator's deletion.
    pub fn delete_by_hand(&mut self, key: &str) {
        self.note(Deed::Deleted(key.into()));
        self.delete(key);
    }

    pub fn delete(&mut self, key: &str) {
        if self.records.remove(key).is_some() {
            self.revision += 1;
            let revision = self.revision;
            self.history.push(Change::Delete {
                key: key.into(),
                revision,
            });
        }
    }

    pub fn stop(&mut self) {
        self.up = false;
        self.note(Deed::Stopped);
    }

    /// etcd refreshes its leases when a leader takes office, so an outage never shortens them.
    pub fn start(&mut self, now: Time) {
        self.up = true;
        self.note(Deed::Started);
        for lease in self.leases.values_mut() {
            lease.expires = now + lease.ttl;
        }
    }

    pub fn back_up(&mut self) {
        self.note(Deed::BackedUp);
        self.backup = Some(Box::new(Self {
            backup: None,
            deeds: None,
            ..self.clone()
        }));
    }

    pub fn has_backup(&self) -> bool {
        self.backup.is_some()
    }

    /// Goes back to the backup, or to nothing.
    pub fn go_back(&mut self, now: Time, wipe: bool) {
        let backup = self.backup.take().filter(|_| !wipe);
        self.note(match backup {
            Some(_) => Deed::Restored,
            None => Deed::Wiped,
        });
        let (epoch, up, fences) = (self.epoch + 1, self.up, self.fences);
        let deeds = self.deeds.take();
        *self = backup.map_or_else(Self::new, |backup| *backup);
        self.epoch = epoch;
        self.up = up;
        self.fences = fences;
        self.deeds = deeds;
        self.compacted = self.revision;
        self.history.clear();
        for lease in self.leases.values_mut() {
            lease.expires = now + lease.ttl;
        }
    }

    pub fn compact(&mut self) {
        self.note(Deed::Compacted);
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Carries out an operation of `owner`, who writes `value`. A write over somebody else's record is an error: no fence
    /// may let it through.
    pub fn carry_out(&mut self, op: &Op, owner: &Identity, value: &str, now: Time) -> Result<Event, String> {
        self.expire(now);
        Ok(match op {
            Op::List => Event::Listed(self.list()),
            Op::ReadUsed => Event::UsedRead(vec![]),
            Op::KeepAlive(id) => match self.leases.get_mut(id) {
                Some(lease) => {
                    lease.expires = now + lease.ttl;
                    Event::KeptAlive(std::time::Duration::from_millis(lease.ttl))
                }
                None => Event::Expired,
            },
            Op::Drop { key, modified, .. } => {
                let key = key.to_string();
                if self.stands_at(&key, *modified) {
                    self.only_own(&key, owner)?;
                    self.delete(&key);
                }
                Event::Dropped
            }
            Op::Claim {
                key,
                expected,
                terms,
                published,
            } => {
                let key = key.to_string();
                let free = match expected {
                    Expected::Absent => !self.records.contains_key(&key) || !self.fences,
                    Expected::Modified(modified) => self.stands_at(&key, *modified),
                };
                let stands = published
                    .as_ref()
                    .is_some_and(|p| !p.rewrite && p.value.to_json() == value);
                match (*terms, expected) {
                    (LeaseTerms::Keep(lease), Expected::Modified(modified)) if stands => {
                        let modified = *modified;
                        return Ok(Event::Claimed(ClaimOutcome::Won { lease, modified }));
                    }
                    // etcd refuses a put on a lease that is gone
                    (LeaseTerms::Keep(lease), _) if lease != 0 && !self.leases.contains_key(&lease) => {
                        return Ok(Event::Failed);
                    }
                    _ => {}
                }
                if let LeaseTerms::Grant { lease, ttl } = terms {
                    let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                    let expires = now + ttl;
                    self.leases.entry(*lease).or_insert(Lease { ttl, expires });
                }
                if !free {
                    return Ok(Event::Claimed(ClaimOutcome::Lost));
                }
                self.only_own(&key, owner)?;
                let lease = match terms {
                    LeaseTerms::Grant { lease, .. } | LeaseTerms::Keep(lease) => *lease,
                };
                let modified = self.put(&key, value, lease);
                Event::Claimed(ClaimOutcome::Won { lease, modified })
            }
        })
    }

    fn stands_at(&self, key: &str, modified: i64) -> bool {
        let at = self.records.get(key).map(|record| record.revisions.modified);
        at == Some(modified) || at.is_some() && !self.fences
    }

    fn only_own(&self, key: &str, owner: &Identity) -> Result<(), String> {
        let Some(record) = self.records.get(key) else {
            return Ok(());
        };
        let theirs = LeaseValue::parse(&record.value).map(|value| Identity::of(&value));
        match theirs {
            Ok(theirs) if theirs.is(owner) => Ok(()),
            _ => Err(format!("{owner} overwrote or deleted {key} of somebody else")),
        }
    }
}
