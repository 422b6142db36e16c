//! The data paths between two nodes, side by side. Two suites: `udp`, the udp backend beside a forwarder of flannel's algorithm (one packet
//! a system call), the kernel's VXLAN and plain routing (host-gw); and `vxlan`, the kernel's VXLAN with one setting changed at a time.
//!
//! Each contender has two nodes of its own, each with a pod behind a veth on a bridge. Underlays: `nic` passes super-packets whole, as a NIC
//! with offloads for tunnels does; `wire` cuts everything to packets of the MTU, as a NIC without them, and merges nothing that arrives;
//! `gro` cuts as well, and has the generic receive offload that every NIC's driver has (NAPI).

mod campaign;
mod measure;
mod pair;

use anyhow::Result;

use campaign::{Campaign, Compare, Goal};
use measure::Figure;
use pair::{Change, DataPath, Underlay};

/// The goals on an underlay that cuts, which a NIC may be by either way of receiving.
const fn on_wire(underlay: Underlay) -> [Goal; 6] {
    [
        goal(underlay, DataPath::Plain, Figure::Tcp1, 5.0),
        goal(underlay, DataPath::Vxlan(Change::Nothing), Figure::Tcp1, 1.0),
        goal(underlay, DataPath::Plain, Figure::Udp64, 3.0),
        goal(underlay, DataPath::Vxlan(Change::Nothing), Figure::Udp64, 1.5),
        goal(underlay, DataPath::Plain, Figure::Half, 1.0),
        goal(underlay, DataPath::Plain, Figure::Cpu, 4.0),
    ]
}

const ON_NIC: [Goal; 5] = [
    goal(Underlay::Nic, DataPath::Plain, Figure::Tcp1, 8.0),
    goal(Underlay::Nic, DataPath::Plain, Figure::Udp64, 3.0),
    goal(
        Underlay::Nic,
        DataPath::Vxlan(Change::Nothing),
        Figure::Udp64,
        1.5,
    ),
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

/// Runs the suite of the udp backend. `ours` is what flanneld opens on two processors, `ours-2q` the same with two queues; `ours-none` is ours as on a kernel without any offload.
pub fn run() -> Result<()> {
    Campaign {
        compare: Compare::FirstWithOthers,
        underlays: &[Underlay::Wire, Underlay::Gro, Underlay::Nic],
        paths: &[
            DataPath::Ours,
            DataPath::OursTwoQueues,
            DataPath::OursPlain,
            DataPath::Plain,
            DataPath::Vxlan(Change::Nothing),
            DataPath::Vxlan(Change::NoOffload),
            DataPath::HostGw,
        ],
        figures: Figure::ALL,
        goals: &[&on_wire(Underlay::Wire)[..], &on_wire(Underlay::Gro), &ON_NIC].concat(),
    }
    .run()
}

/// Runs the suite of the kernel's VXLAN: each setting beside what flanneld makes by default.
pub fn run_vxlan() -> Result<()> {
    Campaign {
        compare: Compare::OthersWithFirst,
        underlays: &[Underlay::Gro, Underlay::Nic],
        paths: DataPath::ALL_VXLAN,
        figures: Figure::FEW,
        goals: &[],
    }
    .run()
}
