//! The operations of the lease machine, on the store.

use std::time::Duration;

use flannel_lease::{ClaimOutcome, Event, Expected, Identity, LastUse, LeaseTerms, Op, Record, Revisions};
use flannel_model::{EtcdPrefix, Families, LeaseKey, LeaseValue, Mac, UsedNote};
use flannel_store::{Created, KeptAlive, KeyValue, LeaseId, NewLease, Renewal, Replaced, Store, StoreError};
use tokio::sync::oneshot;

use super::Running;
use crate::clock::{since_boot, wall_seconds};
use crate::publish::Publisher;

/// How often the note about our own subnet is brought up to date: a fraction of the hold-down of a day.
const NOTE_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// Connections are given up in no time, unless one is just being made.
const RECONNECT: Duration = Duration::from_secs(1);

/// Carries out operations. What it publishes is settled when an operation begins.
pub(super) struct Operator<S> {
    store: S,
    prefix: EtcdPrefix,
    publisher: Publisher,
    held: Option<LeaseKey>,
    noted: Option<Duration>,
    published: Option<String>,
    /// Somebody else reads the same list at the start.
    first: Option<oneshot::Receiver<Vec<Record>>>,
}

impl<S: Store> Operator<S> {
    pub(super) fn new(store: S, prefix: EtcdPrefix, publisher: Publisher) -> Self {
        Self {
            store,
            prefix,
            publisher,
            held: None,
            noted: None,
            published: None,
            first: None,
        }
    }

    /// Takes the first list from somebody who reads it anyway.
    pub(super) fn expect_list(&mut self, first: oneshot::Receiver<Vec<Record>>) {
        self.first = Some(first);
    }

    /// What is published from now on has these addresses. Connections to etcd are made anew: those that are open may come from the
    /// address of before, and nobody would notice for long.
    pub(super) async fn moved(&mut self, identity: Identity) {
        self.publisher.moved(identity);
        if tokio::time::timeout(RECONNECT, self.store.reconnect())
            .await
            .is_err()
        {
            tracing::debug!("the connections to etcd are busy; they are found to be dead by themselves");
        }
    }

    /// The VTEPs' addresses once they are settled.
    pub(super) fn macs(&self) -> Option<Families<Mac, Mac>> {
        self.publisher.macs()
    }

    /// The value that was published last, or is about to be.
    pub(super) fn published(&self) -> Option<String> {
        self.published.clone()
    }

    /// Goes on with what an earlier run published.
    pub(super) fn resume(&mut self, value: &LeaseValue) {
        self.published = Some(self.publisher.value(Some(value)).to_json());
    }

    /// Begins an operation; the future owns all that it needs and may be dropped.
    pub(super) fn begin(&mut self, op: Op) -> Running {
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        match op {
            Op::List => {
                let range = prefix.leases(self.publisher.families());
                let first = self.first.take();
                Box::pin(async move {
                    if let Some(first) = first
                        && let Ok(records) = first.await
                    {
                        return Ok(Event::Listed(records));
                    }
                    list(&store, &range).await
                })
            }
            Op::ReadUsed => Box::pin(async move { read_used(&store, &prefix.used()).await }),
            Op::Claim {
                key,
                expected,
                terms,
                published,
            } => {
                let value = self
                    .publisher
                    .value(published.as_ref().map(|published| &published.value));
                let stands = published
                    .as_ref()
                    .is_some_and(|p| !p.rewrite && p.value.same_as(&value));
                let foreign = published.filter(|p| p.foreign && !stands);
                self.held = Some(key);
                self.published = Some(value.to_json());
                self.noted = Some(since_boot());
                let claim = Claim {
                    key,
                    value,
                    expected,
                    terms,
                    stands,
                    foreign: foreign.map(|published| published.value.to_json()),
                };
                Box::pin(async move { claim.run(&store, &prefix).await })
            }
            Op::Drop { key, modified, .. } => Box::pin(async move {
                store.delete_if(&prefix.lease(&key), modified).await?;
                Ok(Event::Dropped)
            }),
            Op::KeepAlive(lease) => {
                let note = self.due_note();
                Box::pin(async move {
                    let event = keep_alive(&store, lease).await?;
                    if let (Event::KeptAlive(_), Some((key, note))) = (&event, note)
                        && let Err(error) = refresh_note(&store, &key, note).await
                    {
                        tracing::debug!(%error, "the note about our subnet's use was not brought up to date");
                    }
                    Ok(event)
                })
            }
        }
    }

    fn due_note(&mut self) -> Option<(String, UsedNote)> {
        let now = since_boot();
        let due = self.noted.is_none_or(|at| now >= at + NOTE_INTERVAL);
        let key = self.held.filter(|_| due)?;
        self.noted = Some(now);
        let value = self.publisher.value(None);
        Some((self.prefix.used_note(&key), used_note(&value)))
    }
}

/// A write of our own record.
struct Claim {
    key: LeaseKey,
    value: LeaseValue,
    expected: Expected,
    terms: LeaseTerms,
    /// It says already what we would write.
    stands: bool,
    /// What somebody else wrote there in our name.
    foreign: Option<String>,
}

impl Claim {
    async fn run<S: Store>(self, store: &S, prefix: &EtcdPrefix) -> Result<Event, StoreError> {
        let text = self.value.to_json();
        let full = prefix.lease(&self.key);
        let outcome = match (self.expected, self.terms) {
            (Expected::Modified(modified), LeaseTerms::Keep(lease)) if self.stands => {
                tracing::info!(subnet = %self.key, "the lease of an earlier run is taken over");
                return Ok(Event::Claimed(ClaimOutcome::Won { lease, modified }));
            }
            (Expected::Absent, LeaseTerms::Grant { lease, ttl }) => {
                let mut note = used_note(&self.value);
                note.held_since = Some(note.last_held);
                let notes = [(prefix.used_note(&self.key), note.to_json())];
                match store.create(&full, &text, new_lease(lease, ttl), &notes).await? {
                    Created::Won { lease, revision } => won(lease, revision),
                    Created::Lost => ClaimOutcome::Lost,
                }
            }
            (Expected::Absent, LeaseTerms::Keep(_)) => ClaimOutcome::Lost,
            (Expected::Modified(modified), terms) => {
                match store.replace(&full, &text, modified, renewal(terms)).await? {
                    Replaced::Won { lease, revision } => won(lease, revision),
                    Replaced::Lost => ClaimOutcome::Lost,
                }
            }
        };
        match outcome {
            ClaimOutcome::Won { .. } => {
                if let Some(foreign) = self.foreign {
                    tracing::warn!(
                        subnet = %self.key, foreign,
                        "the lease of this node said what this node did not write, and is put right"
                    );
                }
                tracing::info!(subnet = %self.key, value = text, "the lease is written")
            }
            ClaimOutcome::Lost => {
                tracing::info!(subnet = %self.key, "another node was faster; choosing again")
            }
        }
        Ok(Event::Claimed(outcome))
    }
}

fn won(lease: LeaseId, modified: i64) -> ClaimOutcome {
    ClaimOutcome::Won {
        lease: lease.0,
        modified,
    }
}

async fn list<S: Store>(store: &S, range: &str) -> Result<Event, StoreError> {
    let listing = store.list(range).await?;
    let records = listing.kvs.into_iter().filter_map(|kv| record(range, kv));
    Ok(Event::Listed(records.collect()))
}

async fn read_used<S: Store>(store: &S, range: &str) -> Result<Event, StoreError> {
    let listing = store.list(range).await?;
    let now = wall_seconds();
    let last_use = |kv: KeyValue| {
        let key = kv.key.strip_prefix(range)?.parse().ok()?;
        let idle = UsedNote::parse(&kv.value)?.idle(now);
        Some(LastUse { key, idle })
    };
    Ok(Event::UsedRead(
        listing.kvs.into_iter().filter_map(last_use).collect(),
    ))
}

/// Brings a note up to date. Since when the subnet is held stands in the one that is there: an earlier run may have written it.
async fn refresh_note<S: Store>(store: &S, key: &str, note: UsedNote) -> Result<(), StoreError> {
    let known = store.get(key).await?.0.and_then(|kv| UsedNote::parse(&kv.value));
    let held_since = known
        .filter(|known| known.same_holder(&note))
        .and_then(|known| known.held_since);
    let note = UsedNote { held_since, ..note };
    store.put(key, &note.to_json()).await.map(drop)
}

async fn keep_alive<S: Store>(store: &S, lease: i64) -> Result<Event, StoreError> {
    match store.keep_alive(LeaseId(lease)).await? {
        KeptAlive::Alive { ttl_secs } => {
            tracing::debug!(ttl_secs, "the lease is renewed");
            Ok(Event::KeptAlive(Duration::from_secs(ttl_secs.into())))
        }
        KeptAlive::Expired => {
            tracing::warn!(
                "the lease ran out while this node could not renew it; it is claimed again if nobody took it"
            );
            Ok(Event::Expired)
        }
    }
}

/// A record as the lease code reads it; `None` for a key outside the range.
pub fn record(range: &str, kv: KeyValue) -> Option<Record> {
    let key = kv.key.strip_prefix(range)?.to_owned();
    let revisions = Revisions {
        created: kv.create_revision,
        modified: kv.mod_revision,
    };
    Some(Record {
        key,
        value: kv.value,
        revisions,
        lease: kv.lease.0,
    })
}

fn used_note(value: &LeaseValue) -> UsedNote {
    UsedNote {
        last_held: wall_seconds(),
        held_since: None,
        public_ip: value.public_ip,
        public_ipv6: value.public_ipv6,
    }
}

fn new_lease(lease: i64, ttl: Duration) -> NewLease {
    NewLease {
        ttl_secs: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1),
        id: LeaseId(lease),
    }
}

fn renewal(terms: LeaseTerms) -> Renewal {
    match terms {
        LeaseTerms::Grant { lease, ttl } => Renewal::Grant(new_lease(lease, ttl)),
        LeaseTerms::Keep(0) => Renewal::None,
        LeaseTerms::Keep(lease) => Renewal::Keep(LeaseId(lease)),
    }
}
