//! Redirects and router advertisements, by packets: the node neither sends nor believes them.

use std::net::Ipv4Addr;

use serde_json::json;

use crate::V4;
use crate::frames::{BROADCAST, Mac, Wire, advertisement, udp4};
use crate::guard::{link_local, mac};
use crate::lab::{Node, Space, eventually, root};

const SECOND: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);

/// A node whose pods may send what they like.
fn open_node() -> (Node, [Space; 2], [Mac; 2]) {
    let node = Node::new(V4, json!({ "isDefaultGateway": true, "antiSpoof": false }));
    let pods = [Space::new(), Space::new()];
    let macs = [mac(&node.add("c1", &pods[0])), mac(&node.add("c2", &pods[1]))];
    (node, pods, macs)
}

fn write(space: &Space, name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    space.inside(|| std::fs::write(path, value)).unwrap();
}

/// Whether a frame is an ICMP redirect.
fn is_redirect(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 5
}

#[test]
fn the_node_sends_no_redirects() {
    if !root() {
        return;
    }
    let (node, [first, second], [_, b]) = open_node();
    // A detour: the gateway sees that there is a shorter way.
    first.ok("ip", "route add 10.244.1.3/32 via 10.244.1.1");
    let seen = |mark| {
        let (listening, sending) = (Wire::new(&first), Wire::new(&second));
        assert!(first.pings("10.244.1.3"));
        let last = udp4(BROADCAST, b, SECOND, FIRST, 4242, mark);
        sending.send(&last);
        listening.until(&last).iter().any(|frame| is_redirect(frame))
    };
    assert!(!seen(1));
    // The same with the kernel's own settings, or the test would show nothing.
    write(&node.space, "ipv4/conf/cni0/send_redirects", "1");
    assert!(seen(2));
}

/// With a guard, no redirect gets as far as a container.
#[test]
fn a_container_without_a_guard_believes_no_redirects() {
    if !root() {
        return;
    }
    let (_node, pods, _) = open_node();
    for (pod, device) in pods
        .iter()
        .flat_map(|pod| ["all", "eth0"].map(|device| (pod, device)))
    {
        let name = format!("ipv4/conf/{device}/accept_redirects");
        assert_eq!(pod.sysctl(&name), "0", "{name}");
    }
}

/// What a bridge that is closed tells is not all: it may have been nobody's gateway when it was made.
#[test]
fn a_bridge_that_becomes_a_gateway_later_makes_the_host_one() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, json!({ "isGateway": false }));
    write(&node.space, "ipv4/conf/all/send_redirects", "1");
    write(&node.space, "ipv4/ip_forward", "0");
    node.add("c1", &Space::new());
    assert_eq!(node.space.sysctl("ipv4/conf/all/send_redirects"), "1");
    assert_eq!(node.space.sysctl("ipv4/ip_forward"), "0");
    node.conf["delegate"]["isGateway"] = json!(true);
    node.add("c2", &Space::new());
    assert_eq!(node.space.sysctl("ipv4/conf/all/send_redirects"), "0");
    assert_eq!(node.space.sysctl("ipv4/ip_forward"), "1");
    // Somebody turns forwarding off.
    write(&node.space, "ipv4/ip_forward", "0");
    node.add("c3", &Space::new());
    assert_eq!(node.space.sysctl("ipv4/ip_forward"), "1");
}

#[test]
fn nobody_is_rerouted_by_a_container() {
    if !root() {
        return;
    }
    let (node, [first, _second], [a, _]) = open_node();
    // The first pod is a router that knows of a shorter way.
    node.space.ok("ip", "route add 198.51.100.0/24 via 10.244.1.2");
    first.ok("ip", "route add 198.51.100.0/24 via 10.244.1.3");
    write(&first, "ipv4/ip_forward", "1");
    // The bridge's own setting decides then (`IN_DEV_RX_REDIRECTS`).
    write(&node.space, "ipv4/conf/all/accept_redirects", "1");
    write(&first, "ipv4/conf/eth0/send_redirects", "1");
    let way = || {
        node.space.pings("198.51.100.9");
        node.space.ok("ip", "route get 198.51.100.9")
    };
    assert!(way().contains("via 10.244.1.2"), "{}", way());
    write(&node.space, "ipv4/conf/cni0/accept_redirects", "1");
    eventually("without the setting, the redirect is believed", || {
        way().contains("via 10.244.1.3")
    });

    let (wire, frame) = (Wire::new(&first), advertisement(a, link_local(a)));
    let routers = || node.space.ok("ip", "-6 route show default dev cni0");
    wire.send(&frame);
    assert!(node.space.pings("10.244.1.2"));
    assert_eq!(routers(), "");
    write(&node.space, "ipv6/conf/cni0/accept_ra", "1");
    eventually("without the setting, the router is believed", || {
        wire.send(&frame);
        !routers().is_empty()
    });
}
