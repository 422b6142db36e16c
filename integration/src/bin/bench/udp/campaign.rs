//! Contenders measured in turn, and what came of it.

use anyhow::{Context, Result, ensure};

use super::measure::{self, Congestion, Figure, Figures};
use super::pair::{DataPath, Pair, Underlay};
use crate::table;

const ROUNDS: usize = 5;
/// What the environment may change: the number of rounds, and names with commas between them.
const ROUNDS_VARIABLE: &str = "BENCH_ROUNDS";
const PATHS_VARIABLE: &str = "BENCH_PATHS";
const UNDERLAYS_VARIABLE: &str = "BENCH_UNDERLAYS";

/// How many times the rival's figure the first contender's should be; for latency and CPU how many times less.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    pub underlay: Underlay,
    pub rival: DataPath,
    pub figure: Figure,
    pub times: f64,
}

/// What is compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// The first path with each of the others.
    FirstWithOthers,
    /// Each of the others with the first.
    OthersWithFirst,
}

/// What is measured beside what.
pub struct Campaign<'a> {
    pub compare: Compare,
    pub underlays: &'a [Underlay],
    pub paths: &'a [DataPath],
    pub figures: &'a [Figure],
    pub goals: &'a [Goal],
}

impl Campaign<'_> {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        let rounds = match std::env::var(ROUNDS_VARIABLE) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{ROUNDS_VARIABLE} is {text:?}; expected a number"))?,
            Err(_) => ROUNDS,
        };
        let congestion = Congestion::of_machine()?;
        println!("TCP        congestion control {congestion}");
        let paths = named(PATHS_VARIABLE, self.paths, DataPath::name)?;
        for underlay in named(UNDERLAYS_VARIABLE, self.underlays, Underlay::name)? {
            self.on(underlay, &paths, rounds, &congestion)?;
        }
        Ok(())
    }

    fn on(
        &self,
        underlay: Underlay,
        paths: &[DataPath],
        rounds: usize,
        congestion: &Congestion,
    ) -> Result<()> {
        let pairs = paths
            .iter()
            .map(|path| Pair::new(*path, underlay))
            .collect::<Result<Vec<_>>>()?;
        let mut figures: Vec<Figures> = pairs.iter().map(|_| Figures::default()).collect();
        for round in 0..rounds {
            for (pair, figures) in pairs.iter().zip(&mut figures) {
                measure::round(pair, self.figures, congestion, figures)?;
            }
            println!("underlay {}: round {} of {rounds}", underlay.name(), round + 1);
        }
        println!(
            "\n-- underlay {}: medians of {rounds} alternating rounds",
            underlay.name()
        );
        self.show(underlay, paths, &figures);
        Ok(())
    }

    fn show(&self, underlay: Underlay, paths: &[DataPath], figures: &[Figures]) {
        print!("{:<26}", "");
        for path in paths {
            print!(" {:>11}", path.name());
        }
        println!();
        for figure in self.figures {
            print!("{:<26}", figure.name());
            for of_path in figures {
                print!(" {:>11}", figure.text(of_path.median(*figure)));
            }
            println!();
        }
        let (Some(first), Some(of_first)) = (paths.first(), figures.first()) else {
            return;
        };
        for (other, of_other) in paths.iter().zip(figures).skip(1) {
            match self.compare {
                Compare::FirstWithOthers => self.ratios(underlay, (first, of_first), (other, of_other)),
                Compare::OthersWithFirst => self.ratios(underlay, (other, of_other), (first, of_first)),
            }
        }
    }

    fn ratios(&self, underlay: Underlay, ours: (&DataPath, &Figures), rival: (&DataPath, &Figures)) {
        let (name, rival_name) = (ours.0.name(), rival.0.name());
        println!("\n{name} beside {rival_name}, × (above 1 {name} is better; medians of the rounds' ratios)");
        for figure in self.figures {
            let goal = self
                .goals
                .iter()
                .find(|goal| goal.underlay == underlay && goal.rival == *rival.0 && goal.figure == *figure);
            match ours.1.times(rival.1, *figure) {
                Some(times) => table::ratio(figure.name(), times, goal.map(|goal| goal.times)),
                // The kernel's paths have no process of their own, and the host may have the usual congestion control.
                None if figure.is_of_forwarders() || *figure == Figure::TcpOfHost => {}
                None => table::missing(figure.name(), "no round ended"),
            }
        }
    }
}

/// Those of `all` that the environment names, all of them without it. The order is that of `all`.
fn named<T: Copy>(variable: &str, all: &[T], name: fn(T) -> &'static str) -> Result<Vec<T>> {
    let Ok(text) = std::env::var(variable) else {
        return Ok(all.to_vec());
    };
    let wanted: Vec<&str> = text.split(',').map(str::trim).collect();
    let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
    for one in &wanted {
        ensure!(
            names.contains(one),
            "{variable} has {one:?}; expected some of {}",
            names.join(",")
        );
    }
    let chosen = all.iter().filter(|one| wanted.contains(&name(**one)));
    Ok(chosen.copied().collect())
}
