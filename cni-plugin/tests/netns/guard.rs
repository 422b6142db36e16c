//! What a pod may send, by frames that arrive at another or do not.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::json;

use crate::DUAL;
use crate::frames::{BROADCAST, Mac, Wire, arp, icmp4, icmp6, other, rechecked, tagged, to_port, udp4, udp6};
use crate::lab::{Answer, Node, Space, root};

pub fn mac(answer: &Answer) -> Mac {
    let text = answer.json["interfaces"][2]["mac"].as_str().unwrap();
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

pub fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}

const OWN: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const EVIL: Mac = [2, 0xee, 0xee, 0xee, 0xee, 0xee];

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// Frames of a pod with hardware address `a` for one with `b`, and what each is.
fn honest(a: Mac) -> Vec<(&'static str, Vec<u8>)> {
    let own6 = v6("fd00:244:0:1::2");
    vec![
        ("ARP request", arp(a, 1, (a, OWN), PEER)),
        ("ARP announcement", arp(a, 2, (a, OWN), OWN)),
        ("ARP probe", arp(a, 1, (a, Ipv4Addr::UNSPECIFIED), OWN)),
        ("IPv4", udp4(BROADCAST, a, OWN, PEER, 1000, 1)),
        ("TCP to the number of a tunnel's port", tcp_like(a)),
        (
            "neighbour solicitation",
            icmp6(a, own6, 135, v6("fd00:244:0:1::3")),
        ),
        (
            "duplicate address detection",
            icmp6(a, Ipv6Addr::UNSPECIFIED, 135, own6),
        ),
        ("neighbour advertisement", icmp6(a, own6, 136, own6)),
        (
            "neighbour advertisement of the link-local address",
            icmp6(a, link_local(a), 136, link_local(a)),
        ),
        (
            "router solicitation",
            icmp6(a, link_local(a), 133, Ipv6Addr::UNSPECIFIED),
        ),
        ("IPv6", udp6(a, own6, 1000)),
    ]
}

/// Not UDP: the number means something else.
fn tcp_like(a: Mac) -> Vec<u8> {
    let mut frame = to_port(udp4(BROADCAST, a, OWN, PEER, 1000, 10), 8472);
    frame[14 + 9] = 6;
    rechecked(frame)
}

fn hostile(a: Mac) -> Vec<(&'static str, Vec<u8>)> {
    let (own6, peer6) = (v6("fd00:244:0:1::2"), v6("fd00:244:0:1::3"));
    vec![
        (
            "another's hardware address",
            udp4(BROADCAST, EVIL, OWN, PEER, 1000, 2),
        ),
        (
            "another's IPv4 address",
            udp4(BROADCAST, a, GATEWAY, PEER, 1000, 3),
        ),
        (
            "no IPv4 address",
            udp4(BROADCAST, a, Ipv4Addr::UNSPECIFIED, PEER, 68, 4),
        ),
        (
            "to a VXLAN tunnel",
            to_port(udp4(BROADCAST, a, OWN, PEER, 1000, 8), 8472),
        ),
        (
            "to a tunnel of the udp backend",
            to_port(udp4(BROADCAST, a, OWN, PEER, 1000, 9), 8285),
        ),
        ("to a VXLAN tunnel by IPv6", to_port(udp6(a, own6, 1000), 8472)),
        ("an IPv4 redirect", icmp4(BROADCAST, a, OWN, PEER, 5)),
        ("a DHCP server", udp4(BROADCAST, a, OWN, PEER, 67, 5)),
        ("ARP for the gateway's address", arp(a, 2, (a, GATEWAY), PEER)),
        (
            "ARP with another's hardware address",
            arp(a, 2, (EVIL, OWN), PEER),
        ),
        ("a VLAN tag", tagged(&udp4(BROADCAST, a, OWN, PEER, 1000, 6), 5)),
        ("a VLAN tag 0", tagged(&udp4(BROADCAST, a, OWN, PEER, 1000, 7), 0)),
        ("LLDP", other([1, 0x80, 0xc2, 0, 0, 0x0e], a, 0x88cc)),
        ("another protocol", other(BROADCAST, a, 0x88b5)),
        ("another's IPv6 address", udp6(a, peer6, 1000)),
        ("another's link-local address", udp6(a, link_local(EVIL), 1000)),
        ("a DHCPv6 server", udp6(a, link_local(a), 547)),
        ("a router advertisement", icmp6(a, link_local(a), 134, own6)),
        ("a redirect", icmp6(a, link_local(a), 137, own6)),
        (
            "an advertisement for another's address",
            icmp6(a, own6, 136, peer6),
        ),
        ("IPv6 without an address", udp6(a, Ipv6Addr::UNSPECIFIED, 1001)),
    ]
}

/// Which of `frames` arrive at `to`.
fn arriving(from: &Wire, to: &Wire, a: Mac, frames: &[(&'static str, Vec<u8>)]) -> Vec<&'static str> {
    frames.iter().for_each(|(_, frame)| from.send(frame));
    let last = udp4(BROADCAST, a, OWN, PEER, 4242, 99);
    from.send(&last);
    let seen = to.until(&last);
    let came = |frame: &Vec<u8>| {
        // The receiver's socket takes a tag off.
        let plain = [&frame[..12], &frame[16..]].concat();
        let tagged = frame[12..14] == [0x81, 0];
        seen.contains(frame) || (tagged && seen.contains(&plain))
    };
    frames
        .iter()
        .filter(|(_, frame)| came(frame))
        .map(|(name, _)| *name)
        .collect()
}

/// Whether any set but that of the tunnels' ports has elements.
fn pods_are_named(rules: &str) -> bool {
    rules.matches("elements").count() > 1
}

fn names(frames: &[(&'static str, Vec<u8>)]) -> Vec<&'static str> {
    frames.iter().map(|(name, _)| *name).collect()
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    if !root() {
        return;
    }
    let node = Node::new(DUAL, json!({ "isDefaultGateway": true }));
    let (pod, peer) = (Space::new(), Space::new());
    let a = mac(&node.add("c1", &pod));
    node.add("c2", &peer);
    let (from, to) = (Wire::new(&pod), Wire::new(&peer));
    let good = honest(a);
    assert_eq!(arriving(&from, &to, a, &good), names(&good));
    assert_eq!(arriving(&from, &to, a, &hostile(a)), Vec::<&str>::new());
    for target in ["10.244.1.1", "10.244.1.3", "fd00:244:0:1::1", "fd00:244:0:1::3"] {
        assert!(pod.pings(target), "{target}");
    }
    let rules = node.space.ok("nft", "list table bridge flannel-cni-guard");
    assert!(
        rules.contains("counter packets") && rules.contains("10.244.1.2"),
        "{rules}"
    );
    node.del("c1", "");
    node.del("c2", "");
    let rules = node.space.ok("nft", "list table bridge flannel-cni-guard");
    assert!(!pods_are_named(&rules), "{rules}");
}

#[test]
fn without_the_guard_all_of_it_arrives() {
    if !root() {
        return;
    }
    let node = Node::new(DUAL, json!({ "isDefaultGateway": true, "antiSpoof": false }));
    let (pod, peer) = (Space::new(), Space::new());
    let a = mac(&node.add("c1", &pod));
    node.add("c2", &peer);
    let (from, to) = (Wire::new(&pod), Wire::new(&peer));
    let mut bad = hostile(a);
    // A bridge keeps these to itself.
    bad.retain(|(name, _)| *name != "LLDP");
    assert_eq!(arriving(&from, &to, a, &bad), names(&bad));
}

#[test]
fn the_hardware_address_alone_can_be_checked() {
    if !root() {
        return;
    }
    let node = Node::new(DUAL, json!({ "antiSpoof": false, "macspoofchk": true }));
    let (pod, peer) = (Space::new(), Space::new());
    let a = mac(&node.add("c1", &pod));
    node.add("c2", &peer);
    let (from, to) = (Wire::new(&pod), Wire::new(&peer));
    let came = arriving(&from, &to, a, &hostile(a));
    assert!(!came.contains(&"another's hardware address"), "{came:?}");
    assert!(
        came.contains(&"another's IPv4 address") && came.contains(&"a VLAN tag"),
        "{came:?}"
    );
}

#[test]
fn a_guard_that_somebody_removed_comes_back_and_check_misses_it() {
    if !root() {
        return;
    }
    let mut node = Node::new(DUAL, json!({ "isDefaultGateway": true }));
    let (pod, peer) = (Space::new(), Space::new());
    let first = node.add("c1", &pod);
    node.space
        .ok("nft", "flush chain bridge flannel-cni-guard prerouting");
    node.conf["prevResult"] = first.json.clone();
    assert_eq!(node.call("CHECK", "c1", &pod.path()).code(), 103);
    node.conf.as_object_mut().unwrap().remove("prevResult");
    node.add("c2", &peer);
    let a = mac(&first);
    let (from, to) = (Wire::new(&pod), Wire::new(&peer));
    assert_eq!(arriving(&from, &to, a, &hostile(a)), Vec::<&str>::new());
    node.conf["prevResult"] = first.json;
    assert!(node.call("CHECK", "c1", &pod.path()).ok);
    node.space.ok("nft", "delete table bridge flannel-cni-guard");
    node.conf.as_object_mut().unwrap().remove("prevResult");
    node.del("c1", "");
    node.del("c2", "");
}

#[test]
fn two_interfaces_of_one_container_work_on_one_network() {
    if !root() {
        return;
    }
    let node = Node::new(DUAL, json!({ "isDefaultGateway": true }));
    let (pod, peer) = (Space::new(), Space::new());
    node.add("c1", &pod);
    let second = node.add_as("c1", "net1", &pod);
    node.add("c2", &peer);
    assert_eq!(second.ip(0), "10.244.1.3");
    for target in ["10.244.1.2", "10.244.1.3", "fd00:244:0:1::2", "fd00:244:0:1::3"] {
        assert!(peer.pings(target) && node.space.pings(target), "{target}");
    }
    assert!(pod.pings("10.244.1.4"));
    // In either order; the other goes on working.
    node.del_as("c1", "eth0", &pod);
    assert!(peer.pings("10.244.1.3"));
    node.del_as("c1", "net1", &pod);
    node.del("c2", "");
    let rules = node.space.ok("nft", "list table bridge flannel-cni-guard");
    assert!(!pods_are_named(&rules), "{rules}");
    node.assert_clean();
}
