//! Runs the lease machine against the store.

mod operate;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use flannel_lease::{Event, Holding, Identity, LeaseMachine, Op, Record, Situation, Standing};
use flannel_model::{EtcdPrefix, Families, LeaseKey, LeaseValue, Mac};
use flannel_store::{Store, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::{random_bits, since_boot};
use crate::publish::Publisher;
use crate::said::{Said, chain};
use operate::Operator;
pub use operate::record;

/// The clock is looked at this often while nothing is due, because a sleeping machine stops tokio's timers.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Where the node's own lease stands.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseStatus {
    /// What the machine is about.
    pub situation: Situation,
    /// Whether pods may be added.
    pub standing: Standing,
    /// The subnet in use, if there was ever one.
    pub held: Option<Holding>,
    /// The VTEP addresses published for it, by a backend that has them.
    pub macs: Option<Families<Mac, Mac>>,
    /// What was published for it last.
    pub published: Option<String>,
    /// Subnets that went to other nodes while this one had them.
    pub lost: Vec<LeaseKey>,
}

type Running = Pin<Box<dyn Future<Output = Result<Event, StoreError>> + Send>>;

/// The machine with all that it needs to act.
pub struct LeaseDriver<S> {
    machine: LeaseMachine,
    operator: Operator<S>,
    /// What keeps etcd from answering.
    outage: Said,
    /// What keeps the node from a subnet although etcd answers. Apart from `outage`: each may last while the other ends.
    shortage: Said,
    /// Who the node is, which changes with its addresses.
    identity: Option<watch::Receiver<Identity>>,
}

impl<S: Store> LeaseDriver<S> {
    /// A driver that has not begun.
    pub fn new(machine: LeaseMachine, store: S, prefix: EtcdPrefix, publisher: Publisher) -> Self {
        Self {
            machine,
            operator: Operator::new(store, prefix, publisher),
            outage: Said::default(),
            shortage: Said::default(),
            identity: None,
        }
    }

    /// Publishes the addresses that come here.
    #[must_use]
    pub fn following(mut self, identity: watch::Receiver<Identity>) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Goes on with what an earlier run held and published.
    #[must_use]
    pub fn resuming(mut self, holding: Holding, value: &LeaseValue) -> Self {
        self.machine = self.machine.resuming(holding);
        self.operator.resume(value);
        self
    }

    /// Takes its first list of all leases from somebody who reads it anyway. Whoever promises it tells an outage as well.
    #[must_use]
    pub fn with_first_list(mut self, list: oneshot::Receiver<Vec<Record>>) -> Self {
        self.operator.expect_list(list);
        self
    }

    /// Runs until the receiver of `status` is gone. `seen` brings what the watch saw of our own key.
    pub async fn run(mut self, mut seen: mpsc::Receiver<Event>, status: watch::Sender<Option<LeaseStatus>>) {
        let mut event = Event::Start;
        let mut running: Option<Running> = None;
        loop {
            let now = since_boot();
            // Fenced, and followed by a fresh list whenever in doubt, an operation may be left behind for another one.
            if let Some(op) = self.machine.handle(event, now, random_bits()) {
                tell_op(&op);
                running = Some(self.operator.begin(op));
            }
            self.tell();
            let next = self.status(now);
            status.send_if_modified(|old| {
                let changed = old.as_ref() != Some(&next);
                *old = Some(next);
                changed
            });
            if status.is_closed() {
                return;
            }
            let due = self.until_due();
            event = tokio::select! {
                Some(event) = seen.recv() => event,
                identity = moved(&mut self.identity) => {
                    self.operator.moved(identity).await;
                    Event::Moved(identity)
                }
                result = finished(&mut running) => self.answer(result),
                () = tokio::time::sleep(due) => Event::Timer,
            };
        }
    }

    fn status(&self, now: Duration) -> LeaseStatus {
        LeaseStatus {
            situation: self.machine.situation(),
            standing: self.machine.standing(now),
            held: self.machine.holding().copied(),
            macs: self.operator.macs(),
            published: self.operator.published(),
            lost: self.machine.lost().to_vec(),
        }
    }

    fn until_due(&self) -> Duration {
        let now = since_boot();
        let due = self.machine.wake_at(now);
        // At least a moment, so that a timer that is due a little early by rounding is no busy loop.
        due.map_or(LONGEST_SLEEP, |at| at.saturating_sub(now))
            .clamp(Duration::from_millis(1), LONGEST_SLEEP)
    }

    fn answer(&mut self, result: Result<Event, StoreError>) -> Event {
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

    /// Says what keeps the node from a subnet.
    fn tell(&mut self) {
        let problem = match self.machine.situation() {
            Situation::Held => {
                if self.shortage.clear() {
                    tracing::info!("the node has a subnet again");
                }
                return;
            }
            // Listing and claiming are steps of every retry: neither begins nor ends a shortage.
            Situation::Acquiring => return,
            Situation::Exhausted => {
                "the pool is exhausted: every subnet between SubnetMin and SubnetMax is leased; make Network larger or \
                 SubnetLen longer, or remove leases of nodes that are gone (flannelctl subnets); this node keeps trying"
            }
            Situation::Revoked => {
                "the lease of this node was deleted twice within a minute, so the subnet is taken to be revoked: pods stay, \
                 none is added; restart flanneld to claim a subnet again"
            }
        };
        if self.shortage.is_news(problem) {
            tracing::error!("{problem}");
        }
    }
}

/// The next identity; never, where nobody tells.
async fn moved(identity: &mut Option<watch::Receiver<Identity>>) -> Identity {
    if let Some(receiver) = identity
        && receiver.changed().await.is_ok()
    {
        return *receiver.borrow_and_update();
    }
    std::future::pending().await
}

async fn finished(running: &mut Option<Running>) -> Result<Event, StoreError> {
    let Some(operation) = running else {
        return std::future::pending().await;
    };
    let result = operation.await;
    *running = None;
    result
}

fn tell_op(op: &Op) {
    match op {
        Op::Drop { key, why, .. } => {
            let why = match why {
                flannel_lease::Useless::NotOffered => "does not fit the network config any more",
                flannel_lease::Useless::Surplus => "is one too many: the node holds another one",
                flannel_lease::Useless::Younger => {
                    "has a part of a subnet that an older record of another node has"
                }
            };
            tracing::warn!(subnet = %key, "a lease of this node {why}, and is deleted");
        }
        Op::List | Op::ReadUsed | Op::Claim { .. } | Op::KeepAlive(_) => tracing::debug!(?op, "lease"),
    }
}
