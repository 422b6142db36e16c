//! The udp backend: beside a peer of flannel's algorithm, every byte of what travels, restarts under traffic, hostile datagrams.

mod captured;
mod fallbacks;
mod flood;
mod model;
mod restart;
mod router;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::http;
use flannel_lab::lab::{CONFIG_KEY, OPERATOR_ADDRESS, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pinger, Place, Pod, Process, eventually, limit, sandbox};
use rustix::process::Signal;

use super::common::{await_ping, link, list, text};
pub use captured::every_byte_beside_a_plain_peer_is_the_models;
pub use fallbacks::every_fallback_carries_both_families;
pub use flood::a_peer_that_floods_does_not_starve_the_others;
pub use restart::{a_service_manager_keeps_the_descriptors, restarts_lose_no_packet};
pub use router::{
    a_smaller_hop_on_the_way_is_learned, dscp_and_ecn_are_carried,
    errors_come_from_the_node_in_both_families, packets_for_others_are_counted_and_go_nowhere,
};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
fn udp_lab(nodes: usize) -> Result<Lab> {
    Lab::new(&LabOptions::nodes(nodes).config(CONFIG))
}

/// The subnet of the one lease of `node`, such as 10.5.3.0/24, and its value.
fn lease(lab: &Lab, node: &Node) -> Result<(String, String)> {
    let holder = format!(r#""PublicIP":"{}""#, node.address());
    let entries = lab.etcd().list(SUBNETS_PREFIX)?;
    let own = entries.into_iter().find(|entry| entry.value.contains(&holder));
    let own = own.with_context(|| format!("no lease of {}", node.name()))?;
    let subnet = own
        .key
        .strip_prefix(SUBNETS_PREFIX)
        .context("not below the prefix")?;
    Ok((subnet.replace('-', "/"), own.value))
}

fn base(subnet: &str) -> &str {
    subnet.split('/').next().unwrap_or_default()
}

/// Two nodes of ours with a pod each that reach each other.
fn two_nodes() -> Result<(Lab, Vec<Flanneld>, Pod, Pod)> {
    let lab = udp_lab(2)?;
    let daemons = lab
        .nodes()
        .iter()
        .map(|node| node.start_ready_flanneld(&["--ip-masq", "--healthz-port=9009"]))
        .collect::<Result<_>>()?;
    let (one, two) = (lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?);
    await_ping(&one, two.ip())?;
    Ok((lab, daemons, one, two))
}

/// A node of ours and, beside it, a peer of flannel's algorithm: a host with a pod's address on the other side of its device.
struct Mixed {
    _daemon: Flanneld,
    _lab: Lab,
    pod: Pod,
    /// Our node.
    node: Place,
    peer: Place,
    forwarder: Process,
}

/// An address of the plain peer's subnet, which its host has itself.
const PLAIN: &str = "10.5.77.2";

fn mixed() -> Result<Mixed> {
    let lab = udp_lab(2)?;
    let (ours, theirs) = (lab.node(1)?, lab.node(2)?);
    let value = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, theirs.address());
    lab.etcd()
        .put_leased(&format!("{SUBNETS_PREFIX}10.5.77.0-24"), &value, 86_400)?;
    // Pods keep their addresses within the network.
    let daemon = ours.start_ready_flanneld(&["--ip-masq"])?;
    let subnet = lease(&lab, ours)?.0;
    let program = format!("{}/udp-forwarder", sandbox::BINARIES);
    let route = format!("{subnet}={}:8285", ours.address());
    let local = format!("{}:8285", theirs.address());
    let argv = [
        program.as_str(),
        "checking",
        "flannel0",
        &local,
        "10.5.77.0/24",
        &route,
    ];
    let forwarder = theirs.spawn("plain-forwarder", &argv, &Environment::default())?;
    eventually(limit(10), "the plain peer's device", || {
        theirs.shell("ip link show flannel0")
    })?;
    theirs.shell(&format!(
        "ip addr add {PLAIN}/32 dev flannel0; ip link set flannel0 mtu 1472 up; ip route add 10.5.0.0/16 dev flannel0"
    ))?;
    let pod = ours.add_pod("pod")?;
    await_ping(&pod, PLAIN)?;
    let peer = Place::netns(theirs.name());
    let node = Place::netns(ours.name());
    Ok(Mixed {
        node,
        _lab: lab,
        _daemon: daemon,
        pod,
        peer,
        forwarder,
    })
}

pub fn device_route_and_lease_are_flannels() -> Result<()> {
    let (lab, _daemons, _one, _two) = two_nodes()?;
    let node = lab.node(1)?;
    let (subnet, value) = lease(&lab, node)?;
    ensure!(!value.contains("BackendType"), "{value}");
    ensure!(
        value.starts_with(&format!(r#"{{"PublicIP":"{}","PublicIPv6":null"#, node.address())),
        "{value}"
    );
    let device = link(node, "flannel0")?;
    assert_eq!(device["mtu"], 1472);
    assert_eq!(text(&device["linkinfo"]["info_kind"]), "tun");
    let addresses: Vec<String> = super::common::addresses(&device);
    assert_eq!(addresses, [format!("{}/32", base(&subnet))]);
    let routes = list(&node.ip_json(&["route", "show", "dev", "flannel0"])?);
    let routes: Vec<String> = routes.iter().map(|route| text(&route["dst"])).collect();
    assert_eq!(routes, ["10.5.0.0/16"]);
    let sockets = node.run(&["ss", "-Hlun", "sport", "=", "8285"])?;
    ensure!(sockets.contains(&format!("{}:8285", node.address())), "{sockets}");
    let file = node.read_file("/run/flannel/subnet.env")?;
    ensure!(file.contains("FLANNEL_MTU=1472"), "{file}");
    Ok(())
}

pub fn tcp_udp_and_icmp_beside_a_plain_peer() -> Result<()> {
    let mixed = mixed()?;
    let (pod, peer) = (&mixed.pod, &mixed.peer);
    peer.ping(pod.ip())?;
    let _of_peer = flannel_lab::pod::respond(peer, "plain", 80)?;
    let _of_pod = pod.respond(80)?;
    for protocol in ["tcp", "udp"] {
        assert_eq!(
            pod.ask(protocol, &format!("{PLAIN}:80"))?,
            format!("plain {}", pod.ip())
        );
        let answers = flannel_lab::pod::ask(peer, protocol, &format!("{}:80", pod.ip()), 1)?;
        assert_eq!(answers, [Ok(format!("pod {PLAIN}"))]);
    }
    // Packets of the full length in both directions, and one byte more with DF, which is refused with the right MTU.
    for (from, to) in [(&**pod, PLAIN), (peer, pod.ip())] {
        from.run(&[
            "ping", "-n", "-q", "-c", "2", "-W", "2", "-M", "do", "-s", "1444", to,
        ])?;
    }
    let refused = pod.exec(&[
        "ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1445", PLAIN,
    ])?;
    ensure!(
        refused.ok().is_err(),
        "a packet longer than the tunnel carries went through"
    );
    Ok(())
}

/// Bulk TCP in both directions: the plain peer, which looks at every byte, gets whole packets of at most the MTU with right checksums,
/// and what it sends arrives unchanged although it was merged on the way.
pub fn bulk_transfer_beside_a_plain_peer() -> Result<()> {
    let mixed = mixed()?;
    let (pod, peer) = (&mixed.pod, &mixed.peer);
    let file = format!("{}/bulk", sandbox::SCRATCH);
    Place::sandbox().shell(&format!("head -c 20000000 /dev/urandom > {file}"))?;
    for (from, to, address) in [(&**pod, peer, PLAIN), (peer, &**pod, pod.ip())] {
        let copy = format!("{file}.copy");
        let listen = [
            "socat",
            "-u",
            "TCP-LISTEN:9000,reuseaddr",
            &format!("CREATE:{copy}"),
        ];
        let mut receiver = to.spawn("socat", &listen, &Environment::default())?;
        let target = format!("TCP:{address}:9000");
        eventually(limit(10), "a receiver", || {
            from.run(&["socat", "-u", &format!("OPEN:{file}"), &target])
        })?;
        receiver.wait(limit(10))?;
        Place::sandbox()
            .run(&["cmp", &file, &copy])
            .context("the bytes changed on the way")?;
        std::fs::remove_file(&copy)?;
    }
    let log = mixed.forwarder.log_text()?;
    ensure!(!log.contains("wrong packet"), "{log}");
    ensure!(
        log.contains("10000 packets are right"),
        "the plain peer saw too few packets:\n{log}"
    );
    // The kernels found no wrong checksum either.
    let count =
        "nstat -asz TcpInCsumErrors UdpInCsumErrors IpInHdrErrors | awk 'NR > 1 { n += $2 } END { print n }'";
    assert_eq!(pod.shell(count)?.trim(), "0");
    Ok(())
}

pub fn a_hop_is_counted_once_and_told_when_it_was_the_last() -> Result<()> {
    let (lab, _daemons, one, two) = two_nodes()?;
    let subnet = lease(&lab, lab.node(1)?)?.0;
    // Pod → node → tunnel: the node takes one, the tunnel one.
    let told = one.exec(&["ping", "-n", "-c", "1", "-W", "3", "-t", "2", two.ip()])?;
    let answer = told.stdout;
    ensure!(
        answer.contains(&format!("From {} ", base(&subnet))) && answer.contains("Time to live exceeded"),
        "{answer}"
    );
    // With one more it reaches the other node, whose kernel takes the last one before the pod.
    let told = one.exec(&["ping", "-n", "-c", "1", "-W", "3", "-t", "4", two.ip()])?;
    ensure!(told.ok().is_ok(), "four hops did not do");
    // An address that no node has.
    let told = one.exec(&["ping", "-n", "-c", "1", "-W", "3", "10.5.250.9"])?;
    let answer = told.stdout;
    ensure!(answer.contains("Destination Net Unreachable"), "{answer}");
    Ok(())
}

/// A node behind a router that maps port 9000 to it, and gives what it sends another port of the router's address.
pub fn a_node_behind_a_nat_is_reached() -> Result<()> {
    let lab = udp_lab(2)?;
    let (plain, hidden) = (lab.node(1)?, lab.node(2)?);
    let router = Place::netns("router");
    let outside = router.shell("ip -o route get 192.168.50.11 | sed 's/.* src \\([^ ]*\\).*/\\1/'")?;
    let (outside, inside, other) = (outside.trim().to_owned(), hidden.address(), plain.address());
    // Without state, so that both directions are independent, as with a NAT that keeps no port.
    router.shell(&format!(
        "nft -f - <<'END'\n\
         table ip nat-of-lab {{\n\
         chain in {{ type filter hook prerouting priority raw;\n\
         ip daddr {outside} udp dport 9000 notrack ip daddr set {inside} udp dport set 8285\n\
         ip saddr {inside} udp sport 8285 notrack\n}}\n\
         chain out {{ type filter hook postrouting priority raw;\n\
         ip saddr {inside} udp sport 8285 ip saddr set {outside} udp sport set 40000\n}}\n\
         }}\nEND\n\
         for f in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 > $f; done"
    ))?;
    hidden.shell(&format!("ip route add {other}/32 via {outside}"))?;
    let _one = plain.start_ready_flanneld(&["--ip-masq"])?;
    let _two = hidden.start_ready_flanneld(&[
        "--ip-masq",
        &format!("--public-ip={outside}"),
        "--udp-public-port=9000",
    ])?;
    let lease = lab.etcd().list(SUBNETS_PREFIX)?;
    let published = r#""BackendData":{"Port":9000,"ECN":true}"#;
    ensure!(
        lease.iter().any(|entry| entry.value.contains(published)),
        "{lease:?}"
    );
    let (one, two) = (plain.add_pod("one")?, hidden.add_pod("two")?);
    await_ping(&one, two.ip())?;
    two.ping(one.ip())?;
    let moved = flannel_lab::transfer(&two, &one, 1)?.bytes;
    ensure!(moved > 1e6, "only {moved} bytes");
    Ok(())
}

const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"udp"}}"#;

/// Pods of both families over one device and one socket, over IPv4.
pub fn both_families_travel_over_one_device() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(DUAL))?;
    let _daemons: Vec<Flanneld> = lab
        .nodes()
        .iter()
        .map(|node| node.start_ready_flanneld(&["--ip-masq"]))
        .collect::<Result<_>>()?;
    let (one, two) = (lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?);
    await_ping(&one, two.ip())?;
    let target = super::dual_stack::ipv6_of(&two)?;
    await_ping(&one, &target)?;
    // The largest packet in one piece: 1472 bytes less 40 of IPv6 and 8 of ICMPv6.
    one.run(&[
        "ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1424", &target,
    ])?;
    let node = lab.node(1)?;
    let routes = list(&node.ip_json(&["-6", "route", "show", "dev", "flannel0", "proto", "70"])?);
    let routes: Vec<String> = routes.iter().map(|route| text(&route["dst"])).collect();
    assert_eq!(routes, ["fd00:5::/48"]);
    // The last hop is the tunnel, which tells so itself.
    let told = one.exec(&["ping", "-n", "-c", "1", "-W", "3", "-t", "2", &target])?;
    ensure!(
        told.stdout.contains("Time exceeded: Hop limit"),
        "{}",
        told.stdout
    );
    Ok(())
}

pub fn deleted_device_comes_back() -> Result<()> {
    let (lab, _daemons, one, two) = two_nodes()?;
    lab.node(1)?.shell("ip link delete flannel0")?;
    eventually(limit(20), "the pods to reach each other again", || {
        one.ping(two.ip())
    })
}

pub fn hostile_datagrams_harm_nobody() -> Result<()> {
    let (lab, mut daemons, one, two) = two_nodes()?;
    let node = lab.node(1)?;
    // A node of its own kind: it has a lease, and sends what is not its own.
    let value = format!(r#"{{"PublicIP":"{OPERATOR_ADDRESS}","PublicIPv6":null}}"#);
    lab.etcd()
        .put_leased(&format!("{SUBNETS_PREFIX}10.5.99.0-24"), &value, 86_400)?;
    daemons[0].wait_log("knows the peers subnets=2")?;
    let before = received(&one)?;
    let before_memory = peak_memory(&daemons[0])?;
    let pinger = Pinger::at_rate(&two, &one, 100)?;
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    let victim = format!("{}:8285", node.address());
    // Random bytes, and packets that would be right if a node had sent them: from a stranger, then from the node with the lease.
    for (local, count) in [
        ("0.0.0.0:0", "10000"),
        (&format!("{OPERATOR_ADDRESS}:8285"), "3000"),
    ] {
        let argv = [&program, "hostile", local, &victim, one.ip(), two.ip(), count];
        Place::sandbox().exec_within(&argv, 60)?.ok()?;
    }
    eventually(limit(10), "every datagram to be counted", || {
        let counted = [
            drops(node, "unknown_sender")?,
            drops(node, "malformed")?,
            drops(node, "source_not_of_sender")?,
        ];
        let all: u64 = counted.iter().sum();
        ensure!(
            counted[0] == 10_000 && counted[1] > 1000 && counted[2] > 1000 && all > 12_900,
            "{counted:?}"
        );
        Ok(())
    })?;
    daemons[0].wait_log("the udp data path dropped packets")?;
    let memory = peak_memory(&daemons[0])?;
    ensure!(
        memory < before_memory + BOUND_KIB,
        "{before_memory} KiB became {memory}"
    );
    let report = pinger.stop()?;
    ensure!(
        report.lost.is_empty(),
        "{} of {} packets of a peer were lost",
        report.lost.len(),
        report.sent
    );
    daemons.iter_mut().try_for_each(Flanneld::check_running)?;
    // The pinger's packets arrived and nothing else, but for what the pod's own network says to itself.
    let forwarded = received(&one)? - before;
    ensure!(
        forwarded <= report.sent + 50,
        "{forwarded} packets arrived for {} that were sent",
        report.sent
    );
    Ok(())
}

/// Twice what a queue's buffers have when every page of them was used (128 datagrams, 32 packets, of 64 KiB each).
const BOUND_KIB: u64 = 20_480;

/// The most that the daemon had in memory so far, in KiB (proc(5)).
fn peak_memory(daemon: &Flanneld) -> Result<u64> {
    let status = Place::sandbox().shell(&format!(
        "awk '/VmHWM/ {{ print $2 }}' /proc/{}/status",
        daemon.pid()
    ))?;
    status
        .trim()
        .parse()
        .with_context(|| format!("{status:?} is no number"))
}

/// Packets that a node dropped for that reason.
fn drops(node: &Node, reason: &str) -> Result<u64> {
    let (_, text) = http::get(&format!("{}:9009", node.address()), "/metrics")?;
    let series = format!("flannel_udp_drops_total{{reason=\"{reason}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    Ok(value.with_context(|| format!("no {series} in {text}"))?.parse()?)
}

/// Packets that the pod's interface has received.
fn received(pod: &Pod) -> Result<u64> {
    // /sys shows the interfaces of whoever mounted it, /proc those of whoever reads it.
    let text = pod.shell("awk '/eth0:/ { print $3 }' /proc/net/dev")?;
    text.trim()
        .parse()
        .with_context(|| format!("{text:?} is no number"))
}

pub fn another_backend_lets_the_device_go() -> Result<()> {
    let (lab, mut daemons, _one, _two) = two_nodes()?;
    let node = lab.node(1)?;
    daemons.remove(0).signal(Signal::TERM)?;
    lab.etcd().put(
        CONFIG_KEY,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
    )?;
    let _daemon = node.start_ready_flanneld(&[])?;
    eventually(limit(10), "flannel0 to go", || {
        let names: BTreeSet<String> = list(&node.ip_json(&["link"])?)
            .iter()
            .map(|link| text(&link["ifname"]))
            .collect();
        ensure!(!names.contains("flannel0"), "{names:?}");
        Ok(())
    })
}
