//! Many calls at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{KINDS, Match, RATE, SMALL, Side, goal};
use crate::stats::Series;
use crate::table;

/// A block of calls made by several workers.
#[derive(Default)]
struct Block {
    times: Vec<Duration>,
    wall: Duration,
}

/// The blocks of a life of many pods, in the order of [`KINDS`].
#[derive(Default)]
struct Blocks {
    kinds: [Block; 5],
    /// From the first DEL until the kernel has removed the last device.
    gone: Duration,
    refused: Option<String>,
}

impl Match {
    /// `count` pods come and go in each of `rounds`, by `workers` at a time.
    pub fn at_once(&self, workers: usize, count: usize, rounds: usize) -> Result<()> {
        let mut blocks = [Blocks::default(), Blocks::default()];
        for round in 0..rounds {
            for side in self.sides(round) {
                let which = usize::from(!std::ptr::eq(side, &raw const self.ours));
                let lives = Lives {
                    side,
                    workers,
                    count,
                    results: (0..count).map(|_| Mutex::default()).collect(),
                };
                lives.run(self, &mut blocks[which])?;
            }
        }
        let title = format!("{workers} at a time, {} pods on the node", self.standing);
        table::heading(&title);
        let total = (rounds * count) as f64;
        let [ours, rival] = blocks;
        let rate = |block: &Block| total / block.wall.as_secs_f64();
        let rates = |index: usize| (rate(&ours.kinds[index]), rate(&rival.kinds[index]));
        let (adds, dels) = (rates(0), rates(2));
        let gone = [&ours, &rival].map(|side| total / side.gone.as_secs_f64());
        let refused = rival.refused;
        for ((kind, ours), rival) in KINDS.iter().zip(ours.kinds).zip(rival.kinds) {
            match refused.as_ref().filter(|_| *kind == "CHECK") {
                Some(why) => table::missing(kind, why),
                None => {
                    let wanted = goal(kind).filter(|wanted| Some(*wanted) == SMALL);
                    table::compare(kind, &Series::new(ours.times), &Series::new(rival.times), wanted);
                }
            }
        }
        table::numbers("ADD a second", adds.0, adds.1, RATE);
        table::numbers("DEL a second", dels.0, dels.1, None);
        table::numbers("DEL a second, until devices are gone", gone[0], gone[1], None);
        Ok(())
    }
}

/// Pods that come and go together on one side.
struct Lives<'a> {
    side: &'a Side,
    workers: usize,
    count: usize,
    /// What each ADD printed.
    results: Vec<Mutex<String>>,
}

impl Lives<'_> {
    fn run(&self, of: &Match, blocks: &mut Blocks) -> Result<()> {
        for (index, kind) in KINDS.iter().enumerate() {
            let start = Instant::now();
            let done = self.block(of, kind);
            // Not every version of every plugin has a CHECK that passes.
            let done = match (*kind, done) {
                ("CHECK", Err(error)) => {
                    blocks.refused = Some(format!("{error:#}"));
                    continue;
                }
                (_, done) => done?,
            };
            blocks.kinds[index].times.extend(done.times);
            blocks.kinds[index].wall += done.wall;
            if *kind == "DEL" {
                self.side.settle(of.standing)?;
                blocks.gone += start.elapsed();
            }
        }
        Ok(())
    }

    fn block(&self, of: &Match, kind: &str) -> Result<Block> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(self.count));
        let work = || -> Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.count {
                    return Ok(());
                }
                let took = self.call(of, kind, index)?;
                done.lock().map_err(|_| anyhow!("a worker panicked"))?.push(took);
            }
        };
        let start = Instant::now();
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..self.workers).map(|_| scope.spawn(work)).collect();
            running
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
        })
        .with_context(|| format!("{} × {kind}", self.workers))?;
        let wall = start.elapsed();
        let times = done.into_inner().map_err(|_| anyhow!("a worker panicked"))?;
        Ok(Block { times, wall })
    }

    fn call(&self, of: &Match, kind: &str, index: usize) -> Result<Duration> {
        let pod = of.pod(self.side, &format!("spare{index}"));
        let mut result = self.results[index]
            .lock()
            .map_err(|_| anyhow!("a worker panicked"))?;
        let verb = kind.split(' ').next().unwrap_or(kind);
        let previous = Some(result.as_str()).filter(|_| matches!(verb, "CHECK" | "DEL"));
        let answer = self.side.call(verb, &pod, &pod, previous)?;
        if verb == "ADD" {
            *result = answer.stdout;
        }
        Ok(answer.took)
    }
}
