//! A watch over a node's kernel: that nobody writes into it, and what that costs who does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::flanneld::Flanneld;
use crate::node::Node;
use crate::process::Process;

/// CPU time is counted in these (USER_HZ, the same on every architecture that matters).
const TICK: Duration = Duration::from_millis(10);

/// The monitors in their order.
const IP: usize = 0;
const BRIDGE: usize = 1;
const NFT: usize = 2;

/// Notes every change of links, addresses, routes, permanent neighbours, FDB entries and nftables rules of a node, and the
/// CPU time of its daemon.
#[derive(Debug)]
pub struct Stillness {
    monitors: Vec<Process>,
    pid: u32,
    used: Duration,
    began: Instant,
}

impl Stillness {
    /// Begins to watch.
    pub fn watch(node: &Node, daemon: &Flanneld) -> Result<Self> {
        let commands: [&[&str]; 3] = [
            &["ip", "-o", "monitor", "link", "address", "route", "neigh"],
            &["bridge", "monitor", "fdb"],
            &["nft", "monitor"],
        ];
        let monitors: Vec<Process> = commands
            .into_iter()
            .map(|argv| {
                node.spawn(
                    &format!("{}-monitor-{}", node.name(), argv[0]),
                    argv,
                    &Environment::default(),
                )
            })
            .collect::<Result<_>>()?;
        // Each must have seen something before its silence means anything.
        eventually(limit(20), "the monitors to see", || {
            node.shell(
                "ip link add name probe0 type bridge; ip link del probe0; nft add table inet probe; nft delete table inet probe",
            )?;
            ensure!(monitors[IP].log_text()?.contains("probe0"), "ip monitor is deaf");
            ensure!(monitors[NFT].log_text()?.contains("probe"), "nft monitor is deaf");
            Ok(())
        })?;
        Ok(Self {
            monitors,
            pid: daemon.pid(),
            used: cpu_time(daemon.pid())?,
            began: Instant::now(),
        })
    }

    /// Fails when anything was written, or when the daemon used more than a hundredth of a core.
    pub fn end(self) -> Result<()> {
        self.end_below(1)
    }

    /// Fails when anything was written, or when the daemon used more hundredths of a core than that.
    pub fn end_below(mut self, hundredths: u32) -> Result<()> {
        let (elapsed, used) = (
            self.began.elapsed(),
            cpu_time(self.pid)?.saturating_sub(self.used),
        );
        let mut written = Vec::new();
        for (which, monitor) in self.monitors.iter_mut().enumerate() {
            monitor.check_running()?;
            let text = monitor.log_text()?;
            written.extend(
                text.lines()
                    .filter(|line| is_write(which, line))
                    .map(str::to_owned),
            );
        }
        ensure!(written.is_empty(), "the kernel was written to: {written:#?}");
        // The counter moves by whole ticks.
        let allowed = elapsed * hundredths / 100 + TICK * 2;
        ensure!(used <= allowed, "{used:?} of CPU time in {elapsed:?}");
        Ok(())
    }
}

/// What each monitor tells and somebody wrote: the kernel itself learns neighbours and bridge ports, forgets those of multicast groups, gives new links their
/// link-local addresses, tells of a pod's bridge port now and then, and counts the generations of nftables.
fn is_write(monitor: usize, line: &str) -> bool {
    let ours = line.contains("flannel.");
    let learned = line.contains("lladdr") || line.contains("FAILED") || line.contains("INCOMPLETE");
    let by_itself =
        learned && !ours || line.contains("NOARP") || line.contains("fe80::") || line.contains("veth");
    let told = match monitor {
        IP => !by_itself,
        BRIDGE => ours,
        _ => !line.starts_with("# new generation"),
    };
    told && !line.trim().is_empty() && !line.contains("probe")
}

fn cpu_time(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // utime and stime are the fields 14 and 15 (proc(5)); the name before them is in brackets.
    let after_name = text.rsplit_once(')').context("no name in stat")?.1;
    let ticks: Vec<u32> = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(TICK * ticks.iter().sum::<u32>())
}
