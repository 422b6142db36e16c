//! Nodes on which another plugin made pods before, and containers with more than one network.

use std::fs;

use serde_json::json;

use crate::V4;
use crate::lab::{Node, Space, list, root};

fn node() -> Node {
    Node::new(V4, json!({ "hairpinMode": true, "isDefaultGateway": true }))
}

/// A pod as flannel, bridge and host-local leave it.
fn earlier_pod(node: &Node, id: &str, pod: &Space) {
    node.space.ok("ip", "link add cni0 type bridge");
    node.space.ok("ip", "address add 10.244.1.1/24 dev cni0");
    node.space.ok("ip", "link set cni0 up");
    node.space.ok(
        "ip",
        &format!(
            "link add veth1a2b3c4d type veth peer name eth0 netns {}",
            pod.path()
        ),
    );
    node.space.ok("ip", "link set veth1a2b3c4d master cni0 up");
    pod.ok("ip", "address add 10.244.1.2/24 dev eth0");
    pod.ok("ip", "link set eth0 up");
    let leases = node.file("networks/cbr0");
    fs::create_dir_all(&leases).unwrap();
    fs::write(leases.join("10.244.1.2"), format!("{id}\r\neth0")).unwrap();
    fs::write(leases.join("last_reserved_ip.0"), "10.244.1.2").unwrap();
    fs::write(leases.join("lock"), "").unwrap();
    fs::create_dir(node.file("flannel")).unwrap();
    let root = node.file("networks");
    let saved = json!({
        "cniVersion": "1.0.0", "hairpinMode": true, "ipMasq": false,
        "ipam": { "dataDir": root, "ranges": [[{ "subnet": "10.244.1.0/24" }]], "routes": [{ "dst": "10.244.0.0/16" }], "type": "host-local" },
        "isDefaultGateway": true, "isGateway": true, "mtu": 1450, "name": "cbr0", "type": "bridge",
    });
    fs::write(node.file("flannel").join(id), saved.to_string()).unwrap();
}

#[test]
fn a_pod_of_an_earlier_flannel_keeps_its_address_and_can_be_removed() {
    if !root() {
        return;
    }
    let node = node();
    let (old, new) = (Space::new(), Space::new());
    earlier_pod(&node, "old", &old);
    let bridge = node.space.json("ip", "-j link show dev cni0")[0]["ifindex"].clone();
    let added = node.add("new", &new);
    assert_eq!(added.ip(0), "10.244.1.3");
    assert!(old.pings("10.244.1.3") && new.pings("10.244.1.2"));
    assert_eq!(
        node.space.json("ip", "-j link show dev cni0")[0]["ifindex"],
        bridge
    );
    node.del("old", &old.path());
    assert_eq!(old.devices(), ["lo"]);
    assert_eq!(node.leases(), ["10.244.1.3"]);
    assert_eq!(list(&node.file("flannel")), ["new"]);
}

#[test]
fn the_device_of_an_earlier_flannel_is_found_by_the_result_that_it_gave() {
    if !root() {
        return;
    }
    let mut node = node();
    let old = Space::new();
    earlier_pod(&node, "old", &old);
    node.conf["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "cni0" }, { "name": "veth1a2b3c4d" }, { "name": "eth0", "sandbox": "/gone" }],
        "ips": [{ "address": "10.244.1.2/24", "interface": 2 }],
    });
    node.del("old", "");
    assert_eq!(old.devices(), ["lo"], "its address can be given to another now");
    assert_eq!(node.leases(), Vec::<String>::new());
}

#[test]
fn leases_are_found_where_the_earlier_configuration_put_them() {
    if !root() {
        return;
    }
    let mut node = node();
    let old = Space::new();
    earlier_pod(&node, "old", &old);
    node.conf["ipam"]["dataDir"] = json!(node.file("elsewhere"));
    node.del("old", "");
    assert_eq!(node.leases(), Vec::<String>::new());
}

#[test]
fn an_old_lease_with_the_container_alone_is_freed() {
    if !root() {
        return;
    }
    let node = node();
    let old = Space::new();
    earlier_pod(&node, "old", &old);
    fs::write(node.file("networks/cbr0/10.244.1.2"), "old").unwrap();
    node.del("old", &old.path());
    assert_eq!(node.leases(), Vec::<String>::new());
}

#[test]
fn the_saved_configuration_is_what_flannel_would_have_saved() {
    if !root() {
        return;
    }
    let node = node();
    node.add("c1", &Space::new());
    let text = fs::read_to_string(node.file("flannel/c1")).unwrap();
    let root = node.file("networks").display().to_string();
    assert_eq!(
        text,
        format!(
            r#"{{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":false,"ipam":{{"dataDir":"{root}","ranges":[[{{"subnet":"10.244.1.0/24"}}]],"routes":[{{"dst":"10.244.0.0/16"}}],"type":"host-local"}},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}}"#
        )
    );
    assert_eq!(
        fs::read(node.file("networks/cbr0/10.244.1.2")).unwrap(),
        b"c1\r\neth0"
    );
}

#[test]
fn another_address_on_the_bridge_stays_beside_ours() {
    if !root() {
        return;
    }
    let mut node = node();
    node.space.ok("ip", "link add cni0 type bridge");
    node.space.ok("ip", "address add 10.244.9.1/24 dev cni0");
    let pod = Space::new();
    node.add("c1", &pod);
    assert_eq!(node.space.addresses("cni0"), ["10.244.1.1/24", "10.244.9.1/24"]);
    assert!(pod.pings("10.244.1.1"));
    node.conf["delegate"]["forceAddress"] = json!(true);
    node.add("c2", &Space::new());
    assert_eq!(node.space.addresses("cni0"), ["10.244.1.1/24"]);
}

#[test]
fn two_networks_of_one_container_do_not_break_each_other() {
    if !root() {
        return;
    }
    let mut node = node();
    let pod = Space::new();
    node.add("c1", &pod);
    pod.ok("ip", "link set eth0 down");
    pod.ok("ip", "link set eth0 name first");
    let other = V4.replace("10.244.", "10.99.");
    fs::write(node.file("other.env"), other).unwrap();
    let first = node.conf.clone();
    node.conf["name"] = json!("second");
    node.conf["subnetFile"] = json!(node.file("other.env"));
    node.conf["delegate"]["bridge"] = json!("cni1");
    node.add("c1", &pod);
    assert_eq!(node.space.veths().len(), 2);
    let second = std::mem::replace(&mut node.conf, first);
    node.del("c1", "");
    assert_eq!(node.leases(), Vec::<String>::new());
    assert_eq!(node.space.veths().len(), 1);
    assert!(pod.pings("10.99.1.1"), "the other network goes on");
    node.conf = second;
    node.del("c1", "");
    node.assert_clean();
    assert_eq!(
        list(&node.file("networks/second")),
        ["last_reserved_ip.0", "lock"]
    );
}
