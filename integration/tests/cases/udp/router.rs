//! The node as a router of pods' packets, over an underlay with a router of its own between the nodes.

use anyhow::{Context, Result, ensure};
use flannel_lab::capture::Capture;
use flannel_lab::lab::{OPERATOR_ADDRESS, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Place, Pod, eventually, limit, sandbox};

use super::{DUAL, base, drops, lease};
use crate::cases::common::await_ping;
use crate::cases::dual_stack::ipv6_of;

/// The TOS of `ping -Q`: expedited forwarding (DSCP 46, RFC 3246) and ECT(1).
const EF_ECT1: u8 = 0xb9;
const EF_CE: u8 = 0xbb;

struct Routed {
    lab: Lab,
    daemons: Vec<Flanneld>,
    one: Pod,
    two: Pod,
    router: Place,
}

/// Two nodes with pods of both families; what the first sends to the second passes the router.
fn routed() -> Result<Routed> {
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(DUAL))?;
    let router = Place::netns("router");
    let (first, second) = (lab.node(1)?, lab.node(2)?);
    let outside = router.shell(&format!(
        "ip -o route get {} | sed 's/.* src \\([^ ]*\\).*/\\1/'",
        first.address()
    ))?;
    router.shell("for f in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 > $f; done")?;
    first.shell(&format!(
        "ip route add {}/32 via {}",
        second.address(),
        outside.trim()
    ))?;
    let daemons = lab
        .nodes()
        .iter()
        .map(|node| node.start_ready_flanneld(&["--ip-masq", "--healthz-port=9009"]))
        .collect::<Result<_>>()?;
    let (one, two) = (first.add_pod("one")?, second.add_pod("two")?);
    await_ping(&one, two.ip())?;
    await_ping(&one, &ipv6_of(&two)?)?;
    Ok(Routed {
        lab,
        daemons,
        one,
        two,
        router,
    })
}

/// What ping says of one packet.
fn told(pod: &Pod, arguments: &[&str]) -> Result<String> {
    let argv = [&["ping", "-n", "-c", "1", "-W", "2"][..], arguments].concat();
    Ok(pod.exec(&argv)?.stdout)
}

/// A router on the way carries only 1300 bytes and says so: the node learns it and tells the pods, each family its own number. What may
/// be fragmented arrives all the same, and so does every IPv6 packet of 1280 bytes.
pub fn a_smaller_hop_on_the_way_is_learned() -> Result<()> {
    let mut scene = routed()?;
    let second = scene.lab.node(2)?;
    let device = scene.router.shell(&format!(
        "ip -o route get {} | sed 's/.* dev \\([^ ]*\\).*/\\1/'",
        second.address()
    ))?;
    scene.router.shell(&format!(
        "ip route add {}/32 dev {} mtu lock 1300",
        second.address(),
        device.trim()
    ))?;
    let (ipv4, ipv6) = (scene.two.ip().to_owned(), ipv6_of(&scene.two)?);
    let node = scene.lab.node(1)?;
    let overlay = base(&lease(&scene.lab, node)?.0).to_owned();
    for (target, from, mtu) in [(&ipv4, overlay.as_str(), "1272"), (&ipv6, "fd00:5:", "1280")] {
        eventually(limit(30), &format!("{target}: to be told of {mtu} bytes"), || {
            let answer = told(&scene.one, &["-M", "do", "-s", "1400", target])?;
            let line = answer.lines().find(|line| line.starts_with("From "));
            let line = line.with_context(|| answer.clone())?;
            ensure!(
                line.starts_with(&format!("From {from}")) && line.contains(&format!("mtu = {mtu}"))
                    || line.contains(&format!("mtu={mtu}")),
                "{answer}"
            );
            Ok(())
        })?;
    }
    // Without DF the underlay fragments; the longest IPv6 packet that every link must carry is longer than this one does.
    for arguments in [
        ["-M", "dont", "-s", "1440", &ipv4],
        ["-M", "do", "-s", "1232", &ipv6],
    ] {
        let answer = told(&scene.one, &arguments)?;
        ensure!(answer.contains("1 received"), "{arguments:?}: {answer}");
    }
    let moved = flannel_lab::transfer(&scene.one, &scene.two, 1)?.bytes;
    ensure!(moved > 1e6, "only {moved} bytes");
    ensure!(drops(node, "too_big")? >= 2, "not counted");
    scene.daemons.iter_mut().try_for_each(Flanneld::check_running)
}

/// Both families are told of a hop limit that ran out and of an address that no node has, by the node's own overlay address.
pub fn errors_come_from_the_node_in_both_families() -> Result<()> {
    let scene = routed()?;
    let node = scene.lab.node(1)?;
    let overlay = base(&lease(&scene.lab, node)?.0).to_owned();
    let ipv6 = ipv6_of(&scene.two)?;
    let unreachable = "net unreachable";
    let cases = [
        (
            vec!["-t", "2", scene.two.ip()],
            overlay.as_str(),
            "time to live exceeded",
            "ttl_exceeded",
        ),
        (
            vec!["-t", "2", &ipv6],
            "fd00:5:",
            "time exceeded: hop limit",
            "ttl_exceeded",
        ),
        (vec!["10.5.250.9"], overlay.as_str(), unreachable, "no_route"),
        (vec!["fd00:5:0:fafa::9"], "fd00:5:", "no route", "no_route"),
    ];
    for (arguments, from, says, reason) in cases {
        let before = drops(node, reason)?;
        let answer = told(&scene.one, &arguments)?;
        ensure!(
            answer.contains(&format!("From {from}")) && answer.to_lowercase().contains(says),
            "{arguments:?}: {answer}"
        );
        assert_eq!(drops(node, reason)?, before + 1, "{reason}");
    }
    Ok(())
}

/// DSCP and ECN of the inner packet are the outer packet's, and congestion that the underlay marks is the inner packet's at the end
/// (RFC 6040); a packet whose transport knows no ECN is dropped then, and counted.
pub fn dscp_and_ecn_are_carried() -> Result<()> {
    let scene = routed()?;
    let second = scene.lab.node(2)?;
    let ipv6 = ipv6_of(&scene.two)?;
    let wire = Capture::start(second, "eth0", "udp port 8285")?;
    for target in [scene.two.ip(), &ipv6] {
        let answer = told(&scene.one, &["-Q", "0xb9", target])?;
        ensure!(answer.contains("1 received"), "{answer}");
    }
    let outer: Vec<u8> = wire
        .stop()?
        .iter()
        .filter(|p| p[12..16] == first(&scene))
        .map(|p| p[1])
        .collect();
    assert_eq!(outer, [EF_ECT1; 2], "outer TOS of the requests");
    // The router is congested and marks everything.
    scene.router.shell(
        "nft -f - <<'END'\n\
         table ip congested {\n\
         chain forward { type filter hook forward priority 0; udp dport 8285 ip ecn set ce\n}\n}\nEND",
    )?;
    let inner = Capture::start(&scene.two, "eth0", "icmp or icmp6")?;
    for target in [scene.two.ip(), &ipv6] {
        told(&scene.one, &["-Q", "0xb9", target])?;
    }
    let marked = inner.stop()?;
    let requests: Vec<u8> = marked
        .iter()
        .filter(|packet| is_request(packet))
        .map(|p| tos(p))
        .collect();
    assert_eq!(requests, [EF_CE; 2], "inner TOS of the requests");
    let before = drops(second, "congestion_not_ect")?;
    let answer = told(&scene.one, &["-Q", "0xb8", scene.two.ip()])?;
    ensure!(answer.contains("0 received"), "{answer}");
    assert_eq!(drops(second, "congestion_not_ect")?, before + 1);
    Ok(())
}

fn first(scene: &Routed) -> [u8; 4] {
    let address = scene.lab.node(1).map(Node::address).unwrap_or_default();
    address
        .parse::<std::net::Ipv4Addr>()
        .map(|a| a.octets())
        .unwrap_or_default()
}

fn tos(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[1],
        _ => packet[0] << 4 | packet[1] >> 4,
    }
}

fn is_request(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => packet[9] == 1 && packet[20] == 8,
        _ => packet[6] == 58 && packet[40] == 128,
    }
}

/// What a peer sends to addresses that are not this node's is not passed on: the node is no way to others.
pub fn packets_for_others_are_counted_and_go_nowhere() -> Result<()> {
    let (lab, daemons, _one, two) = super::two_nodes()?;
    let node = lab.node(1)?;
    let value = format!(r#"{{"PublicIP":"{OPERATOR_ADDRESS}","PublicIPv6":null}}"#);
    lab.etcd()
        .put_leased(&format!("{SUBNETS_PREFIX}10.5.99.0-24"), &value, 86_400)?;
    let mut daemons = daemons;
    daemons[0].wait_log("knows the peers subnets=2")?;
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    let seen = Capture::start(&two, "eth0", "icmp and src net 10.5.99.0/24")?;
    // The other node's pod, the underlay, and an address outside.
    for target in [two.ip(), lab.node(2)?.address(), "192.0.2.1"] {
        Place::sandbox().run(&[
            &program,
            "send",
            &format!("{OPERATOR_ADDRESS}:8285"),
            &format!("{}:8285", node.address()),
            "10.5.99.9",
            target,
        ])?;
    }
    eventually(limit(10), "three packets to be counted", || {
        let counted = drops(node, "destination_not_ours")?;
        ensure!(counted == 3, "{counted}");
        Ok(())
    })?;
    let passed = seen.stop()?;
    ensure!(passed.is_empty(), "passed on: {passed:02x?}");
    Ok(())
}
