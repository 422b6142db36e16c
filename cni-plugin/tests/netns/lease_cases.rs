//! What host-local does, case by case and for every cniVersion, and beside host-local itself. docs/conformance.md tells which is which.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};

use crate::lab::{Node, Space, VERSIONS, call_other, list, root};
use crate::{DUAL, V4};

/// Of Debian's containernetworking-plugins, which integration/setup.sh installs.
const HOST_LOCAL: &str = "/usr/lib/cni/host-local";

fn versions(subnet_env: &str, mut case: impl FnMut(&mut Node, &str)) {
    if !root() {
        return;
    }
    for version in VERSIONS {
        let mut node = Node::new(subnet_env, json!({}));
        node.conf["cniVersion"] = json!(version);
        case(&mut node, version);
    }
}

#[test]
fn h1_h7_files_of_both_families() {
    versions(DUAL, |node, version| {
        node.conf["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.244.1.7" }]);
        let pod = Space::new();
        let answer = node.add("c1", &pod);
        assert_eq!(
            answer.stderr, "",
            "{version}: an empty folder is nothing to tell of"
        );
        let routes = match version < "0.3.0" {
            true => answer.json["ip4"]["routes"].clone(),
            false => answer.json["routes"].clone(),
        };
        assert_eq!(routes[0], json!({ "dst": "192.0.2.0/24", "gw": "10.244.1.7" }));
        let read = |name: &str| fs::read_to_string(node.file("networks/cbr0").join(name)).unwrap();
        assert_eq!(read("10.244.1.2"), "c1\r\neth0");
        assert_eq!(read("fd00:244:0:1::2"), "c1\r\neth0");
        assert_eq!(read("last_reserved_ip.0"), "10.244.1.2");
        assert_eq!(read("last_reserved_ip.1"), "fd00:244:0:1::2");
        node.del("c1", "");
        assert_eq!(
            list(&node.file("networks/cbr0")),
            ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]
        );
    });
}

#[test]
fn h2_two_interfaces_of_a_container() {
    versions(V4, |node, version| {
        let pod = Space::new();
        node.add("c1", &pod);
        node.variables = vec![("CNI_IFNAME", "eth1".to_owned())];
        node.add("c1", &pod);
        assert_eq!(node.leases(), ["10.244.1.2", "10.244.1.3"], "{version}");
        node.del("c1", &pod.path());
        assert_eq!(node.leases(), ["10.244.1.2"]);
        assert!(pod.pings("10.244.1.1"), "eth0 went with eth1");
        node.variables.clear();
        node.del("c1", &pod.path());
        node.assert_clean();
    });
}

#[test]
fn h3_a_second_add() {
    versions(V4, |node, version| {
        let (a, b) = (Space::new(), Space::new());
        node.add("c1", &a);
        for _ in 0..2 {
            assert_eq!(node.call("ADD", "c1", &a.path()).code(), 102, "{version}");
        }
        assert_eq!(node.add("c2", &b).ips(), ["10.244.1.3/24"]);
        assert_eq!(node.call("ADD", "c2", &b.path()).code(), 102);
        node.del("c1", &a.path());
        node.del("c2", &b.path());
        node.assert_clean();
    });
}

#[test]
fn h8_h9_addresses_that_were_asked_for() {
    versions(DUAL, |node, version| {
        node.variables = vec![("CNI_ARGS", "IP=10.244.1.88".to_owned())];
        let (a, b) = (Space::new(), Space::new());
        let first = node.add("c1", &a).ips();
        assert_eq!(first[0], "10.244.1.88/24", "{version}");
        node.variables = vec![("CNI_ARGS", "IP=10.244.1.89/24".to_owned())];
        node.conf["runtimeConfig"] = json!({ "ips": ["fd00:244:0:1::89"] });
        let second = node.add("c2", &b).ips();
        assert_eq!(second, ["10.244.1.89/24", "fd00:244:0:1::89/64"]);
        // H11: both out of one set.
        node.conf["runtimeConfig"] = json!({ "ips": ["10.244.1.90", "10.244.1.91"] });
        node.variables.clear();
        let before = node.leases();
        let answer = node.call("ADD", "c3", &Space::new().path());
        assert_eq!(answer.code(), 101);
        let text = answer.json.to_string();
        assert!(
            text.contains("all requested") && text.contains("10.244.1.91"),
            "{text}"
        );
        assert_eq!(node.leases(), before, "{version}");
    });
}

/// A set of the runtime with two ranges, and the node's own of both families.
#[test]
fn b6_h10_several_addresses_of_a_family() {
    versions(DUAL, |node, version| {
        node.conf["runtimeConfig"] = json!({
            "ipRanges": [[{ "subnet": "10.99.0.0/29" }, { "subnet": "10.98.0.0/24" }]],
            "ips": ["10.98.0.7", "fd00:244:0:1::89"],
        });
        let pod = Space::new();
        if ["0.1.0", "0.2.0"].contains(&version) {
            let answer = node.call("ADD", "c1", &pod.path());
            assert_eq!(answer.code(), 2, "{version}");
            let msg = answer.json["msg"].as_str().unwrap();
            assert!(msg.contains("more than 1 address per family"), "{msg}");
            assert_eq!(node.leases(), Vec::<String>::new());
            return;
        }
        let expected = ["10.98.0.7/24", "10.244.1.2/24", "fd00:244:0:1::89/64"];
        assert_eq!(node.add("c1", &pod).ips(), expected, "{version}");
        let mut there = pod.addresses("eth0");
        there.sort();
        assert_eq!(there, ["10.244.1.2/24", "10.98.0.7/24", "fd00:244:0:1::89/64"]);
        node.conf["runtimeConfig"]["ips"] = json!([]);
        // Behind the last one, as nobody asked for another.
        assert_eq!(
            node.add("c2", &Space::new()).ips()[0],
            "10.98.0.8/24",
            "{version}"
        );
        node.del("c1", "");
        node.del("c2", "");
        assert_eq!(node.leases(), Vec::<String>::new(), "{version}");
    });
}

#[test]
fn h6_blanks_in_a_lease() {
    versions(V4, |node, version| {
        let folder = node.file("networks/cbr0");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("10.244.1.9"), " c1\r\neth0 \n").unwrap();
        fs::write(folder.join("10.244.1.10"), " other\r\neth0 \n").unwrap();
        node.del("c1", "");
        assert_eq!(node.leases(), ["10.244.1.10"], "{version}");
    });
}

/// host-local itself, on the node's folder.
fn host_local(node: &Node, verb: &str, id: &str, version: &str) -> Output {
    let conf = json!({
        "name": "cbr0", "cniVersion": version, "type": "bridge",
        "ipam": { "type": "host-local", "dataDir": node.file("networks"), "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:244:0:1::/64" }]] },
    });
    call_other(HOST_LOCAL, verb, id, &conf)
}

fn host_local_ok(node: &Node, verb: &str, id: &str, version: &str) -> Value {
    let output = host_local(node, verb, id, version);
    assert!(output.status.success(), "{verb} {id}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[test]
fn x6_host_local_and_we_follow_each_other() {
    // Debian's knows no newer version.
    for version in VERSIONS.into_iter().filter(|version| *version != "1.1.0") {
        if !root() {
            return;
        }
        let mut node = Node::new(DUAL, json!({}));
        node.conf["cniVersion"] = json!(version);
        host_local_ok(&node, "ADD", "theirs", version);
        let pod = Space::new();
        let ours = node.add("ours", &pod).ips();
        assert_eq!(ours, ["10.244.1.3/24", "fd00:244:0:1::3/64"], "{version}");
        let next = host_local_ok(&node, "ADD", "next", version).to_string();
        assert!(
            next.contains("10.244.1.4") && next.contains("fd00:244:0:1::4"),
            "{next}"
        );
        // Each frees what the other gave.
        node.del("theirs", "");
        host_local_ok(&node, "DEL", "ours", version);
        assert_eq!(node.leases(), ["10.244.1.4", "fd00:244:0:1::4"]);
        assert!(
            !host_local(&node, "ADD", "next", version).status.success(),
            "it holds its own still"
        );
        host_local_ok(&node, "DEL", "next", version);
        assert_eq!(node.leases(), Vec::<String>::new());
        // What it freed under a living pod of ours is ours again at once, and never given to another.
        let late = node.add("late", &Space::new()).ips();
        assert_eq!(late, ["10.244.1.5/24", "fd00:244:0:1::5/64"], "{version}");
        assert!(
            node.leases().contains(&"10.244.1.3".to_owned()),
            "the living pod's address is free"
        );
    }
}
