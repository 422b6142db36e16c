//! A watch over a node's kernel: that nobody writes into it, and that who does not is at rest.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::flanneld::Flanneld;
use crate::node::Node;
use crate::process::Process;

/// A loop without a pause takes a whole core, or its share of a busy machine; what a daemon at rest needs is far below, and is measured
/// by `make bench SUITE=leases`, because a slow machine makes it more.
const REST: f64 = 0.2;

/// The monitors in their order.
const IP: usize = 0;
const BRIDGE: usize = 1;
const NFT: usize = 2;

/// Notes every change of links, addresses, routes, permanent neighbours, FDB entries and nftables rules of a node, and the
/// CPU time of its daemon.
#[derive(Debug)]
pub struct Stillness<'a> {
    daemon: &'a Flanneld,
    monitors: Vec<Process>,
    used: Duration,
    began: Instant,
}

impl<'a> Stillness<'a> {
    /// Begins to watch.
    pub fn watch(node: &Node, daemon: &'a Flanneld) -> Result<Self> {
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
            daemon,
            monitors,
            used: daemon.cpu_time()?,
            began: Instant::now(),
        })
    }

    /// Fails when anything was written, or when the daemon was not at rest.
    pub fn end(mut self) -> Result<()> {
        let (elapsed, used) = (
            self.began.elapsed(),
            self.daemon.cpu_time()?.saturating_sub(self.used),
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
        ensure!(
            used <= elapsed.mul_f64(REST),
            "{used:?} of CPU time in {elapsed:?}"
        );
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
