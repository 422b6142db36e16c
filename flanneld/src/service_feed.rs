//! From the source of Services to their programmer: takes changes as they come and lets a pass carry them out.

mod account;
mod checks;
mod etcd;
mod kube;
mod news;
mod node_status;
mod servers;
mod status_log;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flannel_kube::Client;
use flannel_model::EtcdPrefix;
use flannel_store::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};

pub use account::Audience;
use account::{Account, Ask, Burst, families_of};
use checks::Checks;
#[cfg(test)]
pub use etcd::etcd_record;
use kube::KubeSource;
use news::News;
use servers::Servers;
use status_log::StatusLog;

use crate::flags::{Options, ServiceSource};
use crate::overlay::Facts;
use crate::services::{Cost, HostSettings, Record, ServiceMode, Services, Status, programmer, service_node};

/// IPVS has no notifications: a part of what stands is compared this often.
const AUDIT: Duration = Duration::from_secs(1);
/// Where the kernel does tell of changes by others, it is asked this often whether there were any.
const LOOK: Duration = Duration::from_millis(50);
/// After a failed pass.
const RETRY: Duration = Duration::from_secs(2);
/// Endpoints change in bursts: passes begin this far apart at the least, and take together what came in between.
const SETTLE: Duration = Duration::from_millis(20);
/// The first change after a quiet time waits this long only, for what was written with it.
const GATHER: Duration = Duration::from_millis(1);
/// News that are taken at once.
const BURST: usize = 4096;
/// News that wait for a pass to end before the source itself is held up.
const QUEUE: usize = 1024;

/// The source of Services that the options name, ready to be followed.
pub struct ServiceFeed {
    source: Source,
    node_name: String,
    mode: ServiceMode,
    host: HostSettings,
    /// For what a restart or a clean-up should find.
    run_dir: PathBuf,
    etcd: Vec<String>,
    audience: Audience,
    /// Where this node tells others of its Services.
    status_key: String,
}

enum Source {
    Etcd(EtcdPrefix),
    Kube(Box<KubeSource>),
    None,
}

impl ServiceFeed {
    /// Reads credentials, if the source needs any; nothing is asked yet.
    ///
    /// # Errors
    /// Credentials that cannot be read or used.
    pub fn new(options: &Options, audience: Audience) -> anyhow::Result<Self> {
        let own = || {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .to_lowercase()
        };
        let node_name = options.node_name.clone().unwrap_or_else(own);
        let source = match &options.services {
            ServiceSource::None => Source::None,
            ServiceSource::Etcd => Source::Etcd(options.prefix.clone()),
            ServiceSource::Kube { server, config } => {
                let client =
                    Client::new(server.clone()).context("Services cannot be read from Kubernetes")?;
                Source::Kube(Box::new(KubeSource {
                    client,
                    node_name: node_name.clone(),
                    config: (**config).clone(),
                }))
            }
        };
        Ok(Self {
            source,
            status_key: format!("{}{node_name}", options.prefix.service_nodes()),
            node_name,
            mode: options.service_mode,
            host: options.host.clone(),
            run_dir: options.run_dir(),
            etcd: options.etcd.endpoints.clone(),
            audience,
        })
    }

    /// Starts to follow the source and to program what it tells.
    pub fn start<S: Store>(self, store: S, facts: watch::Receiver<Option<Arc<Facts>>>) {
        let (sender, news) = mpsc::channel(QUEUE);
        let mut api_server = None;
        let origin = match self.source {
            Source::None => return,
            Source::Etcd(prefix) => {
                tokio::spawn(etcd::feed(store.clone(), prefix.services(), sender));
                "etcd"
            }
            Source::Kube(source) => {
                api_server = source.client.server_host();
                tokio::spawn(source.feed(sender));
                "kube"
            }
        };
        let account = Account::new(self.node_name.clone(), origin, self.audience.metrics.clone());
        let summary = account.summary();
        tokio::spawn(node_status::publish(
            store,
            self.status_key,
            summary,
            facts.clone(),
        ));
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let inputs = Inputs {
            news,
            facts,
            audience: self.audience,
            look,
        };
        let services = Services::new(programmer(self.mode, self.host, self.run_dir));
        let servers = Servers::new(self.etcd, api_server);
        tokio::spawn(Feed::new(self.node_name, servers, account).run(services, inputs));
    }
}

/// What the feed listens to.
struct Inputs {
    news: mpsc::Receiver<News>,
    facts: watch::Receiver<Option<Arc<Facts>>>,
    audience: Audience,
    look: Interval,
}

/// What is known between passes.
struct Feed {
    /// Name by which endpoints refer to this node.
    node_name: String,
    /// Servers that the node must go on to reach.
    servers: Servers,
    /// When the last pass began.
    passed: Option<Instant>,
    /// Changes that no pass has seen.
    changes: Vec<Change>,
    complete: bool,
    zone: Option<String>,
    account: Account,
    checks: Checks,
    log: StatusLog,
    /// When what stands is compared with what should be.
    audit: Instant,
    /// When a pass is due, even if nothing changes.
    due: Instant,
}

/// A change of one record.
enum Change {
    Put(Box<Record>),
    Gone(String),
}

/// What to do next.
enum Turn {
    Pass,
    Answer(Ask),
    Wait,
    End,
}

impl Feed {
    fn new(node_name: String, servers: Servers, account: Account) -> Self {
        let audit = Instant::now() + AUDIT;
        Self {
            node_name,
            servers,
            passed: None,
            changes: Vec::new(),
            complete: false,
            zone: None,
            account,
            checks: Checks::default(),
            log: StatusLog::default(),
            audit,
            due: audit,
        }
    }

    /// Services are programmed once a lease is held and everything was told once.
    async fn run(mut self, mut services: Services, mut inputs: Inputs) {
        loop {
            let turn = self.turn(&mut inputs, &mut services).await;
            let back = match turn {
                Turn::Wait => continue,
                Turn::End => return,
                Turn::Pass => self.pass(services, &mut inputs).await,
                Turn::Answer(ask) => self.answer(services, ask).await,
            };
            match back {
                Ok((back, known)) => (services, self) = (back, known),
                // What was known is lost with it, and the source tells it only once.
                Err(error) => {
                    tracing::error!(%error, "a pass over the Services ended early; they are not programmed any more until a restart");
                    return;
                }
            }
        }
    }

    async fn turn(&mut self, inputs: &mut Inputs, services: &mut Services) -> Turn {
        let mut burst = Vec::new();
        tokio::select! {
            changed = inputs.facts.changed() => match changed {
                Ok(()) => Turn::Pass,
                Err(_) => Turn::End,
            },
            count = inputs.news.recv_many(&mut burst, BURST) => {
                if count == 0 {
                    return Turn::End;
                }
                if self.complete {
                    self.settle().await;
                }
                while let Ok(next) = inputs.news.try_recv() {
                    burst.push(next);
                }
                self.take_all(burst);
                Turn::Pass
            }
            ask = inputs.audience.next() => Turn::Answer(ask),
            () = sleep_until(self.due) => Turn::Pass,
            _ = inputs.look.tick() => match services.disturbed() {
                true => Turn::Pass,
                false => Turn::Wait,
            },
        }
    }

    /// Carries out what came, on a thread that may block.
    async fn pass(
        mut self,
        mut services: Services,
        inputs: &mut Inputs,
    ) -> Result<(Services, Self), JoinError> {
        if self.audit <= Instant::now() {
            services.verify();
            self.audit = Instant::now() + AUDIT;
        }
        self.due = self.audit;
        if self.complete || !self.changes.is_empty() {
            self.servers.look_up().await;
        }
        let facts = inputs.facts.borrow_and_update().clone();
        let node = facts.as_deref().map(|facts| self.node(facts));
        let complete = self.complete;
        let changes = std::mem::take(&mut self.changes);
        self.passed = Some(Instant::now());
        let pass = tokio::task::spawn_blocking(move || {
            let cost = Cost::begin();
            for change in changes {
                match change {
                    Change::Put(record) => services.put(*record),
                    Change::Gone(name) => services.gone(&name),
                }
            }
            let status = match node {
                Some(node) if complete => Some(services.pass(&node)),
                // the source has more to tell: what is known so far can be worked out meanwhile
                Some(node) => {
                    services.prepare(node);
                    None
                }
                None => None,
            };
            let took = cost.took();
            tell_cost(&cost, status.as_ref());
            (services, status, took)
        });
        let (services, status, took) = pass.await?;
        if let Some(status) = status {
            let retry = (!status.failed.is_empty()).then_some(RETRY);
            let soon = services.wake().into_iter().chain(retry).min();
            self.due = soon.map_or(self.due, |soon| self.due.min(Instant::now() + soon));
            self.checks.update(&services, status.failed.is_empty());
            self.log.tell(&status, self.account.seen());
            self.account.passed(&services, &status, took);
        }
        Ok((services, self))
    }

    /// Waits for the rest of a burst, and for the time between two passes to be over.
    async fn settle(&self) {
        let soon = Instant::now() + GATHER;
        let next = self.passed.map_or(soon, |passed| passed + SETTLE);
        sleep_until(next.max(soon)).await;
    }

    /// Answers a question, on a thread that may block: the kernel is asked.
    async fn answer(self, mut services: Services, ask: Ask) -> Result<(Services, Self), JoinError> {
        tokio::task::spawn_blocking(move || {
            self.account.answer(&mut services, ask);
            (services, self)
        })
        .await
    }

    fn take_all(&mut self, news: Vec<News>) {
        let mut burst = Burst::default();
        for news in news {
            burst.add(&news);
            self.take(news);
        }
        self.account.queued(burst);
    }

    fn take(&mut self, news: News) {
        let families = families_of(&news);
        match news {
            News::Put(record, stamp) => {
                self.account.changed(stamp, families, self.complete);
                self.changes.push(Change::Put(record));
            }
            News::Gone(name, stamp) => {
                self.account.changed(stamp, families, self.complete);
                self.changes.push(Change::Gone(name));
            }
            News::Complete => {
                self.complete = true;
                self.account.followed(None);
            }
            News::Zone(zone) => self.zone = zone,
            News::Lost(reason) => {
                tracing::warn!("Services cannot be followed: {reason}; they stay as they are");
                self.account.followed(Some(reason));
            }
            News::Resumed => {
                tracing::info!("Services are followed again");
                self.account.followed(None);
            }
        }
    }

    fn node(&self, facts: &Facts) -> flannel_plan::ServiceNode {
        let mut node = service_node(facts);
        node.name.clone_from(&self.node_name);
        node.zone.clone_from(&self.zone);
        self.servers.add_to(&mut node);
        node
    }
}

/// The cost of a pass, or of a look at what is known while the source has more to tell.
fn tell_cost(cost: &Cost, status: Option<&Status>) {
    let (took_us, processor_us) = (cost.took().as_micros(), cost.processor().as_micros());
    let page_faults = cost.faults();
    match status {
        Some(Status { added, removed, .. }) => {
            tracing::debug!(
                added,
                removed,
                took_us,
                processor_us,
                page_faults,
                "a pass over the Services"
            );
        }
        None => tracing::debug!(
            took_us,
            processor_us,
            page_faults,
            "the Services that are known so far"
        ),
    }
}
