//! Leases at scale: thousands of nodes on one real etcd, and one flanneld with thousands of peers.
//!
//! A simulated node is the daemon's own lease driver and store client on a connection of its own, without a kernel. Every node takes its
//! subnet by real transactions, a few at a time; a sample of them are full watchers from the beginning to the end, because 5,000 watchers
//! of 5,000 writes are 25 million events, which is what 5,000 machines are for. The output says what is of the sample. etcd's data is in
//! memory: a sync costs nothing. What stands beside as flannel's is either measured (a start with flannel's calls) or reckoned from them,
//! and says which.

mod calls;
pub mod daemon;
mod flannel;
mod node;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Asked, Lab, LabOptions};
use futures::{StreamExt, TryStreamExt};

use crate::size::Size;
use crate::stats::{Series, milliseconds};
use node::{FullNode, Probes};

/// Nodes that take a subnet.
const NODES: Size = Size::new("BENCH_NODES", 5_000);
/// Those among them that watch all the time.
const WATCHERS: Size = Size::new("BENCH_WATCHERS", 100);
/// Nodes that start at one time.
const AT_ONCE: Size = Size::new("BENCH_AT_ONCE", 16);
/// Peers of the one flanneld.
const PEERS: Size = Size::new("BENCH_PEERS", 10_000);
/// Seconds in which the watchers are left in peace: long enough for each to ask for a sign of life once.
const REST: Size = Size::new("BENCH_REST", 45);
/// Writes that every watcher has to see.
const PROBES: usize = 20;
/// Renewals whose messages are counted.
const RENEWALS: u64 = 20;
/// Renewals a node and hour: one every 270 to 300 seconds.
const RENEWALS_AN_HOUR: f64 = 3600.0 / 285.0;
/// Signs of life that a watch stream asks for in an hour at the most: one after 40 seconds of silence.
const SIGNS_AN_HOUR: f64 = 3600.0 / 40.0;
/// What the project wants the daemon to stay below, in MiB.
const MEMORY_GOAL: f64 = 60.0;
/// The most of a core that it should take while etcd is away.
const OUTAGE_GOAL: f64 = 0.01;
/// Seconds for which etcd is away: half of them dead, half of them frozen.
const OUTAGE: Size = Size::new("BENCH_OUTAGE", 60);
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

/// Runs the suite.
pub fn run() -> Result<()> {
    raise_file_limit()?;
    let (nodes, peers) = (NODES.get()?, PEERS.get()?);
    let mut lab = Lab::new(&LabOptions::nodes(1).config(CONFIG))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(many_nodes(nodes))?;
    drop(runtime);
    lab.etcd().delete_prefix(SUBNETS_PREFIX)?;
    let daemon = daemon::with_peers(&lab, peers, MEMORY_GOAL)?;
    let outage = Duration::from_secs(u64::try_from(OUTAGE.get()?)?);
    daemon::without_etcd(&mut lab, &daemon, outage, OUTAGE_GOAL)
}

async fn many_nodes(number: usize) -> Result<()> {
    let watchers = WATCHERS.get()?.clamp(1, number);
    let probes = Arc::new(Probes::default());
    let mut full = start(number, watchers, &probes).await?;
    one_more(number).await?;
    rest(&full, number).await?;

    heading(&format!("a lease changes: {watchers} watchers"));
    let waits = node::probe(&node::store()?, &probes, watchers, PROBES).await;
    let events = Series::new(waits.context("the writes that every watcher has to see")?);
    let (p50, p99) = (
        milliseconds(events.percentile(50)),
        milliseconds(events.percentile(99)),
    );
    row(
        &format!("put to event, ms, p50 / p99 of {}", events.count()),
        &format!("{p50} / {p99}"),
        "",
        "",
    );
    row(
        "calls that follow, of all nodes",
        "0",
        &number.to_string(),
        "derived: one LeaseTimeToLive a watcher",
    );
    full.clear();
    Ok(())
}

/// Everybody takes a subnet, beside watchers that see all of them.
async fn start(number: usize, watchers: usize, probes: &Arc<Probes>) -> Result<Vec<FullNode>> {
    let at_once = AT_ONCE.get()?.max(1);
    heading(&format!(
        "{number} nodes, {at_once} starting at a time; {watchers} of them watch to the end"
    ));
    let before = Asked::read()?;
    let start = Instant::now();
    let mut full: Vec<FullNode> = futures::stream::iter(0..watchers)
        .map(|index| async move {
            let mut node = FullNode::start(index, probes.clone()).await?;
            node.holds().await?;
            anyhow::Ok(node)
        })
        .buffer_unordered(at_once)
        .try_collect()
        .await?;
    let times: Vec<Duration> = futures::stream::iter(watchers..number)
        .map(|index| async move { tokio::spawn(node::acquire(index)).await? })
        .buffer_unordered(at_once)
        .try_collect()
        .await?;
    row(
        "all have a subnet of their own, s",
        &seconds(start.elapsed()),
        "",
        "",
    );
    for node in &mut full {
        node.sees(number).await?;
    }
    row(
        "every watcher has seen every lease, s",
        &seconds(start.elapsed()),
        "",
        "",
    );
    let asked = Asked::read()?.since(&before);
    let leases = node::distinct_leases(&node::store()?).await?;
    ensure!(leases == number, "{leases} leases of {number} nodes");
    let (p50, p99) = percentiles(times);
    row(
        "a node has its subnet after, ms, p50 / p99",
        &format!("{p50} / {p99}"),
        "",
        "",
    );
    let n = number as f64;
    calls::print(&asked, "messages a node", n, flannel::calls_to_grow(n));
    Ok(full)
}

async fn one_more(number: usize) -> Result<()> {
    heading(&format!("one more node beside {number}"));
    let flannels = flannel::start(number).await?;
    let ours = node::one_start(number).await?;
    let time = |start: &flannel::Start| milliseconds(Some(start.time));
    row(
        "time to its subnet and its peers, ms",
        &time(&ours),
        &time(&flannels),
        "measured",
    );
    let (ours, flannels) = (ours.calls.to_string(), flannels.calls.to_string());
    row("messages to etcd", &ours, &flannels, "measured");
    Ok(())
}

async fn rest(full: &[FullNode], number: usize) -> Result<()> {
    let period = Duration::from_secs(u64::try_from(REST.get()?)?);
    let watchers = full.len() as f64;
    heading(&format!("{watchers} watchers in rest for {} s", period.as_secs()));
    let before = Asked::read()?;
    tokio::time::sleep(period).await;
    let asked = Asked::read()?.since(&before);
    let streams = asked.calls("Watch") + asked.calls("LeaseKeepAlive");
    ensure!(streams == 0, "streams were opened in rest: {asked:?}");
    let hours = period.as_secs_f64() / 3600.0;
    let flannels = flannel::calls_in_rest(number as f64);
    calls::print(&asked, "messages a watcher", watchers, flannels * hours);
    let renewals = node::renewals(RENEWALS).await? as f64 / RENEWALS as f64;
    row("messages a renewal", &format!("{renewals:.2}"), "2", "derived");
    row(
        "messages a node and hour, reckoned, at most",
        &format!("{:.0}", SIGNS_AN_HOUR + renewals * RENEWALS_AN_HOUR),
        &format!("{flannels:.0}"),
        "derived",
    );
    Ok(())
}

fn percentiles(times: Vec<Duration>) -> (String, String) {
    let series = Series::new(times);
    (
        milliseconds(series.percentile(50)),
        milliseconds(series.percentile(99)),
    )
}

fn heading(title: &str) {
    println!("\n-- {title}");
    println!("{:<46} {:>16} {:>12}  flannel's figure is", "", "ours", "flannel");
}

/// A line of the table; what flannel's figure is, is said only where there is one.
fn row(what: &str, ours: &str, flannel: &str, how: &str) {
    let (flannel, how) = if flannel.is_empty() {
        ("–", "")
    } else {
        (flannel, how)
    };
    println!("{what:<46} {ours:>16} {flannel:>12}  {how}");
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64())
}

/// Every node has a connection of its own, which is a file here and one in etcd.
fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}
