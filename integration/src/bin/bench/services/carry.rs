//! What it costs a packet that it is counted for its Service: processor time of who sends it, with the counters and without.
//!
//! The sender's thread carries its packets through the node's tables itself, up to where they are dropped in front of the endpoint.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::{Lab, Node, Place, eventually, limit};
use flannel_netlink::Netns;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::city;
use crate::table;

/// Bytes of a packet behind its headers.
const SIZE: usize = 64;
/// Packets of one measurement.
const PACKETS: u32 = 100_000;
/// Measurements of each kind, by turns.
const ROUNDS: usize = 11;
const SERVICES: &str = "/coreos.com/network/services/v1";
const CLIENT: &str = "counted-client";
const SERVER: &str = "counted-server";
const ENDPOINT: &str = "192.0.2.130";
/// Where packets to Services are counted on their way out.
const CHAIN: &str = "ip flannel-services-nat count-postrouting";
/// The rule in it.
const RULE: &str = "ct status dnat jump carried";

/// Measures and prints; leaves neither Services nor tables.
pub fn measure(lab: &Lab) -> Result<()> {
    let node = lab.node(1)?;
    join(node)?;
    programme(lab, node)?;
    let netns = Netns::open(format!("/run/netns/{CLIENT}"))?;
    let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.connect((city::virtual_ip(0), 53))?;
    let counted = format!("nft 'flush chain {CHAIN}; add rule {CHAIN} {RULE}'");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        node.shell(&format!("nft flush chain {CHAIN}"))?;
        without.push(a_packet(&socket)?);
        node.shell(&counted)?;
        with.push(a_packet(&socket)?);
    }
    check_counted(node)?;
    let mut more: Vec<f64> = with
        .iter()
        .zip(&without)
        .map(|(with, without)| with - without)
        .collect();
    table::most(
        "a packet of 64 bytes to a Service, its sender included",
        median(&mut without),
        "ns",
        None,
    );
    table::most("the same where it is counted", median(&mut with), "ns", None);
    table::most("the difference, measured in pairs", median(&mut more), "ns", None);
    for netns in [CLIENT, SERVER] {
        Place::sandbox().run(&["ip", "netns", "delete", netns])?;
    }
    node.run(&["nft", "delete", "table", "ip", "flannel-services-nat"])?;
    lab.etcd().delete_prefix(&format!("{SERVICES}/"))
}

/// A client and a server beside the node.
fn join(node: &Node) -> Result<()> {
    let (operator, on_node) = (Place::sandbox(), node.name());
    for (n, (netns, device)) in [(CLIENT, "counted0"), (SERVER, "counted1")]
        .into_iter()
        .enumerate()
    {
        let (gateway, own) = (
            format!("192.0.2.{}", 128 * n + 1),
            format!("192.0.2.{}", 128 * n + 2),
        );
        operator.shell(&format!(
            "ip netns add {netns}; ip -n {on_node} link add {device} type veth peer name eth0 netns {netns}
             ip -n {on_node} address add {gateway}/25 dev {device}; ip -n {on_node} link set {device} up
             ip -n {netns} address add {own}/25 dev eth0; ip -n {netns} link set eth0 up
             ip -n {netns} route add default via {gateway}"
        ))?;
    }
    // nobody reads them, and nobody says so
    let sink = "add table ip sink; add chain ip sink drop-all { type filter hook prerouting priority -400; }
                add rule ip sink drop-all udp dport 53 drop";
    Place::netns(SERVER).run(&["nft", sink]).map(drop)
}

/// The daemon writes the table and goes, so that it does not put right what is changed here.
fn programme(lab: &Lab, node: &Node) -> Result<()> {
    let spec = json!({"clusterIP": city::virtual_ip(0), "ports": [{"port": 53, "protocol": "UDP"}]});
    let (config, ranges) = city::config();
    let records = [
        (config, Some(ranges)),
        (format!("{SERVICES}/spec/bench/counted"), Some(spec.to_string())),
        (
            format!("{SERVICES}/endpoints/bench/counted/-/{ENDPOINT}:53"),
            Some("{}".to_owned()),
        ),
    ];
    lab.etcd().apply(&records)?;
    let daemon = node.start_flanneld(super::ARGUMENTS)?;
    eventually(limit(30), "the Service in the table", || {
        let map = node.run(&["nft", "list", "map", "ip", "flannel-services-nat", "backends"])?;
        ensure!(map.contains(ENDPOINT), "{map}");
        Ok(())
    })?;
    daemon.kill()
}

/// Nanoseconds of this thread for a packet.
fn a_packet(socket: &UdpSocket) -> Result<f64> {
    let packet = [0; SIZE];
    let begin = processor();
    for _ in 0..PACKETS {
        socket.send(&packet)?;
    }
    let used = processor().saturating_sub(begin);
    Ok(used.as_secs_f64() * 1e9 / f64::from(PACKETS))
}

fn processor() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Exactly the packets of the rounds with counters were counted.
fn check_counted(node: &Node) -> Result<()> {
    let set = node.run(&["nft", "list", "set", "ip", "flannel-services-nat", "received"])?;
    let mut words = set.split_whitespace().skip_while(|word| *word != "packets");
    let packets = words.nth(1).and_then(|word| word.parse().ok());
    let packets: u32 = packets.with_context(|| set.clone())?;
    let sent = PACKETS * u32::try_from(ROUNDS)?;
    ensure!(packets == sent, "{packets} of {sent} packets were counted");
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
