//! Pods that are attached and work.

use std::collections::BTreeSet;

use serde_json::json;

use crate::lab::{Node, Space, root};
use crate::{DUAL, V4};

fn usual() -> serde_json::Value {
    json!({ "hairpinMode": true, "isDefaultGateway": true })
}

#[test]
fn two_pods_reach_each_other_and_the_gateway_in_both_families() {
    if !root() {
        return;
    }
    let node = Node::new(DUAL, usual());
    let (a, b) = (Space::new(), Space::new());
    node.add("c1", &a);
    let second = node.add("c2", &b);
    assert_eq!(
        node.space.addresses("cni0"),
        ["10.244.1.1/24", "fd00:244:0:1::1/64"]
    );
    assert_eq!(a.addresses("eth0"), ["10.244.1.2/24", "fd00:244:0:1::2/64"]);
    assert_eq!(
        a.routes("-4"),
        ["10.244.0.0/16 via 10.244.1.1", "default via 10.244.1.1"]
    );
    assert_eq!(
        a.routes("-6"),
        ["default via fd00:244:0:1::1", "fd00:244::/48 via fd00:244:0:1::1"]
    );
    for target in [
        "10.244.1.1",
        "fd00:244:0:1::1",
        &second.ip(0),
        &second.ip(1),
        "127.0.0.1",
    ] {
        assert!(a.pings(target), "{target}");
    }
    assert_eq!(node.space.sysctl("ipv4/ip_forward"), "1");
    assert_eq!(node.space.sysctl("ipv6/conf/all/forwarding"), "1");
    assert_eq!(node.space.sysctl("ipv6/conf/cni0/accept_ra"), "0");
}

#[test]
fn the_result_is_what_the_kernel_has() {
    if !root() {
        return;
    }
    let node = Node::new(V4, usual());
    let pod = Space::new();
    let result = node.add("c1", &pod).json;
    let interfaces = result["interfaces"].as_array().unwrap();
    let names: Vec<&str> = interfaces.iter().map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!((names.len(), names[0], names[2]), (3, "cni0", "eth0"));
    assert_eq!(interfaces[2]["sandbox"], json!(pod.path()));
    for (interface, space) in interfaces.iter().zip([&node.space, &node.space, &pod]) {
        let name = interface["name"].as_str().unwrap();
        let link = &space.json("ip", &format!("-j -d link show dev {name}"))[0];
        assert_eq!(link["address"], interface["mac"], "{name}");
        assert_eq!(
            (&link["mtu"], &link["operstate"]),
            (&json!(1450), &json!("UP")),
            "{name}"
        );
    }
    let port = &node
        .space
        .json("bridge", &format!("-j -d link show dev {}", names[1]))[0];
    assert_eq!(
        (&port["master"], &port["state"], &port["hairpin"]),
        (&json!("cni0"), &json!("forwarding"), &json!(true))
    );
    let host_end = &node
        .space
        .json("ip", &format!("-j -d link show dev {}", names[1]))[0];
    assert_eq!(host_end["ifalias"], "flannel:cbr0/c1/eth0 10.244.1.2");
    assert_eq!(
        result["routes"],
        json!([{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.1.1"}])
    );
}

#[test]
fn every_version_is_answered_in_its_own_layout() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, usual());
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        node.conf["cniVersion"] = json!(version);
        let pod = Space::new();
        let result = node.add("c1", &pod).json;
        if version < "0.3.0" {
            assert_eq!(result["ip4"]["gateway"], "10.244.1.1", "{result}");
            assert!(result.get("ips").is_none() && result.get("interfaces").is_none());
            node.del("c1", &pod.path());
            continue;
        }
        assert_eq!(result["cniVersion"], version);
        let old = version < "1.0.0";
        assert_eq!(result["ips"][0].get("version").is_some(), old, "{version}");
        assert_eq!(result.get("dns").is_some(), old, "{version}");
        assert_eq!(result["interfaces"][0].get("mtu").is_some(), version == "1.1.0");
        node.del("c1", &pod.path());
    }
    node.assert_clean();
}

#[test]
fn an_asked_for_mac_and_address_are_used() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, usual());
    node.conf["runtimeConfig"] = json!({ "mac": "02:00:5e:10:00:01", "ips": ["10.244.1.77/24"] });
    let pod = Space::new();
    node.add("c1", &pod);
    assert_eq!(pod.addresses("eth0"), ["10.244.1.77/24"]);
    assert_eq!(
        pod.json("ip", "-j link show dev eth0")[0]["address"],
        "02:00:5e:10:00:01"
    );
    assert!(pod.pings("10.244.1.1"));
}

#[test]
fn many_pods_at_once_get_different_addresses() {
    if !root() {
        return;
    }
    let node = Node::new(DUAL, usual());
    let pods: Vec<Space> = (0..12).map(|_| Space::new()).collect();
    let children: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(i, pod)| node.start("ADD", &format!("c{i}"), &pod.path()))
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let addresses: BTreeSet<String> = pods.iter().flat_map(|pod| pod.addresses("eth0")).collect();
    assert_eq!(addresses.len(), 24);
    assert_eq!(
        node.space.addresses("cni0"),
        ["10.244.1.1/24", "fd00:244:0:1::1/64"]
    );
    let children: Vec<_> = (0..12).map(|i| node.start("DEL", &format!("c{i}"), "")).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    node.assert_clean();
}

/// A host beyond the node that knows no route back to pods: it answers only what was masqueraded.
fn outside(node: &Node) -> Space {
    let outside = Space::new();
    let make = format!("link add up0 type veth peer name up0 netns {}", outside.path());
    node.space.ok("ip", &make);
    for (space, v4, v6) in [
        (&node.space, "192.0.2.1/24", "2001:db8::1/64"),
        (&outside, "192.0.2.2/24", "2001:db8::2/64"),
    ] {
        space.ok("ip", &format!("address add {v4} dev up0"));
        space.ok("ip", &format!("address add {v6} dev up0 nodad"));
        space.ok("ip", "link set up0 up");
    }
    outside
}

#[test]
fn pods_are_masqueraded_when_the_daemon_does_not() {
    if !root() {
        return;
    }
    let node = Node::new(&DUAL.replace("IPMASQ=true", "IPMASQ=false"), usual());
    let _outside = outside(&node);
    let (a, b) = (Space::new(), Space::new());
    node.add("c1", &a);
    node.add("c2", &b);
    for target in ["192.0.2.2", "2001:db8::2", "10.244.1.3", "fd00:244:0:1::3"] {
        assert!(a.pings(target), "{target}");
    }
    let elements = |family: &str| {
        node.space
            .json("nft", &format!("-j list set {family} flannel-cni-masq pods"))
    };
    let of = |family| elements(family)["nftables"][1]["set"]["elem"].clone();
    assert_eq!(of("ip"), json!(["10.244.1.2", "10.244.1.3"]));
    assert_eq!(of("ip6"), json!(["fd00:244:0:1::2", "fd00:244:0:1::3"]));
    let table = node.space.json("nft", "-j list table ip flannel-cni-masq");
    let rules = table["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item.get("rule").is_some())
        .count();
    assert_eq!(rules, 1, "one rule, however many pods: {table}");
    node.space
        .ok("nft", "flush chain ip flannel-cni-masq from-10.244.1.0/24");
    assert!(!a.pings("192.0.2.2"), "without the rule there is no way back");
    let c = Space::new();
    node.add("c3", &c);
    assert!(
        a.pings("192.0.2.2") && c.pings("192.0.2.2"),
        "the next ADD repairs it"
    );
    node.del("c3", "");
    node.del("c1", "");
    assert_eq!(of("ip"), json!(["10.244.1.3"]));
    assert_eq!(of("ip6"), json!(["fd00:244:0:1::3"]));
    assert!(b.pings("192.0.2.2"));
}

#[test]
fn nothing_is_masqueraded_when_the_daemon_does_it() {
    if !root() {
        return;
    }
    let node = Node::new(V4, usual());
    let _outside = outside(&node);
    let pod = Space::new();
    node.add("c1", &pod);
    assert!(!pod.pings("192.0.2.2"));
    assert!(!node.space.ok("nft", "list tables").contains("flannel-cni-masq"));
}

#[test]
fn ranges_of_the_runtime_give_an_address_besides() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, usual());
    node.conf["runtimeConfig"] = json!({
        "ipRanges": [[{ "subnet": "10.99.0.0/24", "rangeStart": "10.99.0.20", "gateway": "10.99.0.254" }]],
    });
    let (pod, other) = (Space::new(), Space::new());
    let answer = node.add("c1", &pod);
    node.add("c2", &other);
    assert_eq!(
        (answer.ip(0), answer.ip(1)),
        ("10.99.0.20".into(), "10.244.1.2".into())
    );
    for target in ["10.99.0.21", "10.244.1.3", "10.99.0.254", "10.244.1.1"] {
        assert!(pod.pings(target), "{target}");
    }
    node.conf["prevResult"] = answer.json;
    let check = node.call("CHECK", "c1", &pod.path());
    assert!(check.ok, "{}", check.json);
    node.del("c1", "");
    node.del("c2", "");
    node.assert_clean();
}

#[test]
fn nobody_redirects_the_node_by_way_of_its_bridge() {
    if !root() {
        return;
    }
    let node = Node::new(V4, usual());
    node.add("c1", &Space::new());
    for name in [
        "ipv6/conf/cni0/accept_ra",
        "ipv6/conf/cni0/accept_redirects",
        "ipv4/conf/cni0/accept_redirects",
        "ipv4/conf/cni0/send_redirects",
    ] {
        assert_eq!(node.space.sysctl(name), "0", "{name}");
    }
}

/// A key that nobody reads is named where an operator looks, and changes nothing.
#[test]
fn a_misspelt_key_is_named() {
    if !root() {
        return;
    }
    let node = Node::new(V4, json!({ "isDefaultGateway": true, "hairpin": true }));
    let answer = node.add("c1", &Space::new());
    assert!(
        answer
            .stderr
            .contains("the key \"hairpin\" of delegate has no effect"),
        "{}",
        answer.stderr
    );
    assert_eq!(node.del("c1", "").stderr, "");
}
