//! `flannelctl services` beside so many Services: how long it takes, and how much memory at its peak.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::{Node, etcd, limit, sandbox};

/// How often its memory is looked at while it runs.
const POLL: Duration = Duration::from_millis(2);

/// What one call took.
pub struct Look {
    /// From its start to its end.
    pub took: Duration,
    /// Its resident memory at the highest, in MiB.
    pub peak: f64,
}

/// Calls it on the node, where it shows what etcd has and what the daemon tells of its kernel. Every Service must be named.
pub fn look(node: &Node, services: usize) -> Result<Look> {
    let program = format!("{}/flannelctl", sandbox::BINARIES);
    let endpoints = format!("--etcd-endpoints={}", etcd::ENDPOINT);
    let begin = Instant::now();
    let argv = [program.as_str(), "--etcd-insecure", &endpoints, "services"];
    let mut process = node.spawn(&format!("look{services}"), &argv, &Environment::default())?;
    // nsenter becomes the program itself
    let status = format!("/proc/{}/status", process.pid());
    let mut peak = 0.0_f64;
    while process.check_running().is_ok() && begin.elapsed() < limit(60) {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or_default() / 1024.0);
        std::thread::sleep(POLL);
    }
    let ended = process.wait(limit(5)).context("flannelctl services")?;
    let took = begin.elapsed();
    let said = process.log_text()?;
    ensure!(ended.success(), "flannelctl services: {ended}");
    let named = said.lines().filter(|l| l.starts_with("bench/shop-")).count();
    ensure!(
        named >= 2 * services,
        "{named} rows for {services} Services, of etcd and of this node"
    );
    Ok(Look { took, peak })
}
