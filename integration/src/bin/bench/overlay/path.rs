//! From pod to pod over nodes of ours, beside nodes with the same devices, routes and entries set up by hand.
//!
//! Each contender has two nodes of its own on one underlay and measures in turn. `ours` filters encapsulated packets, as it does by
//! default; `ours, masquerade` has `--ip-masq` too, which has the kernel track connections, as flannel's does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::lab::node_address;
use flannel_lab::pod::CNI_CONFIG;
use flannel_lab::{Flanneld, Lab, Node, Pod, Process, eventually, limit, sandbox};
use serde_json::Value;

use crate::table;

/// Nodes that this part needs, behind the first of the lab.
pub const NODES: usize = 2 * CONTENDERS.len() * BACKENDS.len();
const ROUNDS: usize = 7;
const TCP_SECONDS: &str = "1";
const STREAM_MS: &str = "500";
const EXCHANGES: &str = "8000";
const GOAL: f64 = 0.98;

/// Type, and largest packet of pods.
const BACKENDS: [(&str, u32); 2] = [("vxlan", 1450), ("host-gw", 1500)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    ByHand,
    Ours,
    OursMasquerading,
}

const CONTENDERS: [Contender; 3] = [Contender::ByHand, Contender::Ours, Contender::OursMasquerading];

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::ByHand => "by hand",
            Self::Ours => "ours",
            Self::OursMasquerading => "ours, masquerade",
        }
    }
}

/// What is measured: its name, and whether less is better.
const FIGURES: [(&str, bool); 4] = [
    ("TCP 1 stream, Gbit/s", false),
    ("UDP 64 B no loss, kpps", false),
    ("ping-pong p50, µs", true),
    ("ping-pong p99, µs", true),
];

/// Two nodes, a pod on each, and what runs there.
struct Pair {
    first: Pod,
    second: Pod,
    _daemons: Vec<Flanneld>,
    _running: Vec<Process>,
}

/// Runs this part.
pub fn run(lab: &Lab) -> Result<()> {
    let mut number = 2;
    for (index, (backend, mtu)) in BACKENDS.into_iter().enumerate() {
        let mut pairs = Vec::new();
        for contender in CONTENDERS {
            let nodes = [lab.node(number)?, lab.node(number + 1)?];
            let numbers = [number, number + 1];
            number += 2;
            let name = format!("{backend}-{}", contender as usize);
            let pair = match contender {
                Contender::ByHand => by_hand(nodes, numbers, (backend, mtu), &name),
                ours => {
                    // A network of its own for each: their nodes do not know each other.
                    let second = 20 + 10 * index + ours as usize;
                    let prefix = format!("/bench/{name}");
                    let config =
                        format!(r#"{{"Network":"10.{second}.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
                    lab.etcd().put(&format!("{prefix}/config"), config.as_str())?;
                    by_us(nodes, &prefix, ours, &name)
                }
            };
            pairs.push(pair.with_context(|| format!("{backend}, {}", contender.name()))?);
        }
        measure(backend, &pairs)?;
    }
    Ok(())
}

fn by_us(nodes: [&Node; 2], prefix: &str, contender: Contender, name: &str) -> Result<Pair> {
    let prefix = format!("--etcd-prefix={prefix}");
    let mut arguments = vec![prefix.as_str()];
    let mut config = CNI_CONFIG.to_owned();
    match contender {
        Contender::OursMasquerading => arguments.push("--ip-masq"),
        // Otherwise the plugin masquerades.
        _ => config = config.replace("\"hairpinMode\"", "\"ipMasq\":false,\"hairpinMode\""),
    }
    let mut daemons = Vec::new();
    for node in nodes {
        daemons.push(node.start_ready_flanneld(&arguments)?);
    }
    pods(nodes, &config, daemons, name)
}

/// What flannel does, with the tools of the system.
fn by_hand(nodes: [&Node; 2], numbers: [usize; 2], (backend, mtu): (&str, u32), name: &str) -> Result<Pair> {
    for (node, (own, other)) in nodes.into_iter().zip([(0, 1), (1, 0)]) {
        let (subnet, far) = (own + 1, other + 1);
        let (address, far_address) = (node_address(numbers[own]), node_address(numbers[other]));
        node.shell(&format!(
            "printf 'FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.{subnet}.1/24\\nFLANNEL_MTU={mtu}\\nFLANNEL_IPMASQ=true\\n' \
             > /run/flannel/subnet.env"
        ))?;
        let script = match backend {
            "vxlan" => format!(
                "ip link add flannel.1 address 02:00:00:00:00:0{subnet} mtu {mtu} type vxlan id 1 dev eth0 local {address} dstport 8472 nolearning; \
                 ip address add 10.5.{subnet}.0/32 dev flannel.1; ip link set flannel.1 up; \
                 ip neigh add 10.5.{far}.0 lladdr 02:00:00:00:00:0{far} dev flannel.1 nud permanent; \
                 bridge fdb add 02:00:00:00:00:0{far} dev flannel.1 dst {far_address} self permanent; \
                 ip route add 10.5.{far}.0/24 via 10.5.{far}.0 dev flannel.1 onlink"
            ),
            _ => format!("ip route add 10.5.{far}.0/24 via {far_address} dev eth0"),
        };
        node.shell(&script)?;
    }
    pods(nodes, CNI_CONFIG, Vec::new(), name)
}

fn pods(nodes: [&Node; 2], config: &str, daemons: Vec<Flanneld>, name: &str) -> Result<Pair> {
    let [first, second] = [
        nodes[0].add_pod_with(&format!("{name}-a"), config)?,
        nodes[1].add_pod_with(&format!("{name}-b"), config)?,
    ];
    let load = format!("{}/net-load", sandbox::BINARIES);
    let running = vec![
        second.spawn(
            &format!("{name}-iperf"),
            &["iperf3", "-s"],
            &Environment::default(),
        )?,
        second.spawn(
            &format!("{name}-load"),
            &[&load, "echo", "7777"],
            &Environment::default(),
        )?,
    ];
    eventually(limit(20), "the first packet between the pods", || {
        first.ping(second.ip())
    })?;
    Ok(Pair {
        first,
        second,
        _daemons: daemons,
        _running: running,
    })
}

fn measure(backend: &str, pairs: &[Pair]) -> Result<()> {
    let mut values = vec![vec![Vec::new(); FIGURES.len()]; pairs.len()];
    for round in 0..ROUNDS {
        // Who begins changes, so that nobody is always the one after a pause.
        for turn in 0..pairs.len() {
            let at = (round + turn) % pairs.len();
            for (figure, value) in once(&pairs[at])?.into_iter().enumerate() {
                values[at][figure].extend(value);
            }
        }
    }
    println!("\n-- {backend}, pod to pod: medians of {ROUNDS} alternating rounds");
    print!("{:<26}", "");
    for contender in CONTENDERS {
        print!(" {:>17}", contender.name());
    }
    println!();
    let medians: Vec<Vec<Option<f64>>> = values
        .iter()
        .map(|of| of.iter().map(|v| median(v)).collect())
        .collect();
    for (figure, (name, _)) in FIGURES.iter().enumerate() {
        print!("{name:<26}");
        for of_pair in &medians {
            print!(
                " {:>17}",
                of_pair[figure].map_or("–".into(), |value| format!("{value:.2}"))
            );
        }
        println!();
    }
    for contender in &CONTENDERS[1..] {
        println!("{} beside by hand, × (above 1 ours is better)", contender.name());
        for (figure, (name, less_is_better)) in FIGURES.iter().enumerate() {
            let hand = medians[0][figure];
            let own = medians[*contender as usize][figure];
            // The tail tells of the machine rather than of the path.
            let goal = (!name.contains("p99") && *contender == Contender::Ours).then_some(GOAL);
            match (own, hand) {
                (Some(own), Some(hand)) if *less_is_better => table::ratio(name, hand / own, goal),
                (Some(own), Some(hand)) => table::ratio(name, own / hand, goal),
                _ => table::missing(name, "no round ended"),
            }
        }
    }
    Ok(())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// One value a figure; none where a packet was lost that should not have been.
fn once(pair: &Pair) -> Result<[Option<f64>; FIGURES.len()]> {
    let rate = tcp(pair)?;
    let (stream, lost) = load(pair, &["stream", "ADDRESS", "64", STREAM_MS])?;
    let (half, high) = load(pair, &["pingpong", "ADDRESS", EXCHANGES])?;
    Ok([
        Some(rate / 1e9),
        (lost == 0.0).then_some(stream / 1e3),
        Some(half),
        Some(high),
    ])
}

/// Bits a second.
fn tcp(pair: &Pair) -> Result<f64> {
    let argv = ["iperf3", "-J", "-t", TCP_SECONDS, "-c", pair.second.ip()];
    // The server may be busy with the end of the run before.
    eventually(limit(20), "iperf3", || {
        let report: Value = pair.first.exec_within(&argv, 20)?.json()?;
        ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
        report["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .context("iperf3 named no rate")
    })
}

/// The two numbers that a load prints.
fn load(pair: &Pair, arguments: &[&str]) -> Result<(f64, f64)> {
    let program = format!("{}/net-load", sandbox::BINARIES);
    let address = format!("{}:7777", pair.second.ip());
    let arguments = arguments.iter().map(|argument| match *argument {
        "ADDRESS" => address.as_str(),
        other => other,
    });
    let argv: Vec<&str> = std::iter::once(program.as_str()).chain(arguments).collect();
    let seconds = limit(30).max(Duration::from_secs(1)).as_secs();
    let output = pair.first.exec_within(&argv, seconds)?.ok()?;
    let mut numbers = output.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(second))) => Ok((first, second)),
        _ => anyhow::bail!("net-load printed {output:?}"),
    }
}
