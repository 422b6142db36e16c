//! Keeps the kernel as the facts ask for: after each change of them, after a change in the kernel, and on a timer.
//!
//! A change of a single object by somebody else is repaired at once, also while everything is looked at; a look at everything follows
//! when there is quiet, as it does after all other changes.

mod pass_log;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flannel_model::LeaseKey;
use flannel_netlink::RouteConn;
use flannel_netlink::monitor::{Change, watch_changes};
use flannel_plan::{DesiredOverlay, Device, Op, exchange_ops};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

use crate::overlay::{Cause, Facts, Memory, Pass, Shared, Stand, reconcile, repair, write_few};
use crate::repair::{Verdict, judge};
use crate::said::chain;
use crate::settings;
use pass_log::PassLog;

/// Everything is compared at least this often, whatever the notifications said.
const AUDIT: Duration = Duration::from_secs(60);
/// The same where the kernel tells of no changes: it has no notifications for peers of WireGuard devices, and none for
/// sysctls that are written through another mount of /proc.
const AUDIT_WITHOUT_EVENTS: Duration = Duration::from_secs(5);
/// A pass with failed writes is repeated after this.
const RETRY: Duration = Duration::from_secs(1);
/// Changes in the kernel come in bursts; a pass waits this long for the rest of one.
const SETTLE: Duration = Duration::from_millis(2);
/// A look at everything follows this long after the last repair of single objects.
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
        current: None,
        written: None,
        reports,
        shared: memory.shared.clone(),
        memory: Some(memory),
        running: None,
        unclear: Vec::new(),
        repairs: None,
        log: PassLog::default(),
        devices: Vec::new(),
        due: Instant::now() + AUDIT,
        quiet: None,
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
    /// Those of the pass that runs.
    current: Option<Arc<Facts>>,
    /// The facts that the kernel follows; `None` while something is missing.
    written: Option<Stand>,
    reports: watch::Sender<Option<Report>>,
    shared: Shared,
    /// `None` while a pass has it.
    memory: Option<Memory>,
    running: Option<JoinHandle<(Pass, Memory)>>,
    /// What changed while a pass runs and may be its own work: it is judged again when the pass has ended.
    unclear: Vec<Change>,
    /// What repairs go through.
    repairs: Option<RouteConn>,
    log: PassLog,
    /// Our devices, as of the last pass.
    devices: Vec<(Device, u32)>,
    /// When everything is compared at the latest.
    due: Instant,
    /// When it is compared because there was quiet since the last repair.
    quiet: Option<Instant>,
}

impl Reconciler {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut burst = Vec::new();
        let mut unheard = tokio::time::interval(AUDIT_WITHOUT_EVENTS);
        let mut writes = settings::Watch::new();
        loop {
            let idle = self.running.is_none();
            let next = self.quiet.map_or(self.due, |quiet| quiet.min(self.due));
            tokio::select! {
                // A repair by facts that are not written yet would come before what they have to be written with.
                biased;
                ended = ended(&mut self.running) => {
                    self.end(ended).await;
                    writes.follow(self.devices.iter().map(|(device, _)| *device));
                    self.keep_settings("it changed during a pass");
                }
                changed = self.facts.changed(), if idle => match changed {
                    Ok(()) => self.follow().await,
                    Err(_) => return,
                },
                _ = changes.recv_many(&mut burst, BURST), if !changes.is_closed() => {
                    if self.take_changes(&mut burst).await {
                        self.look_soon();
                    }
                }
                () = writes.written() => self.keep_settings("somebody wrote to it"),
                _ = unheard.tick() => {
                    writes.follow(self.devices.iter().map(|(device, _)| *device));
                    self.keep_settings("nobody told of it");
                    if self.look_where_nothing_is_told() {
                        self.look_soon();
                    }
                }
                () = sleep_until(next), if idle => {
                    // What came before is seen by the look that begins now.
                    while let Ok(change) = changes.try_recv() {
                        burst.push(change);
                    }
                    self.take_changes(&mut burst).await;
                    self.begin(Cause::Audit);
                }
            }
        }
    }

    /// Changes come in bursts, of which a look sees the end.
    fn look_soon(&mut self) {
        self.due = self.due.min(Instant::now() + SETTLE);
    }

    /// Repairs what can be repaired by itself. Answers whether everything is to be looked at.
    async fn take_changes(&mut self, burst: &mut Vec<Change>) -> bool {
        // Repairs and the pass that runs go by the same facts.
        let facts = match &self.current {
            Some(facts) => Some(facts.clone()),
            None => self.facts.borrow().clone(),
        };
        let Some(facts) = facts else {
            burst.clear();
            return false;
        };
        let mut repairs: Vec<Op> = Vec::new();
        let mut look = false;
        for change in burst.drain(..) {
            match judge(&change, &facts, &self.devices) {
                Verdict::Fine => {}
                Verdict::Look if self.running.is_none() => look = true,
                Verdict::Look => self.keep_unclear(change),
                Verdict::Repair(op) => {
                    if !repairs.contains(&op) && repairs.len() <= SINGLE {
                        repairs.push(*op);
                    }
                }
            }
        }
        drop(facts);
        if repairs.len() > SINGLE {
            return true;
        }
        if !look && !repairs.is_empty() {
            self.quiet = Some(Instant::now() + VERIFY);
            self.repair(repairs).await;
        }
        look
    }

    /// More than a burst of them is one that was lost.
    fn keep_unclear(&mut self, change: Change) {
        if self.unclear.len() >= BURST {
            self.unclear.clear();
            self.unclear.push(Change::Overrun);
        }
        if self.unclear.first() != Some(&Change::Overrun) {
            self.unclear.push(change);
        }
    }

    async fn repair(&mut self, ops: Vec<Op>) {
        let (conn, devices, shared) = (self.repairs.take(), self.devices.clone(), self.shared.clone());
        let work = move || {
            let mut conn = match conn {
                Some(conn) => conn,
                None => RouteConn::open()?,
            };
            let made = repair(&mut conn, ops, &devices, &shared);
            Ok::<_, flannel_netlink::NetlinkError>((conn, made))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok((conn, made))) => {
                self.repairs = Some(conn);
                made.iter().for_each(|op| tracing::info!("repaired: {op}"));
            }
            Ok(Err(error)) => tracing::debug!("{}", chain(&error)),
            Err(error) => tracing::error!(%error, "a repair ended early"),
        }
    }

    /// Puts settings of our devices right; `why` says how it came out that they were not.
    fn keep_settings(&self, why: &str) {
        for (device, _) in &self.devices {
            for op in settings::keep(*device, Cause::Audit, &self.shared) {
                tracing::info!("repaired: {op} ({why})");
            }
        }
    }

    /// Whether there are peers of which the kernel does not tell when they change: only a pass can tell.
    fn look_where_nothing_is_told(&self) -> bool {
        let facts = self.facts.borrow();
        let has_wireguard = |overlay: &DesiredOverlay| {
            let tunnel = overlay.tunnel.as_ref();
            tunnel.is_some_and(|tunnel| tunnel.wireguard.is_some())
        };
        facts
            .as_ref()
            .is_some_and(|facts| facts.overlays().any(has_wireguard))
    }

    /// Writes what single peers' changes ask for. Where more than that changed, or something was not as it was thought to be,
    /// everything is looked at.
    async fn follow(&mut self) {
        let Some((few, peers)) = self.few() else {
            return self.begin(Cause::Facts);
        };
        let writes = few.concat();
        let Some(mut memory) = self.memory.take() else {
            return self.begin(Cause::Facts);
        };
        let work = move || {
            let begin = Instant::now();
            let problems = write_few(&few, &mut memory).unwrap_or_else(|error| vec![chain(&error)]);
            tracing::debug!(
                target: "flanneld::pass",
                failed = problems.len(),
                micros = begin.elapsed().as_micros(),
                "single peers are written"
            );
            (problems, memory)
        };
        let problems = match tokio::task::spawn_blocking(work).await {
            Ok((problems, memory)) => {
                self.memory = Some(memory);
                problems
            }
            Err(error) => vec![error.to_string()],
        };
        if !problems.is_empty() {
            tracing::debug!("{}; everything is looked at", problems.join("; "));
            self.written = None;
            return self.begin(Cause::Facts);
        }
        self.report_few(writes, peers);
    }

    /// The operations for each family that lead from what is written to the facts of now, by the steps between them, and the number of
    /// peers then.
    fn few(&mut self) -> Option<(Vec<Vec<Op>>, usize)> {
        let facts = self.facts.borrow_and_update();
        let facts = facts.as_deref()?;
        let mut families: Vec<Vec<Op>> = facts.overlays().map(|_| Vec::new()).collect();
        let mut steps = 0;
        for step in facts.steps.since(self.written?)? {
            steps += 1;
            for (ops, exchange) in families.iter_mut().zip(&step.exchanges) {
                ops.extend(exchange_ops(exchange)?);
            }
        }
        // The same facts again: somebody wants to have everything looked at.
        (steps > 0).then_some(())?;
        self.written = Some(facts.steps.stand());
        Some((families, facts.peers()))
    }

    fn report_few(&mut self, done: Vec<Op>, peers: usize) {
        let Some(last) = self.reports.borrow().clone() else {
            return;
        };
        let pass = Pass {
            report: Report { peers, ..last },
            done,
            problems: Vec::new(),
        };
        self.log.tell(&pass);
        self.tell(pass.report);
    }

    fn tell(&self, report: Report) {
        self.reports
            .send_if_modified(|old| old.replace(report.clone()).as_ref() != Some(&report));
    }

    /// Begins to look at everything.
    fn begin(&mut self, cause: Cause) {
        self.due = Instant::now() + AUDIT;
        self.quiet = None;
        self.current.clone_from(&self.facts.borrow_and_update());
        let Some(now) = self.current.clone() else {
            return;
        };
        let mut memory = self.memory.take().unwrap_or_else(|| Memory {
            // The one that had it ended early.
            shared: self.shared.clone(),
            ..Memory::default()
        });
        self.written = None;
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
        self.running = Some(tokio::task::spawn_blocking(work));
    }

    async fn end(&mut self, ended: Result<(Pass, Memory), JoinError>) {
        let facts = self.current.take();
        match ended {
            Ok((pass, memory)) => {
                self.memory = Some(memory);
                let whole = pass.report.failed == 0 && pass.report.devices_up;
                self.written = facts.filter(|_| whole).map(|facts| facts.steps.stand());
                self.take_pass(pass);
            }
            Err(error) => {
                tracing::error!(%error, "a pass over the kernel ended early");
                self.due = self.due.min(Instant::now() + RETRY);
            }
        }
        let mut unclear = std::mem::take(&mut self.unclear);
        if self.take_changes(&mut unclear).await {
            self.look_soon();
        }
    }

    fn take_pass(&mut self, pass: Pass) {
        self.log.tell(&pass);
        if pass.report.failed > 0 || !pass.report.devices_up {
            self.due = self.due.min(Instant::now() + RETRY);
        }
        // An object that is left to somebody for a while is looked at when that is over.
        let fight = self.shared.lock().fights.wake(Instant::now());
        self.due = fight.map_or(self.due, |end| end.min(self.due));
        self.devices.clone_from(&pass.report.devices);
        self.tell(pass.report);
    }
}

/// What became of the pass that runs; never where there is none.
async fn ended(running: &mut Option<JoinHandle<(Pass, Memory)>>) -> Result<(Pass, Memory), JoinError> {
    let ended = match running {
        Some(task) => task.await,
        None => std::future::pending().await,
    };
    *running = None;
    ended
}
