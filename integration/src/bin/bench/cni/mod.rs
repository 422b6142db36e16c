//! The CNI plugin beside Debian's `bridge` and `host-local`, with the configuration that flannel renders for them.
//!
//! Each contender has a node of its own, so that neither sees the other's devices; on ours runs flanneld, as on every node that has
//! a subnet. One call is the time from the start of the program to its end, as a runtime waits for it.

mod block;
mod daemon;
mod floor;
mod seed;
mod side;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use flannel_lab::{Place, sandbox};

use crate::stats::Series;
use crate::table;
use daemon::Daemon;
use side::{Side, Who};

/// The environment variable that names a folder on a disk: what a synced lease costs cannot be seen on a tmpfs.
const DISK_VARIABLE: &str = "BENCH_DISK";
/// Namespaces that wait for an ADD, as many as the largest block needs.
const SPARE: usize = 200;
const FEW: usize = 10;
const MANY: usize = 250;
/// What the project wants to be: ADD in a quarter of the rival's time, DEL in a tenth, VERSION and repeated DEL in a third, four
/// times the rate.
const ADD: Option<f64> = Some(4.0);
const DEL: Option<f64> = Some(10.0);
const SMALL: Option<f64> = Some(3.0);
const RATE: Option<f64> = Some(4.0);

const KINDS: [&str; 5] = ["ADD", "CHECK", "DEL", "DEL again", "VERSION"];

fn goal(kind: &str) -> Option<f64> {
    match kind {
        "ADD" => ADD,
        "DEL" => DEL,
        "CHECK" => None,
        _ => SMALL,
    }
}

/// Both contenders on nodes made for one table.
struct Match {
    ours: Side,
    rival: Side,
    name: String,
    standing: usize,
    _daemon: Option<Daemon>,
}

/// Whether flanneld runs on our node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flanneld {
    Runs,
    IsDown,
}

/// Runs the suite.
pub fn run() -> Result<()> {
    let memory = Path::new(sandbox::SCRATCH);
    let mut few = Match::new("few", memory, Flanneld::Runs)?;
    few.calls_traced()?;
    few.stand(FEW)?;
    few.one_by_one(&format!("one at a time, {FEW} pods on the node"), 60)?;
    few.at_once(16, 160, 2)?;
    few.at_once(100, 200, 1)?;
    few.stand(MANY)?;
    few.calls_traced()?;
    few.one_by_one(&format!("one at a time, {MANY} pods on the node"), 40)?;
    few.at_once(16, 160, 1)?;
    few.at_once(100, 200, 1)?;
    few.end()?;
    let alone = Match::new("alone", memory, Flanneld::IsDown)?;
    alone.one_by_one("one at a time, flanneld is down", 40)?;
    alone.end()?;
    on_disk()
}

/// Everything above has its leases in memory, where a sync is free. The rival never syncs.
fn on_disk() -> Result<()> {
    let Some(folder) = std::env::var_os(DISK_VARIABLE) else {
        table::missing("leases on a disk", &format!("{DISK_VARIABLE} names no folder"));
        return Ok(());
    };
    let folder = PathBuf::from(folder).join("cni");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?; // of a run that was killed
    }
    std::fs::create_dir_all(&folder)?;
    let measured = [(0, 40, 2), (5_000, 20, 1), (60_000, 6, 1)]
        .into_iter()
        .try_for_each(|(leases, rounds, blocks)| full(&folder, leases, rounds, blocks));
    std::fs::remove_dir_all(&folder)?;
    measured
}

/// Leases of others on a disk; ours are synced, the rival's are not.
fn full(folder: &Path, leases: u32, rounds: usize, blocks: usize) -> Result<()> {
    let new = Match::new(&format!("full{leases}"), folder, Flanneld::Runs)?;
    seed::leases(&new.ours.leases(), leases)?;
    seed::leases(&new.rival.leases(), leases)?;
    // What was just written must not be waited for by the first sync.
    rustix::fs::sync();
    new.one_by_one(
        &format!("one at a time, leases on a disk, {leases} of others"),
        rounds,
    )?;
    // The rival reads all of them under its lock, call after call.
    let each = if leases > 10_000 { 1 } else { 2 };
    new.at_once(16, 16 * each, blocks)?;
    new.at_once(100, 100, 1)?;
    new.end()
}

impl Match {
    fn new(name: &str, folder: &Path, flanneld: Flanneld) -> Result<Self> {
        let side = |who, suffix: &str| Side::new(who, &format!("{name}-{suffix}"), folder);
        let ours = side(Who::Ours, "ours")?;
        let daemon = match flanneld {
            Flanneld::Runs => Some(Daemon::start(&format!("{name}-ours"), ours.files())?),
            Flanneld::IsDown => None,
        };
        let new = Self {
            ours,
            rival: side(Who::Rival, "rival")?,
            name: name.to_owned(),
            standing: 0,
            _daemon: daemon,
        };
        new.make_pods((0..SPARE).map(|index| format!("spare{index}")))?;
        Ok(new)
    }

    /// Ours first in even rounds, the rival first in odd ones.
    fn sides(&self, round: usize) -> [&Side; 2] {
        match round.is_multiple_of(2) {
            true => [&self.ours, &self.rival],
            false => [&self.rival, &self.ours],
        }
    }

    fn pod(&self, side: &Side, pod: &str) -> String {
        let suffix = if std::ptr::eq(side, &raw const self.ours) {
            "o"
        } else {
            "r"
        };
        format!("{}-{suffix}-{pod}", self.name)
    }

    fn make_pods(&self, names: impl Iterator<Item = String>) -> Result<()> {
        let pods = names.flat_map(|name| [self.pod(&self.ours, &name), self.pod(&self.rival, &name)]);
        let lines: Vec<String> = pods.map(|pod| format!("netns add {pod}")).collect();
        lines
            .chunks(50)
            .try_for_each(|part| Place::sandbox().ip_batch(part))
    }

    /// Attaches pods that stay, until there are `count` of them.
    fn stand(&mut self, count: usize) -> Result<()> {
        self.make_pods((self.standing..count).map(|index| format!("stand{index}")))?;
        for index in self.standing..count {
            for side in self.sides(index) {
                let pod = self.pod(side, &format!("stand{index}"));
                side.call("ADD", &pod, &pod, None)?;
            }
        }
        self.standing = count;
        Ok(())
    }

    /// How many programs and system calls each command takes.
    fn calls_traced(&self) -> Result<()> {
        println!("\n-- what one call takes, {} pods on the node", self.standing);
        // The first ADD makes the bridge as well.
        let first = ["ADD, first"].into_iter().filter(|_| self.standing == 0);
        for verb in first.chain(["ADD", "CHECK", "DEL", "DEL, again", "VERSION"]) {
            for side in self.sides(0) {
                let counted = trace::count(side, verb, &self.pod(side, "spare0"), self.standing)?;
                println!("{:<34} {counted}", format!("{verb}: {}", side.program()));
            }
        }
        Ok(())
    }

    fn one_by_one(&self, title: &str, rounds: usize) -> Result<()> {
        let kinds = KINDS;
        let mut times = kinds.map(|_| [Vec::new(), Vec::new()]);
        let mut refused: [Option<String>; 5] = Default::default();
        for round in 0..rounds {
            for side in self.sides(round) {
                let which = usize::from(!std::ptr::eq(side, &raw const self.ours));
                for (index, result) in self.cycle(side)?.into_iter().enumerate() {
                    match result {
                        Ok(took) => times[index][which].push(took),
                        Err(error) => refused[index] = Some(format!("{error:#}")),
                    }
                }
            }
        }
        table::heading(title);
        for ((kind, [ours, rival]), refused) in kinds.into_iter().zip(times).zip(refused) {
            match refused {
                None => table::compare(kind, &Series::new(ours), &Series::new(rival), goal(kind)),
                Some(why) => table::missing(kind, &why),
            }
        }
        self.floor(rounds)
    }

    /// What the kernel alone takes for an ADD and a DEL, on our node as it stands.
    fn floor(&self, rounds: usize) -> Result<()> {
        if self.standing == 0 {
            table::missing("the kernel's part alone", "no pod stands, and so no bridge");
            return Ok(());
        }
        let netns = format!("/run/netns/{}", self.pod(&self.ours, "spare1"));
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (add, del) = floor::life(&self.ours, &netns)?;
            adds.push(add);
            dels.push(del);
            self.ours.settle(self.standing)?;
        }
        table::heading_ours("the kernel's part alone, in this process: nobody can be faster");
        table::ours("ADD: device, address, routes", &Series::new(adds), None);
        table::ours("DEL: cut off, to be deleted later", &Series::new(dels), None);
        Ok(())
    }

    /// The life of one pod. Only a CHECK may fail: not every version of every plugin has it.
    fn cycle(&self, side: &Side) -> Result<[Result<Duration>; 5]> {
        let pod = self.pod(side, "spare0");
        let add = side.call("ADD", &pod, &pod, None)?;
        let previous = Some(add.stdout.as_str());
        let check = side.call("CHECK", &pod, &pod, previous).map(|answer| answer.took);
        let del = side.call("DEL", &pod, &pod, previous)?;
        side.settle(self.standing)?;
        let again = side.call("DEL", &pod, &pod, previous)?;
        let version = side.call("VERSION", "", "", None)?;
        Ok([
            Ok(add.took),
            check,
            Ok(del.took),
            Ok(again.took),
            Ok(version.took),
        ])
    }

    /// Removes every namespace of the match.
    fn end(self) -> Result<()> {
        let pods = Place::sandbox().shell("ls /run/netns")?;
        let own = format!("{}-", self.name);
        let lines: Vec<String> = pods
            .lines()
            .filter(|name| name.starts_with(&own))
            .map(|name| format!("netns delete {name}"))
            .collect();
        lines
            .chunks(50)
            .try_for_each(|part| Place::sandbox().ip_batch(part))
    }
}
