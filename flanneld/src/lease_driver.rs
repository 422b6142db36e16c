//! Runs the lease machine against the store.

use std::time::Duration;

use flannel_lease::{
    ClaimOutcome, Event, Expected, Holding, LeaseMachine, LeaseTerms, Op, Record, Revisions, Situation,
};
use flannel_model::{EtcdPrefix, LeaseKey, LeaseValue, Mac};
use flannel_store::{Created, KeptAlive, KeyValue, LeaseId, NewLease, Renewal, Replaced, Store, StoreError};
use tokio::sync::{mpsc, watch};

use crate::clock::{random_bits, since_boot};
use crate::publish::Publisher;
use crate::said::{Said, chain};

/// The clock is looked at this often while nothing is due, because a sleeping machine stops tokio's timers.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Where the node's own lease stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LeaseStatus {
    /// What the machine is about.
    pub situation: Situation,
    /// The subnet in use, if there was ever one, with the VTEP address published for it.
    pub held: Option<(Holding, Mac)>,
}

/// The machine with all that it needs to act.
pub struct LeaseDriver<S> {
    machine: LeaseMachine,
    store: S,
    prefix: EtcdPrefix,
    publisher: Publisher,
    /// What keeps etcd from answering.
    outage: Said,
    /// What keeps the node from a subnet although etcd answers. Apart from `outage`: each may last while the other ends.
    shortage: Said,
}

impl<S: Store> LeaseDriver<S> {
    /// A driver that has not begun.
    pub fn new(machine: LeaseMachine, store: S, prefix: EtcdPrefix, publisher: Publisher) -> Self {
        Self {
            machine,
            store,
            prefix,
            publisher,
            outage: Said::default(),
            shortage: Said::default(),
        }
    }

    /// Runs until the receiver of `status` is gone. `seen` brings what the watch saw of our own key.
    pub async fn run(mut self, mut seen: mpsc::Receiver<Event>, status: watch::Sender<Option<LeaseStatus>>) {
        let mut op = self.machine.handle(Event::Start, since_boot(), random_bits());
        loop {
            let event = match op.take() {
                // Fenced and followed by a fresh list whenever in doubt, an operation may be left behind for news of our key.
                Some(next) => tokio::select! {
                    Some(event) = seen.recv() => event,
                    event = self.perform(next) => event,
                },
                None => tokio::select! {
                    Some(event) = seen.recv() => event,
                    () = tokio::time::sleep(self.until_due()) => Event::Timer,
                },
            };
            op = self.machine.handle(event, since_boot(), random_bits());
            self.tell();
            let now = LeaseStatus {
                situation: self.machine.situation(),
                held: self.machine.holding().copied().zip(self.publisher.mac()),
            };
            let changed = |old: &mut Option<LeaseStatus>| old.replace(now) != Some(now);
            status.send_if_modified(changed);
            if status.is_closed() {
                return;
            }
        }
    }

    fn until_due(&self) -> Duration {
        let due = self
            .machine
            .wake_at()
            .map_or(LONGEST_SLEEP, |at| at.saturating_sub(since_boot()));
        // At least a moment, so that a timer that is due a little early by rounding is no busy loop.
        due.clamp(Duration::from_millis(1), LONGEST_SLEEP)
    }

    async fn perform(&mut self, op: Op) -> Event {
        let result = match op {
            Op::List => self.list().await,
            Op::Claim {
                key,
                expected,
                terms,
                published,
            } => self.claim(key, expected, terms, published).await,
            Op::Drop { key, modified } => self.drop_lease(key, modified).await,
            Op::KeepAlive(lease) => self.keep_alive(lease).await,
        };
        match result {
            Ok(event) => {
                if self.outage.clear() {
                    tracing::info!("etcd answers again");
                }
                event
            }
            Err(error) => {
                let text = chain(&error);
                if self.outage.is_news(&text) {
                    tracing::warn!("{text}; the data path stays as it is, trying again");
                }
                Event::Failed
            }
        }
    }

    async fn list(&self) -> Result<Event, StoreError> {
        let range = self.prefix.subnets();
        let listing = self.store.list(&range).await?;
        Ok(Event::Listed(
            listing
                .kvs
                .into_iter()
                .filter_map(|kv| record(&range, kv))
                .collect(),
        ))
    }

    async fn claim(
        &mut self,
        key: LeaseKey,
        expected: Expected,
        terms: LeaseTerms,
        published: Option<LeaseValue>,
    ) -> Result<Event, StoreError> {
        let value = self.publisher.value(published.as_ref());
        let text = value.to_json();
        let full = self.prefix.lease(&key);
        if let (Expected::Modified(modified), LeaseTerms::Keep(lease)) = (expected, terms)
            && published.is_some_and(|published| published.same_as(&value))
        {
            tracing::info!(subnet = %key, "the lease of an earlier run is taken over");
            return Ok(Event::Claimed(ClaimOutcome::Won { lease, modified }));
        }
        let outcome = match (expected, terms) {
            (Expected::Absent, LeaseTerms::Grant(ttl)) => match self
                .store
                .create(
                    &full,
                    &text,
                    NewLease {
                        ttl_secs: whole_seconds(ttl),
                    },
                )
                .await?
            {
                Created::Won { lease, revision } => ClaimOutcome::Won {
                    lease: lease.0,
                    modified: revision,
                },
                Created::Lost => ClaimOutcome::Lost,
            },
            (Expected::Absent, LeaseTerms::Keep(_)) => ClaimOutcome::Lost,
            (Expected::Modified(modified), terms) => {
                match self.store.replace(&full, &text, modified, renewal(terms)).await? {
                    Replaced::Won { lease, revision } => ClaimOutcome::Won {
                        lease: lease.0,
                        modified: revision,
                    },
                    Replaced::Lost => ClaimOutcome::Lost,
                }
            }
        };
        match outcome {
            ClaimOutcome::Won { .. } => tracing::info!(subnet = %key, value = text, "the lease is written"),
            ClaimOutcome::Lost => tracing::info!(subnet = %key, "another node was faster; choosing again"),
        }
        Ok(Event::Claimed(outcome))
    }

    async fn drop_lease(&self, key: LeaseKey, modified: i64) -> Result<Event, StoreError> {
        tracing::warn!(subnet = %key, "an earlier lease of this node does not fit the network config any more and is deleted");
        self.store.delete_if(&self.prefix.lease(&key), modified).await?;
        Ok(Event::Dropped)
    }

    async fn keep_alive(&self, lease: i64) -> Result<Event, StoreError> {
        match self.store.keep_alive(LeaseId(lease)).await? {
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

    /// Says what keeps the node from a subnet.
    fn tell(&mut self) {
        match self.machine.situation() {
            Situation::Exhausted => {}
            Situation::Held => {
                if self.shortage.clear() {
                    tracing::info!("a subnet was free again");
                }
                return;
            }
            // Listing and claiming are steps of every retry: neither begins nor ends a shortage.
            Situation::Acquiring => return,
        }
        if self.shortage.is_news("exhausted") {
            tracing::error!(
                "the pool is exhausted: every subnet between SubnetMin and SubnetMax is leased; make Network larger or \
                 SubnetLen longer, or remove leases of nodes that are gone (flannelctl subnets); this node keeps trying"
            );
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

fn renewal(terms: LeaseTerms) -> Renewal {
    match terms {
        LeaseTerms::Grant(ttl) => Renewal::Grant {
            ttl_secs: whole_seconds(ttl),
        },
        LeaseTerms::Keep(0) => Renewal::None,
        LeaseTerms::Keep(lease) => Renewal::Keep(LeaseId(lease)),
    }
}

fn whole_seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1)
}
