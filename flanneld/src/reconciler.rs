//! Keeps the kernel as the facts ask for: after each change of them, after a change in the kernel, and on a timer.
//!
//! A change of a single object by somebody else is repaired at once; a look at everything follows, as it does after all other changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flannel_model::LeaseKey;
use flannel_netlink::monitor::{Change, watch_changes};
use flannel_plan::{DesiredOverlay, Device, Op};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::overlay::{Cause, Facts, Memory, Pass, reconcile, refuse_router_advertisements, repair};
use crate::repair::{Verdict, judge};
use crate::said::{Said, chain};

/// Everything is compared at least this often, whatever the notifications said.
const AUDIT: Duration = Duration::from_secs(60);
/// The same where the kernel tells of no changes: it has no notifications for peers of WireGuard devices and for sysctls.
const AUDIT_WITHOUT_EVENTS: Duration = Duration::from_secs(5);
/// A pass with failed writes is repeated after this.
const RETRY: Duration = Duration::from_secs(1);
/// Changes in the kernel come in bursts; a pass waits this long for the rest of one.
const SETTLE: Duration = Duration::from_millis(2);
/// A look at everything follows this long after the repair of single objects.
const VERIFY: Duration = Duration::from_millis(200);
/// Kernel changes that are taken at once.
const BURST: usize = 1024;
/// More lost objects than this at once are found by a look at everything.
const SINGLE: usize = 32;

/// How the last pass ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The lease that it was for.
    pub own: LeaseKey,
    /// Whether the VXLAN device of each family stands.
    pub devices_up: bool,
    /// The devices and their indices.
    pub devices: Vec<(Device, u32)>,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// Peers that were asked for.
    pub peers: usize,
    /// Writes that failed.
    pub failed: usize,
    /// What somebody undoes again and again.
    pub fights: Vec<String>,
}

/// Starts the task. It ends when the facts' sender is gone. Former values of kernel settings go to the file `notes`.
pub fn start(facts: watch::Receiver<Option<Arc<Facts>>>, notes: PathBuf) -> watch::Receiver<Option<Report>> {
    let (reports, receiver) = watch::channel(None);
    let changes = kernel_changes();
    let memory = Memory {
        notes: Some(notes),
        ..Memory::default()
    };
    let task = Reconciler {
        facts,
        reports,
        memory,
        log: PassLog::default(),
        devices: Vec::new(),
        due: Instant::now() + AUDIT,
    };
    tokio::spawn(task.run(changes));
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

struct Reconciler {
    facts: watch::Receiver<Option<Arc<Facts>>>,
    reports: watch::Sender<Option<Report>>,
    memory: Memory,
    log: PassLog,
    /// Our devices, as of the last pass.
    devices: Vec<(Device, u32)>,
    /// When everything is compared at the latest.
    due: Instant,
}

impl Reconciler {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut burst = Vec::new();
        let mut unheard = tokio::time::interval(AUDIT_WITHOUT_EVENTS);
        loop {
            let cause = tokio::select! {
                changed = self.facts.changed() => match changed {
                    Ok(()) => Cause::Facts,
                    Err(_) => return,
                },
                _ = changes.recv_many(&mut burst, BURST), if !changes.is_closed() => {
                    if !self.take_changes(&mut burst).await {
                        continue;
                    }
                    tokio::time::sleep(SETTLE).await;
                    while changes.try_recv().is_ok() {}
                    Cause::Audit
                }
                _ = unheard.tick() => {
                    if !self.look_where_nothing_is_told() {
                        continue;
                    }
                    Cause::Audit
                }
                () = sleep_until(self.due) => Cause::Audit,
            };
            self.pass(cause).await;
        }
    }

    /// Repairs what can be repaired by itself. Answers whether everything is to be looked at now.
    async fn take_changes(&mut self, burst: &mut Vec<Change>) -> bool {
        let Some(facts) = self.facts.borrow().clone() else {
            burst.clear();
            return false;
        };
        let mut repairs: Vec<Op> = Vec::new();
        let mut look = false;
        for change in burst.drain(..) {
            match judge(&change, &facts, &self.devices) {
                Verdict::Fine => {}
                Verdict::Look => look = true,
                Verdict::Repair(op) => {
                    if !repairs.contains(&op) && repairs.len() <= SINGLE {
                        repairs.push(*op);
                    }
                }
            }
        }
        if look || repairs.len() > SINGLE {
            return true;
        }
        if !repairs.is_empty() {
            self.due = self.due.min(Instant::now() + VERIFY);
            self.repair(repairs).await;
        }
        false
    }

    async fn repair(&mut self, ops: Vec<Op>) {
        let mut memory = std::mem::take(&mut self.memory);
        let work = move || (repair(&ops, &mut memory), memory);
        match tokio::task::spawn_blocking(work).await {
            Ok((made, memory)) => {
                self.memory = memory;
                match made {
                    Ok(made) => made.iter().for_each(|op| tracing::info!("repaired: {op}")),
                    Err(error) => tracing::debug!("{}", chain(&error)),
                }
            }
            Err(error) => tracing::error!(%error, "a repair ended early"),
        }
    }

    /// Settings and peers of which the kernel does not tell when they change. Answers whether only a pass can tell.
    fn look_where_nothing_is_told(&self) -> bool {
        let devices = self.devices.iter().map(|(device, _)| *device);
        devices.for_each(refuse_router_advertisements);
        let facts = self.facts.borrow();
        let has_wireguard = |overlay: &DesiredOverlay| {
            let tunnel = overlay.tunnel.as_ref();
            tunnel.is_some_and(|tunnel| tunnel.wireguard.is_some())
        };
        facts
            .as_ref()
            .is_some_and(|facts| facts.overlays().any(has_wireguard))
    }

    async fn pass(&mut self, cause: Cause) {
        self.due = Instant::now() + AUDIT;
        let Some(now) = self.facts.borrow_and_update().clone() else {
            return;
        };
        let mut memory = std::mem::take(&mut self.memory);
        let work = move || {
            let begin = Instant::now();
            let pass = reconcile(&now, cause, &mut memory);
            // With a target of its own, so that it can be had without a line for every peer.
            tracing::debug!(
                target: "flanneld::pass",
                writes = pass.done.len(),
                failed = pass.problems.len(),
                micros = begin.elapsed().as_micros(),
                "a pass over the kernel"
            );
            (pass, memory)
        };
        let pass = match tokio::task::spawn_blocking(work).await {
            Ok((pass, memory)) => {
                self.memory = memory;
                pass
            }
            Err(error) => {
                tracing::error!(%error, "a pass over the kernel ended early");
                self.due = Instant::now() + RETRY;
                return;
            }
        };
        self.log.tell(&pass);
        if pass.report.failed > 0 || !pass.report.devices_up {
            self.due = Instant::now() + RETRY;
        }
        // An object that is left to somebody for a while is looked at when that is over.
        let fight = self.memory.fights.wake(Instant::now());
        self.due = fight.map_or(self.due, |end| end.min(self.due));
        let report = pass.report;
        self.devices.clone_from(&report.devices);
        self.reports
            .send_if_modified(|old| old.replace(report.clone()).as_ref() != Some(&report));
    }
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
        for op in of_peers.iter().filter(|op| matches!(op, Op::RoutePrepend { .. })) {
            tracing::warn!("{op}: somebody else has a route to the same destination; it stays, behind ours");
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
