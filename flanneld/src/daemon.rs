//! Joins the parts: store → lease and peers → overlay → kernel, and says how it stands.

mod host;
mod peers;
mod remember;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flannel_lease::{Event as LeaseEvent, Identity, LeaseMachine, Patience, Protected, Settings, Touched};
use flannel_model::{Families, NodeId, NodeReport};
use flannel_plan::{Followed, Underlay};
use flannel_store::{EtcdStore, Event, Store, follow_since};
use flannel_telemetry::{
    Health, Metrics, StatusRequest, notify_ready, notify_reloading, notify_status, notify_stopping,
};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};

use crate::backends::Chosen;
use crate::cache::{Cache, CacheWriter};
use crate::config_wait::{Read, Usable, wait_for_config};
use crate::config_watch::{ConfigWatch, Stored};
use crate::filter::{self, FilterState};
use crate::flags::Options;
use crate::lease_driver::{LeaseDriver, LeaseStatus};
use crate::overlay::Facts;
use crate::peer_feed::PeerFeed;
use crate::publish::{Published, Publisher};
use crate::reconciler::{self, Report};
use crate::rejects::RejectLog;
use crate::said::{Said, chain};
use crate::service_feed::{Audience, ServiceFeed};
use crate::underlay::{self, choose_underlay};
use crate::{clock, encap, node_id, reaper, signals, subnet_file, tunnel_ports, udp};
use peers::Known;
use remember::{Earlier, own_lease};

/// News of our own key that wait for the lease driver; it takes each at once.
const OWN_NEWS: usize = 16;
/// The clock is looked at this often, because a sleeping machine stops tokio's timers.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Events that are taken before the peers are looked at as a whole.
const BURST: usize = 4096;

/// Runs until a signal asks to end. The data path stays as it is then.
///
/// # Errors
/// What keeps the daemon from its work for good.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let stop = signals::stop_requested()?;
    let reload = signals::reload_requests()?;
    let health = Health::starting("starting");
    let (metrics, scrapes) = Metrics::new();
    let (node_report, told) = watch::channel(None);
    metrics.node(told.clone());
    let audience = Audience {
        metrics: metrics.services.clone(),
        scrapes,
        questions: status_socket(&options, told),
    };
    let udp_counted = udp::Current::default();
    udp_counted.publish(&metrics);
    encap::publish(&metrics);
    if let Some(address) = options.healthz {
        flannel_telemetry::serve(address, health.clone(), metrics).await?;
    }
    // Pods go also while there is no subnet yet.
    reaper::start(&options.subnet_file);
    tokio::select! {
        result = work(&options, &health, audience, udp_counted, node_report, reload) => result,
        signal = stop => {
            notify_stopping();
            tracing::info!("{signal}: stopping; routes, devices and rules stay, pods keep their connections");
            Ok(())
        }
    }
}

/// Questions of flannelctl on this node. Without the socket the daemon does all its work.
fn status_socket(
    options: &Options,
    told: watch::Receiver<Option<NodeReport>>,
) -> mpsc::Receiver<StatusRequest> {
    let served = options
        .status_socket
        .as_deref()
        .map(|path| flannel_telemetry::serve_status(path, told));
    match served {
        Some(Ok(questions)) => return questions,
        Some(Err(error)) => tracing::warn!("{}", chain(&error)),
        None => {}
    }
    mpsc::channel(1).1
}

async fn work(
    options: &Options,
    health: &Health,
    audience: Audience,
    udp_counted: udp::Current,
    node_report: watch::Sender<Option<NodeReport>>,
    reload: Signal,
) -> anyhow::Result<()> {
    let store = EtcdStore::connect(options.etcd.clone())?;
    let services = ServiceFeed::new(options, audience)?;
    let waiting = |reason: &str| {
        health.set_waiting(reason);
        notify_status(&format!("waiting: {reason}"));
    };
    waiting("reading the network config");
    let random = u128::from(clock::random_bits()) << 64 | u128::from(clock::random_bits());
    let node = node_id::load_or_create(&options.state_dir, random);
    let earlier = Earlier::load(options, node);
    let running = earlier.as_ref().map(|earlier| &earlier.usable);
    let key = options.prefix.config();
    let Read { usable, offline } = wait_for_config(&store, &key, options.ipv6_only, running, waiting).await;
    let cache = earlier.and_then(|earlier| earlier.for_pools(&usable.pools));
    let (underlay, backend, published) = blocking({
        let options = options.clone();
        let (families, backend) = (usable.families(), usable.backend);
        move || {
            let underlay = choose_underlay(&options, families)?;
            let backend = Chosen::new(backend, &underlay, &options)?;
            let published = backend.published()?;
            Ok((underlay, backend, published))
        }
    })
    .await?;
    tracing::info!(
        network = usable.networks(),
        interface = underlay.name,
        address = listed(&underlay.address),
        public_ip = listed(&underlay.public_ip),
        mtu = underlay.mtu,
        "the network config is read, the interface is chosen"
    );
    waiting("acquiring a subnet");
    let beginning = Beginning {
        node,
        usable,
        underlay,
        backend,
        published,
        cache,
        offline,
        udp_counted,
        node_report,
    };
    Node::start(options, health, store, services, beginning)
        .run(reload)
        .await
}

/// Runs what may block for long on a thread of its own.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .context("a kernel call panicked")?
}

/// What is known before the node runs.
struct Beginning {
    node: Option<NodeId>,
    usable: Usable,
    underlay: Underlay,
    backend: Chosen,
    published: Published,
    cache: Option<Cache>,
    offline: bool,
    udp_counted: udp::Current,
    node_report: watch::Sender<Option<NodeReport>>,
}

/// The running node: the ends of every task, and what is known of the world.
struct Node<'a> {
    options: &'a Options,
    health: &'a Health,
    store: EtcdStore,
    config: ConfigWatch,
    usable: Usable,
    backend: Chosen,
    underlay: Underlay,
    identity: Identity,
    /// Tells the lease who the node is.
    identity_news: watch::Sender<Identity>,
    /// What becomes of the interface.
    host: watch::Receiver<Followed>,
    /// What it lacks.
    host_problem: Option<String>,
    /// Another interface that a start would choose.
    other: Said,
    protected: Vec<Protected>,
    lease: watch::Receiver<Option<LeaseStatus>>,
    own_news: mpsc::Sender<LeaseEvent>,
    events: mpsc::Receiver<Event>,
    feed: PeerFeed,
    /// What was published last, as long as nothing but peers changed since.
    known: Option<Known>,
    rejects: RejectLog,
    facts: watch::Sender<Option<Arc<Facts>>>,
    reports: watch::Receiver<Option<Report>>,
    filter: watch::Receiver<FilterState>,
    /// What keeps encapsulated packets from being filtered.
    encap: watch::Receiver<Option<String>>,
    /// What keeps the udp backend's data path from working; nothing without that backend.
    udp: watch::Receiver<Option<String>>,
    lost: Option<String>,
    /// Whether an earlier run left peers.
    has_cache: bool,
    /// They are used, because etcd is away.
    offline: bool,
    cache: CacheWriter,
    announced: bool,
    said: Said,
    /// Whether it is ready, and why not.
    state: (&'static str, String),
    /// What is told at `/status`.
    node_report: watch::Sender<Option<NodeReport>>,
}

impl<'a> Node<'a> {
    fn start(
        options: &'a Options,
        health: &'a Health,
        store: EtcdStore,
        services: ServiceFeed,
        beginning: Beginning,
    ) -> Self {
        let Beginning {
            node,
            usable,
            underlay,
            backend,
            published,
            cache,
            offline,
            udp_counted,
            node_report,
        } = beginning;
        let settings = Settings {
            ttl: options.lease_ttl,
            renew_margin: options.renew_margin,
            grace: options.reset_grace,
        };
        let identity = host::identity(&underlay, node);
        let (identity_news, identities) = watch::channel(identity);
        let pools = usable.pools;
        let previous = subnet_file::previous_lease(&options.subnet_file);
        let machine = LeaseMachine::new(settings, pools, identity, previous);
        let publisher = Publisher::new(identity, pools, published);
        let patience = Patience {
            hold: options.delete_hold,
            grace: options.reset_grace,
        };
        let mut feed = PeerFeed::new(options.prefix.leases(&pools), patience);
        feed.preload(cache.iter().flat_map(Cache::peers));
        let mut driver = LeaseDriver::new(machine, store.clone(), options.prefix.clone(), publisher)
            .with_first_list(feed.first_list())
            .following(identities);
        if let Some((held, value)) = cache
            .as_ref()
            .and_then(|cache| own_lease(cache, options, &usable))
        {
            driver = driver.resuming(held, &value);
        }
        let (own_news, seen) = mpsc::channel(OWN_NEWS);
        let (status, lease) = watch::channel(None);
        tokio::spawn(driver.run(seen, status));

        let position = cache.as_ref().map(Cache::position);
        let (_, events) = follow_since(store.clone(), options.prefix.leases(&pools), position);
        let (facts, facts_seen) = watch::channel(None);
        let reports = reconciler::start(
            facts_seen.clone(),
            options.run_dir().join(flannel_netlink::sysctl::NOTES),
        );
        let filter = filter::start(options.into(), facts_seen.clone());
        let encap = encap::start(options.encap_filter, facts_seen.clone());
        tunnel_ports::start(facts_seen.clone());
        services.start(store.clone(), facts_seen.clone());
        let udp = udp::start(
            &usable.backend,
            facts_seen,
            options,
            udp_counted,
            node_report.clone(),
        );
        let protected = host::protected(options, &underlay);
        let host = underlay::follow(options, usable.families(), underlay.clone());
        Self {
            options,
            health,
            config: ConfigWatch::start(store.clone(), options.prefix.config()),
            store,
            usable,
            backend,
            underlay,
            identity,
            identity_news,
            host,
            host_problem: None,
            other: Said::default(),
            protected,
            lease,
            own_news,
            events,
            feed,
            known: None,
            rejects: RejectLog::default(),
            facts,
            reports,
            filter,
            encap,
            udp,
            lost: None,
            has_cache: cache.is_some(),
            offline,
            cache: CacheWriter::new(options.state_dir.clone()),
            announced: false,
            said: Said::default(),
            state: ("waiting", String::new()),
            node_report,
        }
    }

    async fn run(mut self, mut reload: Signal) -> anyhow::Result<()> {
        let mut burst = Vec::new();
        loop {
            let settled = tokio::time::sleep(self.until_settled());
            tokio::select! {
                changed = self.lease.changed() => {
                    changed.context("the lease task ended")?;
                    self.tell_lease(&Touched::Everything);
                    self.publish_facts();
                }
                count = self.events.recv_many(&mut burst, BURST) => {
                    anyhow::ensure!(count > 0, "the watch task ended");
                    self.take_events(burst.drain(..));
                }
                () = settled => {
                    if self.feed.settle(clock::since_boot()) {
                        self.take_touched();
                    }
                }
                Some(event) = self.config.events.recv() => {
                    if let Some(stored) = self.config.feed.take(event) {
                        self.take_config(stored);
                    }
                }
                Some(()) = reload.recv() => self.reload().await,
                () = self.cache.due() => {
                    let cache = self.cache();
                    self.cache.write(cache).await;
                }
                changed = self.host.changed() => {
                    changed.context("the interface is not followed any more")?;
                    self.follow_host();
                }
                changed = self.reports.changed() => changed.context("the reconciler ended")?,
                changed = self.filter.changed() => changed.context("the filter task ended")?,
                changed = self.encap.changed() => changed.context("the filter of encapsulated packets ended")?,
                changed = self.udp.changed() => changed.context("the udp data path ended")?,
            }
            self.tell();
            self.tell_status();
        }
    }

    fn until_settled(&self) -> Duration {
        let due = self
            .feed
            .wake_at()
            .map(|at| at.saturating_sub(clock::since_boot()));
        due.map_or(LONGEST_SLEEP, |due| {
            due.clamp(Duration::from_millis(1), LONGEST_SLEEP)
        })
    }

    /// Compares what the store says of our own lease with what we know of it.
    fn tell_lease(&mut self, touched: &Touched) {
        let held = self.lease.borrow().as_ref().and_then(|status| status.held);
        if let Some(held) = held
            && let Some(news) = self
                .feed
                .own_news(&held, &self.identity, &self.usable.pools, touched)
        {
            self.send_lease(news);
        }
    }

    fn send_lease(&self, news: LeaseEvent) {
        // A full queue means that the driver has news enough; what it does about them makes this be told again.
        let _ = self.own_news.try_send(news);
    }

    /// Takes what stands at the config's key.
    fn take_config(&mut self, stored: Stored) {
        let text = match &stored {
            Stored::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            Stored::Missing => None,
        };
        let changed = self.config.compare(&self.usable, stored, self.options.ipv6_only);
        if let Some(text) = text.filter(|_| self.config.note().is_empty()) {
            self.usable.text = text;
        }
        if let Some(backend) = changed {
            self.usable.backend = backend;
            self.backend.change(backend);
            self.publish_facts();
        }
    }

    /// Reads the config and the credentials anew, and has every part of the kernel looked at.
    async fn reload(&mut self) {
        notify_reloading();
        tracing::info!(
            "SIGHUP: the network config and the credentials are read anew, the kernel is compared"
        );
        if let Err(error) = self.backend.read_again(self.options) {
            tracing::warn!("{error:#}; the preshared key stays as it is");
        }
        match self.store.get(&self.options.prefix.config()).await {
            Ok((found, _)) => self.take_config(found.map_or(Stored::Missing, |kv| Stored::Text(kv.value))),
            Err(error) => tracing::warn!("{}; the network config stays as it is", chain(&error)),
        }
        self.publish_facts();
        self.facts.send_modify(|facts| {
            if let Some(facts) = facts {
                // No steps lead to them: everything is looked at.
                let facts = Arc::make_mut(facts);
                facts.steps = facts.steps.made_anew();
            }
        });
        notify_ready("reloaded");
    }
}

/// The addresses of both families in one text.
fn listed<A: ToString, B: ToString>(families: &Families<A, B>) -> String {
    let (ipv4, ipv6) = (
        families.ipv4().map(A::to_string),
        families.ipv6().map(B::to_string),
    );
    [ipv4, ipv6].into_iter().flatten().collect::<Vec<_>>().join(",")
}
