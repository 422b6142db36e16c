//! Kernels that have less: each node is told to ask for another part of the offloads, as if the kernel had no more. Packets of both
//! families arrive between all of them.

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pod, eventually, limit, sandbox};
use serde_json::Value;

use super::DUAL;
use crate::cases::common::await_ping;
use crate::cases::dual_stack::ipv6_of;

/// What each node asks for, and what it says that it has.
const NODES: [(&str, &str); 4] = [
    ("all", "tso,uso,udp-segment,udp-gro"),
    // One packet a system call, as before Linux 4.18 and without IFF_VNET_HDR.
    ("none", "offloads=none"),
    // Linux before 6.2, and no trains on the socket.
    ("tso", "offloads=tso"),
    // A plain device beside trains.
    ("udp-segment,udp-gro", "offloads=udp-segment,udp-gro"),
];

pub fn every_fallback_carries_both_families() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(NODES.len()).ipv6().config(DUAL))?;
    let mut daemons: Vec<Flanneld> = Vec::new();
    let mut pods = Vec::new();
    for (node, (asked, has)) in lab.nodes().iter().zip(NODES) {
        let mut daemon = node.start_ready_flanneld(&["--ip-masq", &format!("--udp-offloads={asked}")])?;
        daemon.wait_log("flannel0 is open")?;
        let log = daemon.log()?;
        let line = log
            .lines()
            .find(|line| line.contains("flannel0 is open"))
            .context("no line of the device")?;
        ensure!(line.contains(has), "asked for {asked}: {line}");
        daemons.push(daemon);
        pods.push(node.add_pod(&format!("pod-{}", daemons.len()))?);
    }
    let _servers = pods
        .iter()
        .map(|pod| pod.spawn("iperf3", &["iperf3", "-s"], &Environment::default()))
        .collect::<Result<Vec<_>>>()?;
    for (from, to) in pairs(&pods) {
        let ipv6 = ipv6_of(to)?;
        for target in [to.ip(), &ipv6] {
            await_ping(from, target)?;
            for protocol in [&["-n", "2M"][..], &["-u", "-b", "0", "-l", "1400", "-n", "500K"]] {
                bulk(from, target, protocol)
                    .with_context(|| format!("{} to {} ({target})", from.name(), to.name()))?;
            }
        }
    }
    for (node, (asked, _)) in lab.nodes().iter().zip(NODES) {
        status_says(node, asked)?;
    }
    daemons.iter_mut().try_for_each(Flanneld::check_running)
}

/// flannelctl on the node names what is in use, who the peers are and that packets went both ways.
fn status_says(node: &Node, asked: &str) -> Result<()> {
    let program = format!("{}/flannelctl", sandbox::BINARIES);
    eventually(limit(10), "the status of the data path", || {
        let text = node.run(&[&program, "-o", "json", "status"])?;
        let report: Value = serde_json::from_str(&text)?;
        let udp = &report["udp"];
        for offload in ["tso", "uso", "udp-segment", "udp-gro"] {
            let expected = asked == "all" || asked.split(',').any(|name| name == offload);
            ensure!(udp["offloads"][offload] == expected, "asked for {asked}: {udp}");
        }
        let peers = udp["peers"].as_array().context("no peers")?;
        ensure!(
            peers.len() == NODES.len() - 1
                && peers[0]["subnets"].as_array().is_some_and(|all| all.len() == 2),
            "{udp}"
        );
        let packets = |name: &str| udp[name].as_u64().unwrap_or(0);
        ensure!(
            packets("sentPackets") > 100 && packets("receivedPackets") > 100,
            "{udp}"
        );
        Ok(())
    })
}

/// The first with each other one in both directions, and the poorest two.
fn pairs(pods: &[Pod]) -> Vec<(&Pod, &Pod)> {
    let (first, rest) = (&pods[0], &pods[1..]);
    let mut pairs: Vec<_> = rest.iter().flat_map(|pod| [(first, pod), (pod, first)]).collect();
    pairs.push((&pods[1], &pods[3]));
    pairs
}

/// Some megabytes, of which all must arrive for TCP, and most for UDP without any rate.
fn bulk(from: &Pod, target: &str, arguments: &[&str]) -> Result<()> {
    let argv = [&["iperf3", "-J", "-c", target][..], arguments].concat();
    eventually(limit(20), "iperf3", || {
        let report = from.exec_within(&argv, 30)?.json()?;
        ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
        let sent = report["end"]["sum_sent"]["bytes"].as_f64();
        let sum = report["end"].get("sum_received").unwrap_or(&report["end"]["sum"]);
        let arrived = sum["bytes"].as_f64();
        let (sent, arrived) = sent.zip(arrived).context("iperf3 named no bytes")?;
        ensure!(
            sent > 4e5 && arrived > 0.5 * sent,
            "{arrived} of {sent} bytes arrived"
        );
        Ok(())
    })
}
