//! A node without a kernel: the daemon's lease driver and its watches, on a connection of its own.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_daemon::clock::random_bits;
use flannel_daemon::lease_driver::{LeaseDriver, LeaseStatus};
use flannel_daemon::publish::{Published, Publisher, Vtep};
use flannel_lab::etcd;
use flannel_lease::{Identity, LeaseMachine, Settings};
use flannel_model::{EtcdPrefix, Mac, NetworkConfig, NodeId};
use flannel_store::{EtcdOptions, EtcdStore, Event, Store, follow};
use tokio::sync::{mpsc, watch};

use flannel_lab::Asked;

/// The key that probes write: a lease that no node holds.
const PROBE: &str = "10.255.255.0-24";

/// The nodes, and what they report.
pub struct Nodes {
    statuses: Vec<watch::Receiver<Option<LeaseStatus>>>,
    seen: Vec<watch::Receiver<usize>>,
    probes: Rc<Probes>,
    store: EtcdStore,
    start: Instant,
}

/// When a probe was sent, and how long each node waited for it.
#[derive(Default)]
struct Probes {
    sent: Cell<Option<Instant>>,
    waits: RefCell<Vec<Duration>>,
}

/// What a single start took.
pub struct Start {
    /// Until the subnet is held and the list of peers is complete.
    pub time: Duration,
    /// Messages to etcd.
    pub calls: u64,
}

fn prefix() -> EtcdPrefix {
    EtcdPrefix::new("/coreos.com/network")
}

fn store() -> Result<EtcdStore> {
    let options = EtcdOptions {
        endpoints: vec![etcd::ENDPOINT.to_owned()],
        insecure: true,
        ..EtcdOptions::default()
    };
    Ok(EtcdStore::connect(options)?)
}

/// One node begins; it ends with the receivers.
async fn run(
    index: usize,
    store: EtcdStore,
    status: watch::Sender<Option<LeaseStatus>>,
    seen: watch::Sender<usize>,
    probes: Rc<Probes>,
) -> Result<()> {
    let prefix = prefix();
    let (config, _) = store.get(&prefix.config()).await?;
    let config = NetworkConfig::parse(&config.context("no network config")?.value)?;
    let identity = identity(index)?;
    let settings = Settings {
        ttl: Duration::from_secs(86_400),
        renew_margin: Duration::from_secs(3_600),
        grace: Duration::from_secs(300),
    };
    let machine = LeaseMachine::new(settings, config.pools, identity, None);
    let vtep = || {
        Vtep::new(
            None,
            Mac::local_unicast(random_bits().to_ne_bytes()[..6].try_into().unwrap_or_default()),
        )
    };
    let published = Published::Vxlan {
        vni: 1,
        ipv4: vtep(),
        ipv6: vtep(),
    };
    let publisher = Publisher::new(identity, config.pools, published);
    let driver = LeaseDriver::new(machine, store.clone(), prefix.clone(), publisher);
    // As the daemon does, all at once: its own lease, everybody's leases, the config and the Services.
    let (_news, own) = mpsc::channel(1);
    tokio::task::spawn_local(driver.run(own, status));
    let (_config, mut config) = follow(store.clone(), prefix.config());
    let (_services, mut services) = follow(store.clone(), prefix.services());
    let (_leases, mut leases) = follow(store, prefix.subnets());
    let mut known = HashSet::new();
    let probe = format!("{}{PROBE}", prefix.subnets());
    loop {
        let event = tokio::select! {
            Some(event) = leases.recv() => event,
            Some(_) = config.recv() => continue,
            Some(_) = services.recv() => continue,
            else => return Ok(()),
        };
        match event {
            Event::InitApply(kv) | Event::Apply(kv) if kv.key == probe => probes.arrived(),
            Event::InitApply(kv) => drop(known.insert(fingerprint(&kv.key))),
            Event::Apply(kv) => {
                known.insert(fingerprint(&kv.key));
                seen.send_replace(known.len());
            }
            Event::InitDone { .. } => drop(seen.send_replace(known.len())),
            Event::Delete { key, .. } => drop(known.remove(&fingerprint(&key))),
            Event::Init | Event::Lost { .. } | Event::Resumed { .. } => {}
        }
    }
}

/// Thousands of nodes that keep thousands of keys would need the memory of thousands of machines; a number for each will do.
fn fingerprint(key: &str) -> u32 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as u32
}

fn identity(index: usize) -> Result<Identity> {
    let low = u32::try_from(index).context("too many nodes")?;
    Ok(Identity {
        // 172.16.0.1 and so on: outside the network of pods.
        public_ip: std::net::Ipv4Addr::from(0xac10_0001 + low),
        public_ipv6: None,
        node: Some(NodeId::new(
            u128::from(random_bits()) << 64 | u128::from(random_bits()),
        )),
    })
}

impl Probes {
    fn arrived(&self) {
        if let Some(sent) = self.sent.get() {
            self.waits.borrow_mut().push(sent.elapsed());
        }
    }
}

impl Nodes {
    /// Starts so many at once. Must be called within a `LocalSet`.
    pub fn start(number: usize) -> Result<Self> {
        let probes = Rc::new(Probes::default());
        let mut nodes = Self {
            statuses: Vec::new(),
            seen: Vec::new(),
            probes: probes.clone(),
            store: store()?,
            start: Instant::now(),
        };
        for index in 0..number {
            let (status, statuses) = watch::channel(None);
            let (seen, seens) = watch::channel(0);
            nodes.statuses.push(statuses);
            nodes.seen.push(seens);
            let probes = probes.clone();
            tokio::task::spawn_local(begin(index, status, seen, probes));
        }
        Ok(nodes)
    }

    /// Waits until all hold a subnet; how long each took.
    pub async fn all_hold(&mut self, within: Duration) -> Result<Vec<Duration>> {
        let start = self.start;
        let waits = self.statuses.iter_mut().map(|status| async move {
            let holds =
                |status: &Option<LeaseStatus>| status.as_ref().is_some_and(|status| status.held.is_some());
            status.wait_for(holds).await.context("a node ended")?;
            anyhow::Ok(start.elapsed())
        });
        tokio::time::timeout(within, futures::future::try_join_all(waits))
            .await
            .context("not all nodes got a subnet")?
    }

    /// How many leases etcd has.
    pub async fn leases(&self) -> Result<usize> {
        Ok(self.store.list(&prefix().subnets()).await?.kvs.len())
    }

    /// Waits until each has seen the leases of all.
    pub async fn all_see(&mut self, number: usize, within: Duration) -> Result<()> {
        let waits = self.seen.iter_mut().map(|seen| async move {
            seen.wait_for(|count| *count >= number)
                .await
                .context("a node ended")
                .map(drop)
        });
        tokio::time::timeout(within, futures::future::try_join_all(waits))
            .await
            .context("not all nodes saw all leases")??;
        Ok(())
    }

    /// Writes a lease so many times; the time from each write to its arrival at every node.
    pub async fn probe(&self, times: usize, within: Duration) -> Result<Vec<Duration>> {
        let key = format!("{}{PROBE}", prefix().subnets());
        let mut all = Vec::new();
        for n in 0..=times {
            let value = format!(r#"{{"PublicIP":"192.168.1.{n}","PublicIPv6":null,"BackendType":"vxlan"}}"#);
            self.probes.waits.borrow_mut().clear();
            self.probes.sent.set(Some(Instant::now()));
            self.store.put(&key, &value).await?;
            let arrived = tokio::time::timeout(within, self.arrived()).await;
            let count = self.probes.waits.borrow().len();
            ensure!(
                arrived.is_ok(),
                "{count} of {} nodes saw a write",
                self.statuses.len()
            );
            // The first finds connections that have slept.
            if n > 0 {
                all.append(&mut self.probes.waits.borrow_mut());
            }
        }
        self.store.delete(&key).await?;
        Ok(all)
    }

    async fn arrived(&self) {
        while self.probes.waits.borrow().len() < self.statuses.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn begin(
    index: usize,
    status: watch::Sender<Option<LeaseStatus>>,
    seen: watch::Sender<usize>,
    probes: Rc<Probes>,
) {
    let ran = match store() {
        Ok(store) => run(index, store, status, seen, probes).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ran {
        println!("node {index}: {error:#}");
    }
}

/// One more node beside those that are there.
pub async fn one_start() -> Result<Start> {
    let before = Asked::read()?;
    let start = Instant::now();
    let (status, mut held) = watch::channel(None);
    let (seen, mut seens) = watch::channel(0);
    let node = tokio::task::spawn_local(begin(usize::from(u16::MAX), status, seen, Rc::default()));
    let holds = |status: &Option<LeaseStatus>| status.as_ref().is_some_and(|status| status.held.is_some());
    held.wait_for(holds).await.context("the node ended")?;
    seens
        .wait_for(|count| *count > 0)
        .await
        .context("the node ended")?;
    let time = start.elapsed();
    let calls = Asked::read()?.since(&before).all_messages();
    let key = held.borrow().as_ref().and_then(|status| Some(status.held?.key));
    node.abort();
    drop((held, seens));
    let key = key.context("no lease")?;
    store()?.delete(&prefix().lease(&key)).await?;
    Ok(Start { time, calls })
}
