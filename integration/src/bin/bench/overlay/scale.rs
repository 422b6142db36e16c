//! One node with thousands of peers: from nothing to programmed, a pass that finds nothing to do, and the change of one peer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Flanneld, Lab, Node, eventually, limit};
use flannel_netlink::monitor::Change;
use rustix::process::Signal;

use crate::leases::daemon::write_peers;
use crate::stats::Series;
use crate::{kernel_changes, table};

/// Starts from nothing.
const STARTS: usize = 5;
/// Passes that find nothing to do.
const UNCHANGED: usize = 20;
/// Peers that change, one after the other.
const CHANGES: usize = 200;
/// Route, neighbour and FDB entry.
const OBJECTS: usize = 3;
/// One pass a line, and nothing of single peers.
const LOG: (&str, &str) = ("RUST_LOG", "info,flanneld::pass=debug");

/// A pass of the daemon as its log tells it.
#[derive(Debug, Clone, Copy)]
struct Pass {
    writes: usize,
    time: Duration,
}

/// Runs this part.
pub fn run(lab: &Lab, peers: usize) -> Result<()> {
    write_peers(peers)?;
    let node = lab.node(1)?;
    table::heading_ours(&format!("vxlan, {peers} peers, one node"));
    super::floor::run(node, peers)?;
    let mut cold = Vec::new();
    let mut whole = Vec::new();
    let mut processor = Vec::new();
    let mut daemon = None;
    for _ in 0..STARTS {
        if let Some(earlier) = daemon.take() {
            Flanneld::terminate(earlier)?;
            node.run(&["ip", "link", "del", "flannel.1"])?;
        }
        let begin = Instant::now();
        let started = Flanneld::start_with(node, &[], &[LOG])?;
        let pass = eventually(limit(120), "every peer in the kernel", || {
            let all = passes(&started)?;
            let large = all.into_iter().find(|pass| pass.writes >= OBJECTS * peers);
            large.context("not yet")
        })?;
        whole.push(begin.elapsed());
        cold.push(pass.time);
        processor.push(processor_time(started.pid())?);
        daemon = Some(started);
    }
    let daemon = daemon.context("no daemon")?;
    check(node, peers)?;
    table::ours(
        "from nothing to programmed: the pass",
        &Series::new(cold),
        Some(Duration::from_millis(500)),
    );
    table::ours("from the daemon's start to then", &Series::new(whole), None);
    table::ours("its processor time until then", &Series::new(processor), None);
    unchanged(&daemon)?;
    changes(lab, node, peers)
}

/// What the kernel itself has.
fn check(node: &Node, peers: usize) -> Result<()> {
    for (what, command) in [
        ("routes", "ip -4 route show proto 70 | wc -l"),
        (
            "neighbours",
            "ip -4 neigh show dev flannel.1 nud permanent | wc -l",
        ),
        ("FDB entries", "bridge fdb show dev flannel.1 | grep -c dst"),
    ] {
        let count: usize = node.shell(command)?.trim().parse()?;
        ensure!(count == peers, "{count} {what} for {peers} peers");
    }
    Ok(())
}

/// SIGHUP has everything compared.
fn unchanged(daemon: &Flanneld) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..UNCHANGED {
        let before = passes(daemon)?.len();
        daemon.signal(Signal::HUP)?;
        let new = eventually(limit(60), "a pass after SIGHUP", || {
            let all = passes(daemon)?;
            ensure!(all.len() > before, "none yet");
            Ok(all[before..].to_vec())
        })?;
        for pass in new {
            ensure!(
                pass.writes == 0,
                "{} writes although nothing changed",
                pass.writes
            );
            times.push(pass.time);
        }
    }
    table::ours(
        "a pass that finds nothing to write",
        &Series::new(times),
        Some(Duration::from_millis(50)),
    );
    Ok(())
}

/// From before a lease is written to etcd until the kernel tells of the FDB entry that follows from it.
fn changes(lab: &Lab, node: &Node, peers: usize) -> Result<()> {
    let changes = kernel_changes::Changes::watch(node)?;
    let mut times = Vec::new();
    for n in 0..CHANGES {
        // Spread over all of them.
        let peer = 1 + n * (peers / CHANGES).max(1) % peers;
        let (high, low) = (peer / 256, peer % 256);
        let address: std::net::IpAddr = [172, 17, high as u8, low as u8].into();
        let key = format!("/coreos.com/network/subnets/10.{high}.{low}.0-24");
        let value = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"8a:55:6f:00:{high:02x}:{low:02x}"}}}}"#
        );
        changes.forget();
        let begin = Instant::now();
        lab.etcd().put(&key, value)?;
        let end = changes.next(
            limit(20),
            |change| matches!(change, Change::Fdb { entry, deleted: false } if entry.dst == address),
        )?;
        times.push(end.duration_since(begin));
    }
    let series = Series::new(times);
    let high = series.percentile(99).unwrap_or_default();
    table::ours("one peer changes: put to kernel", &series, None);
    table::most("its 99th percentile", high.as_secs_f64() * 1e3, "ms", Some(50.0));
    Ok(())
}

/// The passes that the log tells of so far.
fn passes(daemon: &Flanneld) -> Result<Vec<Pass>> {
    let log = daemon.log()?;
    let lines = log.lines().filter(|line| line.contains("a pass over the kernel"));
    lines
        .map(|line| {
            let number = |name: &str| {
                let (_, rest) = line
                    .split_once(name)
                    .with_context(|| format!("no {name} in {line}"))?;
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse::<u64>().with_context(|| line.to_owned())
            };
            Ok(Pass {
                writes: usize::try_from(number("writes=")?)?,
                time: Duration::from_micros(number("micros=")?),
            })
        })
        .collect()
}

/// User and system time of a process (proc(5): fields 14 and 15, USER_HZ is 100).
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("an odd /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let both = ticks(11).zip(ticks(12)).context("an odd /proc/PID/stat")?;
    Ok(Duration::from_millis(10 * (both.0 + both.1)))
}
