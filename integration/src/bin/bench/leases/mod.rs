//! Leases at scale: thousands of nodes on one real etcd, and one flanneld with thousands of peers.
//!
//! A simulated node is the daemon's own lease driver and store client on a connection of its own, without a kernel. All of them run on
//! one thread of this process, so what they wait for each other is in the figures. etcd's data is in memory: a sync costs nothing.
//! What stands beside as flannel's is either measured (a start with flannel's calls) or reckoned from them, and says which.

mod calls;
mod daemon;
mod flannel;
mod node;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Lab, LabOptions, limit};

use crate::stats::{Series, milliseconds};
use flannel_lab::Asked;
use node::Nodes;

/// Nodes, unless [`NODES_VARIABLE`] says another number.
const NODES: usize = 5_000;
const NODES_VARIABLE: &str = "BENCH_NODES";
/// Peers of the one flanneld, unless [`PEERS_VARIABLE`] says another number.
const PEERS: usize = 10_000;
const PEERS_VARIABLE: &str = "BENCH_PEERS";
/// How long the nodes are watched in rest, in seconds, unless [`REST_VARIABLE`] says another number: each renews once in that time.
/// In less, renewals of nodes that started together fall into it or do not.
const REST: usize = 300;
const REST_VARIABLE: &str = "BENCH_REST";
/// Writes that every node has to see.
const PROBES: usize = 20;
/// What the project wants the daemon to stay below, in MiB.
const MEMORY_GOAL: f64 = 60.0;
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

/// Runs the suite.
pub fn run() -> Result<()> {
    raise_file_limit()?;
    let (nodes, peers) = (number(NODES_VARIABLE, NODES)?, number(PEERS_VARIABLE, PEERS)?);
    let lab = Lab::new(&LabOptions::nodes(1).config(CONFIG))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let rest = Duration::from_secs(u64::try_from(number(REST_VARIABLE, REST)?)?);
    runtime.block_on(local.run_until(many_nodes(nodes, rest)))?;
    drop(local);
    drop(runtime);
    lab.etcd().delete_prefix(SUBNETS_PREFIX)?;
    daemon::with_peers(&lab, peers, MEMORY_GOAL)
}

async fn many_nodes(number: usize, rest: Duration) -> Result<()> {
    heading(&format!("{number} nodes start at once"));
    let before = Asked::read()?;
    let start = Instant::now();
    let mut nodes = Nodes::start(number)?;
    let times = nodes.all_hold(limit(1_500)).await?;
    let all = start.elapsed();
    let subnets = nodes.leases().await?;
    ensure!(subnets == number, "{subnets} leases of {number} nodes");
    let held = Series::new(times);
    row("all have a subnet of their own, s", &seconds(all), "", "measured");
    let (p50, p99) = (held.percentile(50), held.percentile(99));
    row(
        "a node has its subnet after, s, p50 / p99",
        &format!("{} / {}", seconds_of(p50), seconds_of(p99)),
        "",
        "measured",
    );
    nodes.all_see(number, limit(1_500)).await?;
    row(
        "every node has seen every lease, s",
        &seconds(start.elapsed()),
        "",
        "measured",
    );
    let started = Asked::read()?.since(&before);
    let n = number as f64;
    calls::print(
        &started,
        "messages a node until then",
        n,
        flannel::calls_to_grow(n),
    );

    heading("one more node");
    let one = flannel::start(number).await?;
    let ours = node::one_start().await?;
    row(
        "time to its subnet and its peers, ms",
        &milliseconds(Some(ours.time)),
        &milliseconds(Some(one.time)),
        "measured",
    );
    row(
        "calls",
        &ours.calls.to_string(),
        &one.calls.to_string(),
        "measured",
    );

    heading(&format!("{number} nodes in rest"));
    let before = Asked::read()?;
    let start = Instant::now();
    tokio::time::sleep(rest).await;
    let hours = start.elapsed().as_secs_f64() / 3600.0;
    let asked = Asked::read()?.since(&before);
    calls::print(
        &asked,
        "messages a node and hour",
        n * hours,
        flannel::calls_in_rest(n),
    );

    heading("a lease changes, and every node sees it");
    let probes = nodes
        .probe(PROBES, limit(60))
        .await
        .context("the writes that every node has to see")?;
    let events = Series::new(probes);
    let (p50, p99) = (
        milliseconds(events.percentile(50)),
        milliseconds(events.percentile(99)),
    );
    row(
        &format!("put to event, ms, p50 / p99 of {}", events.count()),
        &format!("{p50} / {p99}"),
        "",
        "measured",
    );
    row(
        "calls that follow, of all nodes",
        "0",
        &number.to_string(),
        "derived: one LeaseTimeToLive a watcher",
    );
    Ok(())
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

fn seconds_of(duration: Option<Duration>) -> String {
    duration.map_or("–".to_owned(), seconds)
}

fn number(variable: &str, usual: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} is {text:?}; expected a number")),
        Err(_) => Ok(usual),
    }
}

/// Every node has a connection of its own, which is a file here and one in etcd.
fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}
