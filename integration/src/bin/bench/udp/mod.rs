//! The data path of the udp backend beside a forwarder of flannel's algorithm (one packet a system call), the kernel's VXLAN, with
//! transmit checksum offload and without, and without an outer checksum, and plain routing (host-gw). `ours-none` is ours as on a kernel
//! without any offload.
//!
//! Each contender has two nodes of its own, each with a pod behind a veth on a bridge. Two underlays: `nic` passes super-packets
//! whole, as a NIC with offloads for tunnels does; `wire` cuts everything to packets of the MTU, as a NIC without them.

mod measure;
mod pair;

use anyhow::Result;

use crate::table;
use measure::{Figure, Figures};
use pair::{DataPath, Pair, Underlay};

const ROUNDS: usize = 5;

/// How many times the rival's figure ours should be; for latency and CPU how many times less.
struct Goal {
    underlay: Underlay,
    rival: DataPath,
    figure: Figure,
    times: f64,
}

const GOALS: &[Goal] = &[
    goal(Underlay::Wire, DataPath::Plain, Figure::Tcp1, 5.0),
    goal(Underlay::Wire, DataPath::Vxlan, Figure::Tcp1, 1.0),
    goal(Underlay::Wire, DataPath::Plain, Figure::Udp64, 3.0),
    goal(Underlay::Wire, DataPath::Vxlan, Figure::Udp64, 1.5),
    goal(Underlay::Wire, DataPath::Plain, Figure::Half, 1.0),
    goal(Underlay::Wire, DataPath::Plain, Figure::Cpu, 4.0),
    goal(Underlay::Nic, DataPath::Plain, Figure::Tcp1, 8.0),
    goal(Underlay::Nic, DataPath::Plain, Figure::Udp64, 3.0),
    goal(Underlay::Nic, DataPath::Vxlan, Figure::Udp64, 1.5),
    goal(Underlay::Nic, DataPath::Plain, Figure::Half, 1.0),
    goal(Underlay::Nic, DataPath::Plain, Figure::Cpu, 4.0),
];

const fn goal(underlay: Underlay, rival: DataPath, figure: Figure, times: f64) -> Goal {
    Goal {
        underlay,
        rival,
        figure,
        times,
    }
}

/// Runs the suite.
pub fn run() -> Result<()> {
    for underlay in [Underlay::Wire, Underlay::Nic] {
        on(underlay)?;
    }
    Ok(())
}

fn on(underlay: Underlay) -> Result<()> {
    let pairs = DataPath::ALL
        .iter()
        .map(|path| Pair::new(*path, underlay))
        .collect::<Result<Vec<_>>>()?;
    let mut figures: Vec<Figures> = pairs.iter().map(|_| Figures::default()).collect();
    for round in 0..ROUNDS {
        for (pair, figures) in pairs.iter().zip(&mut figures) {
            measure::round(pair, figures)?;
        }
        println!("underlay {}: round {} of {ROUNDS}", underlay.name(), round + 1);
    }
    show(underlay, &figures);
    Ok(())
}

fn show(underlay: Underlay, figures: &[Figures]) {
    println!(
        "\n-- underlay {}: medians of {ROUNDS} alternating rounds",
        underlay.name()
    );
    print!("{:<26}", "");
    for path in DataPath::ALL {
        print!(" {:>11}", path.name());
    }
    println!();
    for figure in Figure::ALL {
        print!("{:<26}", figure.name());
        for of_path in figures {
            print!(" {:>11}", figure.text(of_path.median(*figure)));
        }
        println!();
    }
    for rival in [
        DataPath::Plain,
        DataPath::Vxlan,
        DataPath::HostGw,
        DataPath::OursPlain,
    ] {
        println!("\nours beside {}, × (above 1 ours is better)", rival.name());
        for figure in Figure::ALL {
            let of = |path: DataPath| {
                let at = DataPath::ALL.iter().position(|other| *other == path)?;
                figures.get(at)?.median(*figure)
            };
            let goal = GOALS
                .iter()
                .find(|goal| goal.underlay == underlay && goal.rival == rival && goal.figure == *figure)
                .map(|goal| goal.times);
            match (of(DataPath::Ours), of(rival)) {
                (Some(ours), Some(theirs)) if figure.less_is_better() => {
                    table::ratio(figure.name(), theirs / ours, goal);
                }
                (Some(ours), Some(theirs)) => table::ratio(figure.name(), ours / theirs, goal),
                // The kernel's paths have no process of their own.
                _ if *figure == Figure::OwnCpu => {}
                _ => table::missing(figure.name(), "no round ended"),
            }
        }
    }
}
