//! Keeps the kernel as the facts ask for: after each change of them, after a change in the kernel, and on a timer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flannel_model::LeaseKey;
use flannel_netlink::monitor::{Change, watch_changes};
use flannel_plan::Op;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::overlay::{Facts, Memory, Pass, concerns, reconcile};
use crate::said::Said;

/// Everything is compared at least this often, whatever the notifications said.
const AUDIT: Duration = Duration::from_secs(60);
/// A pass with failed writes is repeated after this.
const RETRY: Duration = Duration::from_secs(1);
/// Changes in the kernel come in bursts; a pass waits this long for the rest of one.
const SETTLE: Duration = Duration::from_millis(2);
/// Kernel changes that are taken at once.
const BURST: usize = 1024;

/// How the last pass ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The lease that it was for.
    pub own: LeaseKey,
    /// Whether the VXLAN device of each family stands.
    pub devices_up: bool,
    /// Indices of the devices.
    pub devices: Vec<u32>,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// Peers that were asked for.
    pub peers: usize,
    /// Writes that failed.
    pub failed: usize,
}

/// Starts the task. It ends when the facts' sender is gone. Former values of kernel settings go to the file `notes`.
pub fn start(facts: watch::Receiver<Option<Arc<Facts>>>, notes: PathBuf) -> watch::Receiver<Option<Report>> {
    let (reports, receiver) = watch::channel(None);
    let changes = kernel_changes();
    let memory = Memory {
        notes: Some(notes),
        ..Memory::default()
    };
    tokio::spawn(run(facts, changes, reports, memory));
    receiver
}

/// Notifications of the kernel; without them the timer is all there is.
fn kernel_changes() -> mpsc::Receiver<Change> {
    match watch_changes() {
        Ok((driver, changes)) => {
            tokio::spawn(driver);
            changes
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell of changes; they are found every {} s", AUDIT.as_secs());
            mpsc::channel(1).1
        }
    }
}

async fn run(
    mut facts: watch::Receiver<Option<Arc<Facts>>>,
    mut changes: mpsc::Receiver<Change>,
    reports: watch::Sender<Option<Report>>,
    mut memory: Memory,
) {
    let mut due = Instant::now() + AUDIT;
    let mut burst = Vec::new();
    let mut log = PassLog::default();
    let mut devices = Vec::new();
    loop {
        tokio::select! {
            changed = facts.changed() => if changed.is_err() { return },
            count = changes.recv_many(&mut burst, BURST), if !changes.is_closed() => {
                if count > 0 && !concerns_us(&mut burst, &devices) {
                    continue;
                }
                tokio::time::sleep(SETTLE).await;
                while changes.try_recv().is_ok() {}
            }
            () = sleep_until(due) => {}
        }
        due = Instant::now() + AUDIT;
        let Some(now) = facts.borrow_and_update().clone() else {
            continue;
        };
        let mut before = std::mem::take(&mut memory);
        let pass = move || {
            let pass = reconcile(&now, &mut before);
            (pass, before)
        };
        let pass = match tokio::task::spawn_blocking(pass).await {
            Ok((pass, after)) => {
                memory = after;
                pass
            }
            Err(error) => {
                tracing::error!(%error, "a pass over the kernel ended early");
                due = Instant::now() + RETRY;
                continue;
            }
        };
        log.tell(&pass);
        if pass.report.failed > 0 || !pass.report.devices_up {
            due = Instant::now() + RETRY;
        }
        let report = pass.report;
        devices.clone_from(&report.devices);
        reports.send_if_modified(|old| old.replace(report.clone()).as_ref() != Some(&report));
    }
}

/// Whether one of the changes may have touched what is ours, or an unknown number of them was missed.
fn concerns_us(burst: &mut Vec<Change>, devices: &[u32]) -> bool {
    // All of them are taken, also behind the first that counts.
    burst
        .drain(..)
        .fold(false, |any, change| any | concerns(&change, devices))
}

/// Says what a pass did. A failure that lasts is said once.
#[derive(Default)]
struct PassLog {
    failures: Said,
}

impl PassLog {
    fn tell(&mut self, pass: &Pass) {
        let (of_peers, of_device): (Vec<&Op>, Vec<&Op>) = pass.done.iter().partition(|op| op.is_of_peer());
        for op in of_device {
            tracing::info!("{op}");
        }
        // With many peers at once, each of them is no news.
        for op in &of_peers {
            tracing::debug!("{op}");
        }
        if !of_peers.is_empty() {
            tracing::info!(
                peers = pass.report.peers,
                writes = of_peers.len(),
                "the peers are programmed"
            );
        }
        if pass.problems.is_empty() {
            if self.failures.clear() {
                tracing::info!("the kernel is as it should be again");
            }
            return;
        }
        let text = pass.problems.join("; ");
        if self.failures.is_news(&text) {
            for problem in &pass.problems {
                tracing::error!("{problem}; trying again");
            }
        }
    }
}
