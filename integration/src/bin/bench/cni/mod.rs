//! The CNI plugin beside Debian's `bridge` and `host-local`, with the configuration that flannel renders for them.
//!
//! Each contender has a node of its own, so that neither sees the other's devices. One call is the time from the start of the
//! program to its end, as a runtime waits for it.

mod seed;
mod side;
mod trace;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use flannel_lab::{Place, sandbox};

use crate::stats::Series;
use crate::table;
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

/// Both contenders on nodes made for one table.
struct Match {
    ours: Side,
    rival: Side,
    name: String,
    standing: usize,
}

/// Runs the suite.
pub fn run() -> Result<()> {
    let memory = Path::new(sandbox::SCRATCH);
    let mut few = Match::new("few", memory)?;
    few.calls_traced()?;
    few.stand(FEW)?;
    few.one_by_one(&format!("one at a time, {FEW} pods on the node"), 100)?;
    few.at_once(16, 160, 3)?;
    few.at_once(100, 200, 2)?;
    few.stand(MANY)?;
    few.one_by_one(&format!("one at a time, {MANY} pods on the node"), 50)?;
    few.at_once(16, 160, 2)?;
    few.end()?;
    for (leases, rounds) in [(5_000, 30), (60_000, 8)] {
        let full = Match::new(&format!("full{leases}"), memory)?;
        seed::leases(&full.ours.leases(), leases)?;
        seed::leases(&full.rival.leases(), leases)?;
        full.one_by_one(&format!("one at a time, {leases} leases of others"), rounds)?;
        full.end()?;
    }
    match std::env::var_os(DISK_VARIABLE) {
        Some(folder) => on_disk(&PathBuf::from(folder)),
        None => {
            table::missing("leases on a disk", &format!("{DISK_VARIABLE} names no folder"));
            Ok(())
        }
    }
}

/// Everything above has its leases in memory, where a sync is free. The rival never syncs.
fn on_disk(folder: &Path) -> Result<()> {
    let folder = folder.join("cni");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?; // of a run that was killed
    }
    std::fs::create_dir_all(&folder)?;
    let disk = Match::new("disk", &folder)?;
    let measured = disk.one_by_one(
        "one at a time, leases on a disk (ours are synced, the rival's are not)",
        50,
    );
    disk.end()?;
    std::fs::remove_dir_all(&folder)?;
    measured
}

impl Match {
    fn new(name: &str, folder: &Path) -> Result<Self> {
        let side = |who, suffix: &str| Side::new(who, &format!("{name}-{suffix}"), folder);
        let new = Self {
            ours: side(Who::Ours, "ours")?,
            rival: side(Who::Rival, "rival")?,
            name: name.to_owned(),
            standing: 0,
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

    /// How many programs and system calls an ADD and a DEL take.
    fn calls_traced(&self) -> Result<()> {
        println!("\n-- what one call takes");
        // The first ADD makes the bridge as well.
        for verb in ["ADD, first", "ADD", "DEL"] {
            for side in self.sides(0) {
                let counted = trace::count(side, verb, &self.pod(side, "spare0"))?;
                println!("{:<34} {counted}", format!("{verb}: {}", side.program()));
            }
        }
        Ok(())
    }

    fn one_by_one(&self, title: &str, rounds: usize) -> Result<()> {
        let kinds = ["ADD", "CHECK", "DEL", "DEL again", "VERSION"];
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
            let goal = match kind {
                "ADD" => ADD,
                "DEL" => DEL,
                "CHECK" => None,
                _ => SMALL,
            };
            match refused {
                None => table::compare(kind, &Series::new(ours), &Series::new(rival), goal),
                Some(why) => table::missing(kind, &why),
            }
        }
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

    fn at_once(&self, workers: usize, count: usize, rounds: usize) -> Result<()> {
        let mut add = [Block::default(), Block::default()];
        let mut del = [Block::default(), Block::default()];
        let mut gone = [Duration::ZERO; 2];
        for round in 0..rounds {
            for side in self.sides(round) {
                let which = usize::from(!std::ptr::eq(side, &raw const self.ours));
                add[which].take(self.block(side, "ADD", workers, count)?);
                let start = Instant::now();
                del[which].take(self.block(side, "DEL", workers, count)?);
                side.settle(self.standing)?;
                gone[which] += start.elapsed();
            }
        }
        table::heading(&format!(
            "{workers} at a time, {} pods on the node",
            self.standing
        ));
        let total = (rounds * count) as f64;
        let rates =
            |[ours, rival]: &[Block; 2]| (total / ours.wall.as_secs_f64(), total / rival.wall.as_secs_f64());
        let (add_rates, del_rates) = (rates(&add), rates(&del));
        let [ours, rival] = add.map(|block| Series::new(block.times));
        table::compare("ADD", &ours, &rival, None);
        let [ours, rival] = del.map(|block| Series::new(block.times));
        table::compare("DEL", &ours, &rival, None);
        table::numbers("ADD a second", add_rates.0, add_rates.1, RATE);
        table::numbers("DEL a second", del_rates.0, del_rates.1, None);
        let [ours, rival] = gone.map(|wall| total / wall.as_secs_f64());
        table::numbers("DEL a second, until devices are gone", ours, rival, None);
        Ok(())
    }

    /// `count` pods attached or detached by `workers` threads.
    fn block(&self, side: &Side, verb: &str, workers: usize, count: usize) -> Result<Block> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(count));
        let work = || -> Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                let pod = self.pod(side, &format!("spare{index}"));
                let took = side.call(verb, &pod, &pod, None)?.took;
                done.lock().map_err(|_| anyhow!("a worker panicked"))?.push(took);
            }
        };
        let start = Instant::now();
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            running
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
        })
        .with_context(|| format!("{workers} × {verb}"))?;
        let wall = start.elapsed();
        let times = done.into_inner().map_err(|_| anyhow!("a worker panicked"))?;
        Ok(Block { times, wall })
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

/// A block of calls made by several workers.
#[derive(Default)]
struct Block {
    times: Vec<Duration>,
    wall: Duration,
}

impl Block {
    fn take(&mut self, other: Self) {
        self.times.extend(other.times);
        self.wall += other.wall;
    }
}
