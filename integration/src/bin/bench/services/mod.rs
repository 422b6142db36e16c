//! Services through nftables, from etcd to the kernel, beside `nft -f` with kube-proxy's layout of the same Services.
//!
//! Ours is measured from outside: from the start of the daemon, or from before a key is written, to the transaction that carries it
//! out. That includes etcd and the watch; of the rival only `nft` itself is measured.

mod carry;
mod city;
mod kernel;
mod look;
mod shape;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, eventually, limit};

use crate::size;
use crate::stats::Series;
use crate::table;
use city::ENDPOINTS;
use kernel::Transactions;
use shape::Rival;

const SIZES: [usize; 3] = [1_000, 5_000, 10_000];
/// Changes of each kind. The rival takes seconds for one where there are many Services.
const ROUNDS: usize = 20;
/// The kernel is at rest after so long without a transaction.
const QUIET: Duration = Duration::from_secs(2);
/// The daemon is left alone for so long: it looks after its own work every ten seconds.
const REST: Duration = Duration::from_secs(30);
/// Longest that a first pass may take, in seconds.
const PATIENCE: u64 = 180;
const ARGUMENTS: &[&str] = &["--service-mode=nftables"];
/// What the project wants to be.
const CHANGE_MS: f64 = 5.0;
const MEMORY_MIB: f64 = 150.0;

/// Runs the suite.
pub fn run() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    carry::measure(&lab)?;
    let sizes = size::services(&SIZES)?;
    sizes.into_iter().try_for_each(|services| measure(&lab, services))
}

fn measure(lab: &Lab, services: usize) -> Result<()> {
    let node = lab.node(1)?;
    fill(lab, services)?;
    let transactions = Transactions::watch(node)?;
    let rival = Rival::new(&format!("rival{services}"))?;

    table::heading(&format!("{services} Services × {ENDPOINTS} endpoints"));
    let (daemon, ours) = first_load(node, &transactions)?;
    let theirs = rival.load(services)?;
    table::compare(
        "first load",
        &Series::new(vec![ours]),
        &Series::new(vec![theirs]),
        None,
    );
    let mut own = Vec::new();
    let changes = alternate(|round| {
        let index = round * 7 % services;
        let before = cpu(&daemon)?;
        let ours = one(lab, &transactions, &[city::slice(index, round + 1)])?;
        own.push(cpu(&daemon)? - before);
        Ok((ours, rival.change(index, 0, round + 1)?))
    })?;
    table::compare("one endpoint changed", &changes[0], &changes[1], None);
    let additions = alternate(|round| {
        let index = services + round;
        let ours = one(lab, &transactions, &city::records(index))?;
        Ok((ours, rival.add(index)?))
    })?;
    table::compare("one Service added", &additions[0], &additions[1], None);
    // everything that it does meanwhile is in it; in one round of many it compares all with the kernel
    let own = Series::new(own).median().unwrap_or_default();
    table::most(
        "processor time of the daemon for one change, median",
        own.as_secs_f64() * 1000.0,
        "ms",
        Some(CHANGE_MS),
    );
    rest(&daemon, &transactions)?;
    table::most(
        "memory of the daemon, resident",
        memory(&daemon)?,
        "MiB",
        Some(MEMORY_MIB),
    );
    let looked = look::look(node, services)?;
    table::most(
        "flannelctl services, from start to end",
        looked.took.as_secs_f64() * 1000.0,
        "ms",
        None,
    );
    table::most("its memory at the highest", looked.peak, "MiB", None);
    restart(node, daemon, &transactions)?;
    node.run(&["nft", "delete", "table", "ip", "flannel-services-nat"])?;
    rival.end()
}

/// Everything is in etcd before the daemon starts.
fn fill(lab: &Lab, services: usize) -> Result<()> {
    let mut records = vec![city::config()];
    records.extend((0..services).flat_map(city::records));
    let changes: Vec<(String, Option<String>)> = records
        .into_iter()
        .map(|(key, value)| (key, Some(value)))
        .collect();
    changes.chunks(500).try_for_each(|part| lab.etcd().apply(part))
}

/// From the start of the process to the last of the transactions that follow.
fn first_load(node: &Node, transactions: &Transactions) -> Result<(Flanneld, Duration)> {
    transactions.forget();
    let start = Instant::now();
    let daemon = node.start_flanneld(ARGUMENTS)?;
    eventually(limit(PATIENCE), "the first pass", || {
        let log = daemon.log()?;
        let told = log.contains("virtual servers are programmed");
        told.then_some(()).with_context(|| log)
    })?;
    let (end, _) = transactions.last(limit(PATIENCE), QUIET)?;
    Ok((daemon, end - start))
}

/// Both contenders in turn.
fn alternate(mut measure: impl FnMut(usize) -> Result<(Duration, Duration)>) -> Result<[Series; 2]> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (own, rival) = measure(round)?;
        ours.push(own);
        theirs.push(rival);
    }
    Ok([Series::new(ours), Series::new(theirs)])
}

/// From before the first of these keys is written to the transaction after the last.
fn one(lab: &Lab, transactions: &Transactions, records: &[(String, String)]) -> Result<Duration> {
    // the pass before this one is over, and the time between two passes as well
    std::thread::sleep(Duration::from_millis(60));
    transactions.forget();
    let changes: Vec<(String, Option<String>)> = records
        .iter()
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect();
    let start = Instant::now();
    lab.etcd().apply(&changes)?;
    let end = transactions.next(limit(10))?;
    // the end of the pass falls on this change as well
    std::thread::sleep(Duration::from_millis(20));
    Ok(end - start)
}

/// Nothing changes: nothing is written, and little is done.
fn rest(daemon: &Flanneld, transactions: &Transactions) -> Result<()> {
    std::thread::sleep(QUIET);
    transactions.forget();
    let before = cpu(daemon)?;
    std::thread::sleep(REST);
    let used = cpu(daemon)? - before;
    let written = transactions.forget();
    ensure!(written == 0, "{written} transactions while nothing changed");
    println!(
        "no-op: {written} transactions and {:.0} ms of processor time in {} s",
        used.as_secs_f64() * 1000.0,
        REST.as_secs()
    );
    Ok(())
}

/// A daemon that is started again adopts what stands.
fn restart(node: &Node, daemon: Flanneld, transactions: &Transactions) -> Result<()> {
    daemon.kill()?;
    transactions.forget();
    let start = Instant::now();
    let mut again = node.start_flanneld(ARGUMENTS)?;
    again.wait_ready()?;
    let (end, written) = transactions.last(limit(PATIENCE), QUIET + QUIET)?;
    println!(
        "restart: {written} transactions, the last after {:.0} ms; {:.0} MiB resident",
        (end - start).as_secs_f64() * 1000.0,
        memory(&again)?
    );
    again.terminate().map(drop)
}

/// Processor time of all threads so far.
fn cpu(daemon: &Flanneld) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        // nanoseconds on a processor are the first number (Documentation/scheduler/sched-stats.rst)
        let text = std::fs::read_to_string(task?.path().join("schedstat"));
        let text = text.unwrap_or_default(); // a thread that has ended
        let time = text.split(' ').next().and_then(|n| n.parse().ok());
        sum += Duration::from_nanos(time.unwrap_or_default());
    }
    Ok(sum)
}

/// MiB.
fn memory(daemon: &Flanneld) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: f64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
