//! A node without a kernel: the daemon's lease driver and its watches, on a connection of its own.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_daemon::clock::random_bits;
use flannel_daemon::lease_driver::{LeaseDriver, LeaseStatus, record};
use flannel_daemon::publish::{Published, Publisher, Vtep};
use flannel_lab::{Asked, etcd};
use flannel_lease::{Identity, LeaseMachine, Record, Settings, Standing};
use flannel_model::{EtcdPrefix, LeaseKey, LeaseValue, Mac, NetworkConfig, NodeId};
use flannel_store::{EtcdOptions, EtcdStore, Event, Store, follow};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::flannel;

/// The key that probes write: a lease that no node holds.
const PROBE: &str = "10.255.255.0-24";
/// Longest that one node may take for its subnet.
const LONGEST: Duration = Duration::from_secs(120);

/// When a probe was sent, and how long each node waited for it.
#[derive(Debug, Default)]
pub struct Probes(Mutex<(Option<Instant>, Vec<Duration>)>);

impl Probes {
    fn send(&self) {
        *self.lock() = (Some(Instant::now()), Vec::new());
    }

    fn arrived(&self) {
        let mut probe = self.lock();
        if let Some(sent) = probe.0 {
            probe.1.push(sent.elapsed());
        }
    }

    fn count(&self) -> usize {
        self.lock().1.len()
    }

    fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut self.lock().1)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Instant>, Vec<Duration>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn prefix() -> EtcdPrefix {
    EtcdPrefix::new("/coreos.com/network")
}

pub fn store() -> Result<EtcdStore> {
    let options = EtcdOptions {
        endpoints: vec![etcd::ENDPOINT.to_owned()],
        insecure: true,
        ..EtcdOptions::default()
    };
    Ok(EtcdStore::connect(options)?)
}

/// The daemon's driver for a node of this number, as the daemon makes it.
async fn driver(index: usize, store: &EtcdStore) -> Result<LeaseDriver<EtcdStore>> {
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
    Ok(LeaseDriver::new(machine, store.clone(), prefix, publisher))
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

/// Waits until the lease is held and was renewed once, which is the end of a start.
async fn holds(status: &mut watch::Receiver<Option<LeaseStatus>>) -> Result<LeaseKey> {
    let confirmed = |status: &Option<LeaseStatus>| {
        status
            .as_ref()
            .is_some_and(|status| status.standing == Standing::Confirmed)
    };
    let held = tokio::time::timeout(LONGEST, status.wait_for(confirmed)).await;
    let held = held.context("no subnet in time")?.context("the node ended")?;
    let held = held.as_ref().and_then(|status| status.held);
    Ok(held.context("no subnet")?.key)
}

/// A node that takes its subnet and is gone again; its lease stays. How long that took.
pub async fn acquire(index: usize) -> Result<Duration> {
    let start = Instant::now();
    let store = store()?;
    let driver = driver(index, &store).await?;
    let (status, mut held) = watch::channel(None);
    let (_news, own) = mpsc::channel(1);
    let task = tokio::spawn(driver.run(own, status));
    let holds = holds(&mut held).await;
    task.abort();
    holds
        .with_context(|| format!("node {index}"))
        .map(|_| start.elapsed())
}

/// A node that does all that a daemon does with etcd, until it is dropped.
pub struct FullNode {
    held: watch::Receiver<Option<LeaseStatus>>,
    seen: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
    _news: mpsc::Sender<flannel_lease::Event>,
}

impl FullNode {
    /// Starts one; it tells `probes` of the key of probes.
    pub async fn start(index: usize, probes: Arc<Probes>) -> Result<Self> {
        let store = store()?;
        let (first, list) = oneshot::channel();
        let driver = driver(index, &store).await?.with_first_list(list);
        let (status, held) = watch::channel(None);
        let (seen_sender, seen) = watch::channel(0);
        let (news, own) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run(own, status));
        for range in [prefix().config(), prefix().services()] {
            let (_, mut events) = follow(store.clone(), range);
            tasks.spawn(async move { while events.recv().await.is_some() {} });
        }
        let (_, leases) = follow(store, prefix().subnets());
        tasks.spawn(see_leases(leases, first, seen_sender, probes));
        Ok(Self {
            held,
            seen,
            _tasks: tasks,
            _news: news,
        })
    }

    /// Waits until it holds a subnet.
    pub async fn holds(&mut self) -> Result<LeaseKey> {
        holds(&mut self.held).await
    }

    /// Waits until it has seen so many leases.
    pub async fn sees(&mut self, number: usize) -> Result<()> {
        let seen = self.seen.wait_for(|count| *count >= number);
        let seen = tokio::time::timeout(LONGEST, seen).await;
        seen.context("it did not see all leases in time")?
            .context("the node ended")?;
        Ok(())
    }
}

/// Counts the leases, and hands the first list to the driver as the daemon does.
async fn see_leases(
    mut leases: mpsc::Receiver<Event>,
    first: oneshot::Sender<Vec<Record>>,
    seen: watch::Sender<usize>,
    probes: Arc<Probes>,
) {
    let range = prefix().subnets();
    let probe = format!("{range}{PROBE}");
    let mut first = Some(first);
    let mut listing = Vec::new();
    let mut known = HashSet::new();
    while let Some(event) = leases.recv().await {
        match event {
            Event::InitApply(kv) | Event::Apply(kv) if kv.key == probe => probes.arrived(),
            Event::InitApply(kv) => {
                known.insert(fingerprint(&kv.key));
                listing.extend(first.is_some().then(|| record(&range, kv)).flatten());
            }
            Event::Apply(kv) => {
                known.insert(fingerprint(&kv.key));
                seen.send_replace(known.len());
            }
            Event::InitDone { .. } => {
                if let Some(first) = first.take() {
                    let _ = first.send(std::mem::take(&mut listing));
                }
                seen.send_replace(known.len());
            }
            Event::Delete { key, .. } => drop(known.remove(&fingerprint(&key))),
            Event::Init | Event::Lost { .. } | Event::Resumed { .. } => {}
        }
    }
}

/// Many nodes that keep thousands of keys would need the memory of many machines; a number for each will do.
fn fingerprint(key: &str) -> u32 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as u32
}

/// Leases in etcd: every one must be of another node.
pub async fn distinct_leases(store: &EtcdStore) -> Result<usize> {
    let listing = store.list(&prefix().subnets()).await?;
    let owners: HashSet<_> = listing
        .kvs
        .iter()
        .map(|kv| LeaseValue::parse(&kv.value).map(|value| value.public_ip))
        .collect::<Result<_, _>>()?;
    ensure!(
        owners.len() == listing.kvs.len(),
        "{} owners of {} leases",
        owners.len(),
        listing.kvs.len()
    );
    Ok(owners.len())
}

/// Writes a lease so many times; the time from each write to its arrival at each of `watchers` nodes.
pub async fn probe(
    store: &EtcdStore,
    probes: &Probes,
    watchers: usize,
    times: usize,
) -> Result<Vec<Duration>> {
    let key = format!("{}{PROBE}", prefix().subnets());
    let mut all = Vec::new();
    for n in 0..=times {
        let value = format!(r#"{{"PublicIP":"192.168.1.{n}","PublicIPv6":null,"BackendType":"vxlan"}}"#);
        probes.send();
        store.put(&key, &value).await?;
        let deadline = Instant::now() + LONGEST;
        while probes.count() < watchers {
            ensure!(
                Instant::now() < deadline,
                "{} of {watchers} nodes saw a write",
                probes.count()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The first finds connections that have slept.
        if n > 0 {
            all.append(&mut probes.take());
        }
    }
    store.delete(&key).await?;
    Ok(all)
}

/// One more node beside those that are there, until it has its subnet and its peers.
pub async fn one_start(peers: usize) -> Result<flannel::Start> {
    let before = Asked::read()?;
    let start = Instant::now();
    let mut node = FullNode::start(usize::from(u16::MAX), Arc::default()).await?;
    let key = node.holds().await?;
    node.sees(peers).await?;
    let time = start.elapsed();
    let calls = Asked::read()?.since(&before).all_messages();
    drop(node);
    store()?.delete(&prefix().lease(&key)).await?;
    Ok(flannel::Start { time, calls })
}

/// Messages that so many renewals of an open lease take.
pub async fn renewals(times: u64) -> Result<u64> {
    let store = store()?;
    let key = format!("{}{PROBE}", prefix().subnets());
    let lease = flannel_store::NewLease::any(600);
    let flannel_store::Created::Won { lease, .. } = store.create(&key, "{}", lease, &[]).await? else {
        anyhow::bail!("{key} is there already");
    };
    store.keep_alive(lease).await?;
    let before = Asked::read()?;
    for _ in 0..times {
        store.keep_alive(lease).await?;
    }
    let messages = Asked::read()?.since(&before).all_messages();
    store.delete(&key).await?;
    Ok(messages)
}
