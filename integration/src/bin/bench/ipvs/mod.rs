//! Services through IPVS: what the daemon takes for all of them and for one change, beside the least that the kernel takes for the
//! same, a loop of one message a system call, and `ipvsadm --restore`.
//!
//! Every load has a network namespace of its own: IPVS remembers what was deleted for two minutes, and adding is slower meanwhile.

mod rival;
mod scene;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, eventually, limit};
use flannel_model::{ServiceProtocol, VirtualAddress};
use flannel_netlink::generic::IpvsKey;

use crate::size::{self, Size};
use crate::stats::Series;
use crate::table;
use rival::Rival;
use scene::{ENDPOINTS, Scene, endpoint, server};

/// Numbers of Services.
const SIZES: [usize; 3] = [1_000, 5_000, 10_000];
/// First loads of each contender.
const ROUNDS: Size = Size::new("BENCH_ROUNDS", 3);
/// Single changes of each kind.
const CHANGES: u32 = 20;
/// A pass over everything takes at most 1.2 times the kernel's own work (which is 0.83 of it then), and one change 5 ms.
const FLOOR: Option<f64> = Some(0.83);
const CHANGE: Duration = Duration::from_millis(5);
/// For 10,000 Services with 10 endpoints each.
const MEMORY_MIB: f64 = 150.0;
const FIRST_LOAD: Duration = Duration::from_secs(3);
/// Each pass is told with what it did and how long it took.
const LOGS: (&str, &str) = ("RUST_LOG", "flanneld=info,flanneld::service_feed=debug");

/// Runs the suite.
pub fn run() -> Result<()> {
    let (sizes, rounds) = (size::services(&SIZES)?, ROUNDS.get()?);
    let lab = Lab::new(&LabOptions::nodes(sizes.len() * rounds).without_config())?;
    let mut nodes = lab.nodes().iter();
    for count in sizes {
        let count = u32::try_from(count)?;
        let scene = Scene::write(&lab, count)?;
        println!("\n{count} Services with {ENDPOINTS} endpoints each");
        let mut loads = Loads::default();
        for round in 0..rounds {
            let node = nodes.next().context("too few nodes")?;
            loads.rivals(&scene, round)?;
            let mut daemon = loads.ours(&scene, node)?;
            if round + 1 == rounds {
                loads.print(count);
                steady(&scene, node, &mut daemon)?;
                daemon = adoption(&scene, node, daemon)?;
            }
            daemon.kill()?;
            // or its statistics go on being kept beside what is measured next
            node.run(&["ipvsadm", "--clear"])?;
        }
    }
    Ok(())
}

/// Durations of first loads.
#[derive(Default)]
struct Loads {
    floor: Vec<Duration>,
    one_by_one: Vec<Duration>,
    restore: Vec<Duration>,
    pass: Vec<Duration>,
    whole: Vec<Duration>,
}

impl Loads {
    /// The floor comes last, right before ours, so that both meet a kernel with the same past.
    fn rivals(&mut self, scene: &Scene<'_>, round: usize) -> Result<()> {
        for (rival, durations) in [
            (Rival::OneByOne, &mut self.one_by_one),
            (Rival::Restore, &mut self.restore),
            (Rival::Batched, &mut self.floor),
        ] {
            durations.push(rival.load(scene, round)?);
        }
        Ok(())
    }

    /// From the daemon's start until everything is programmed, and what the pass took.
    fn ours(&mut self, scene: &Scene<'_>, node: &Node) -> Result<Flanneld> {
        let begin = Instant::now();
        let mut daemon = start(scene, node)?;
        let pass = await_pass(&mut daemon, 0, |pass| pass.added >= scene.objects())?;
        self.whole.push(begin.elapsed());
        self.pass.push(pass.took);
        scene.check(node)?;
        Ok(daemon)
    }

    fn print(&self, count: u32) {
        let series = |durations: &Vec<Duration>| Series::new(durations.clone());
        let (pass, whole) = (series(&self.pass), series(&self.whole));
        table::heading(&format!("{count} Services: first load"));
        table::compare(
            "pass, rival: one batch (floor)",
            &pass,
            &series(&self.floor),
            FLOOR,
        );
        table::compare(
            "pass, rival: one message a call",
            &pass,
            &series(&self.one_by_one),
            None,
        );
        table::compare(
            "pass, rival: ipvsadm --restore",
            &pass,
            &series(&self.restore),
            None,
        );
        table::compare(
            "daemon's start to end of pass",
            &whole,
            &series(&self.restore),
            None,
        );
        table::ours("pass", &pass, (count == 10_000).then_some(FIRST_LOAD));
    }
}

fn start(scene: &Scene<'_>, node: &Node) -> Result<Flanneld> {
    let prefix = format!("--etcd-prefix={}", scene.prefix());
    Flanneld::start_with(node, &[&prefix, "--service-mode=ipvs"], &[LOGS])
}

/// A pass as the daemon tells it.
struct Pass {
    added: usize,
    removed: usize,
    took: Duration,
}

/// The passes that the daemon has told.
fn passes(daemon: &Flanneld) -> Result<Vec<Pass>> {
    let log = daemon.log()?;
    let lines = log.lines().filter(|l| l.contains("a pass over the Services"));
    let field = |line: &str, name: &str| {
        let mut words = line.split_whitespace();
        words.find_map(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
    };
    let read = |line: &str| {
        Some(Pass {
            added: usize::try_from(field(line, "added")?).ok()?,
            removed: usize::try_from(field(line, "removed")?).ok()?,
            took: Duration::from_micros(field(line, "took_us")?),
        })
    };
    Ok(lines.filter_map(read).collect())
}

/// Waits for a pass that fits, behind the first `seen`.
fn await_pass(daemon: &mut Flanneld, seen: usize, fits: impl Fn(&Pass) -> bool) -> Result<Pass> {
    eventually(limit(120), "a pass of the daemon", || {
        daemon.check_running()?;
        let pass = passes(daemon)?.into_iter().skip(seen).find(&fits);
        pass.with_context(|| format!("its log:\n{}", daemon.log().unwrap_or_default()))
    })
}

/// Single changes, and passes in which nothing is to be done, beside everything that stands already.
fn steady(scene: &Scene<'_>, node: &Node, daemon: &mut Flanneld) -> Result<()> {
    let memory = memory(daemon)?;
    let mut kernel = scene.kernel(node)?;
    let mut changed = (Vec::new(), Vec::new());
    let mut added = (Vec::new(), Vec::new());
    let spread = scene.count / CHANGES;
    for n in 0..CHANGES {
        let number = n * spread;
        let replaced = endpoint(scene.count + n, 0);
        let seen = passes(daemon)?.len();
        let begin = Instant::now();
        scene.replace_endpoint(number, replaced)?;
        kernel.await_real(server(number), |real| real.iter().any(|r| r.address == replaced))?;
        changed.1.push(begin.elapsed());
        changed
            .0
            .push(await_pass(daemon, seen, |pass| pass.added > 0)?.took);
        let (new, seen) = (scene.count + n, passes(daemon)?.len());
        let begin = Instant::now();
        scene.add(new)?;
        kernel.await_real(server(new), |real| real.len() == usize::from(ENDPOINTS))?;
        added.1.push(begin.elapsed());
        added
            .0
            .push(await_pass(daemon, seen, |pass| pass.added > 0)?.took);
    }
    table::heading_ours(&format!("{} Services: single changes", scene.count));
    table::ours(
        "pass for one endpoint changed",
        &Series::new(changed.0),
        Some(CHANGE),
    );
    table::ours(
        "  etcd's put to kernel, seen outside",
        &Series::new(changed.1),
        None,
    );
    table::ours("pass for one Service added", &Series::new(added.0), Some(CHANGE));
    table::ours(
        "  etcd's put to kernel, seen outside",
        &Series::new(added.1),
        None,
    );
    let seen = passes(daemon)?.len();
    std::thread::sleep(Duration::from_secs(35));
    let idle = passes(daemon)?.into_iter().skip(seen);
    // what drains is looked at and removed once a second
    let idle: Vec<Pass> = idle.filter(|p| p.added + p.removed == 0).collect();
    table::ours(
        "pass without a change",
        &Series::new(idle.into_iter().map(|p| p.took).collect()),
        None,
    );
    let goal = (scene.count == 10_000).then_some(MEMORY_MIB);
    table::amount("memory after the first load, MiB", memory, goal);
    Ok(())
}

/// A new process takes over what stands, and writes nothing.
fn adoption(scene: &Scene<'_>, node: &Node, daemon: Flanneld) -> Result<Flanneld> {
    let now = || node.run(&["ipvsadm", "-Sn"]);
    // endpoints that were replaced have gone by then
    std::thread::sleep(Duration::from_secs(3));
    let before = now()?;
    daemon.kill()?;
    let mut daemon = start(scene, node)?;
    let all = await_pass(&mut daemon, 0, |_| true)?;
    ensure!(
        (all.added, all.removed) == (0, 0),
        "the new process wrote {} and removed {}",
        all.added,
        all.removed
    );
    ensure!(now()? == before, "a new process changed what stood");
    table::ours(
        "new process: reads all, no write",
        &Series::new(vec![all.took]),
        None,
    );
    Ok(daemon)
}

/// Resident memory of the daemon in MiB.
fn memory(daemon: &Flanneld) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: f64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// The virtual server of TCP port 80 at an address.
fn key(address: std::net::Ipv4Addr) -> IpvsKey {
    IpvsKey::Address(VirtualAddress {
        protocol: ServiceProtocol::Tcp,
        address: address.into(),
        port: 80,
    })
}
