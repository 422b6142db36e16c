//! CHECK, GC and STATUS.

use serde_json::{Value, json};

use crate::lab::{Answer, Node, Space, list, root};
use crate::{DUAL, V4};

fn node() -> Node {
    let mut node = Node::new(
        &DUAL.replace("IPMASQ=true", "IPMASQ=false"),
        json!({ "hairpinMode": true, "isDefaultGateway": true }),
    );
    node.conf["cniVersion"] = json!("1.1.0");
    node
}

#[test]
fn check_finds_an_attachment_as_add_left_it_in_every_version() {
    if !root() {
        return;
    }
    let mut node = node();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        node.conf["cniVersion"] = json!(version);
        let pod = Space::new();
        let result = node.add("c1", &pod).json;
        let answer = node.check("c1", &pod, &result);
        assert!(answer.ok && answer.json.is_null(), "{version}: {}", answer.json);
        node.del("c1", &pod.path());
    }
}

#[test]
fn check_names_what_was_changed() {
    if !root() {
        return;
    }
    let mut node = node();
    let pod = Space::new();
    let result = node.add("c1", &pod).json;
    let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    let host = |text: &str| text.replace("PORT", &port);
    // What is broken in which namespace, what the error names, and how it is mended.
    let cases = [
        (
            "pod",
            "address del 10.244.1.2/24 dev eth0",
            "10.244.1.2/24",
            "address add 10.244.1.2/24 dev eth0",
        ),
        (
            "pod",
            "-6 route del default",
            "::/0",
            "-6 route add default via fd00:244:0:1::1",
        ),
        ("pod", "link set eth0 address 02:00:00:00:00:99", "MAC", "MAC"),
        ("pod", "link set eth0 mtu 1300", "MTU", "link set eth0 mtu 1450"),
        (
            "node",
            "link set PORT nomaster",
            "bridge",
            "link set PORT master cni0; link set PORT type bridge_slave hairpin on",
        ),
        (
            "node",
            "link set PORT type bridge_slave hairpin off",
            "hairpin",
            "link set PORT type bridge_slave hairpin on",
        ),
        (
            "node",
            "address del 10.244.1.1/24 dev cni0",
            "10.244.1.1",
            "address add 10.244.1.1/24 dev cni0",
        ),
        ("node", "link set PORT alias x", "", ""),
    ];
    for (place, breakage, named, mend) in cases {
        let space = if place == "pod" { &pod } else { &node.space };
        space.ok("ip", &host(breakage));
        if place == "pod" && named == "10.244.1.2/24" {
            // The routes went with the address.
            pod.ok("ip", "route replace 10.244.1.0/24 dev eth0");
        }
        let answer = node.check("c1", &pod, &result);
        match named {
            "" => assert!(answer.ok, "{breakage}: {}", answer.json),
            _ => {
                assert_eq!(answer.code(), 103, "{breakage}");
                let msg = answer.json["msg"].as_str().unwrap().to_owned();
                assert!(msg.contains(named), "{breakage}: {msg}");
            }
        }
        let space = if place == "pod" { &pod } else { &node.space };
        match mend {
            "" => {}
            "MAC" => {
                let mac = result["interfaces"][2]["mac"].as_str().unwrap();
                space.ok("ip", &format!("link set eth0 address {mac}"));
            }
            mend => mend.split(';').for_each(|step| drop(space.ok("ip", &host(step)))),
        }
        if named == "10.244.1.2/24" {
            for route in ["10.244.0.0/16", "default"] {
                pod.ok("ip", &format!("route replace {route} via 10.244.1.1"));
            }
        }
        let answer = node.check("c1", &pod, &result);
        assert!(answer.ok, "after {mend}: {}", answer.json);
    }
    node.space.ok("nft", "flush set ip flannel-cni-masq pods");
    let answer = node.check("c1", &pod, &result);
    assert!(answer.json["msg"].as_str().unwrap().contains("masqueraded"));
    std::fs::remove_file(node.file("networks/cbr0/10.244.1.2")).unwrap();
    assert_eq!(node.check("c1", &pod, &result).code(), 103);
}

#[test]
fn check_needs_a_result_of_its_version_and_a_namespace() {
    if !root() {
        return;
    }
    let mut node = node();
    let pod = Space::new();
    let result = node.add("c1", &pod).json;
    assert_eq!(node.call("CHECK", "c1", &pod.path()).code(), 7);
    let mut old = result.clone();
    old["cniVersion"] = json!("0.4.0");
    assert_eq!(node.check("c1", &pod, &old).code(), 7);
    let other = Space::new();
    assert_eq!(node.check("c1", &other, &result).code(), 103);
    node.conf["prevResult"] = result;
    assert_eq!(node.call("CHECK", "c1", "/nonexistent").code(), 8);
    assert_eq!(node.call("CHECK", "c1", "/proc/self/ns/net").code(), 8);
}

#[test]
fn check_says_that_the_node_has_another_subnet_now() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, json!({ "isDefaultGateway": true }));
    let (old, new) = (Space::new(), Space::new());
    let before = node.add("c1", &old).json;
    let env = V4.replace("10.244.1.1/24", "10.244.9.1/24");
    std::fs::write(node.file("subnet.env"), env).unwrap();
    let after = node.add("c2", &new).json;
    assert_eq!(new.addresses("eth0"), ["10.244.9.2/24"]);
    assert!(old.pings("10.244.9.2") && new.pings("10.244.1.2") && old.pings("10.244.1.1"));
    let answer = node.check("c1", &old, &before);
    assert_eq!(answer.code(), 103);
    assert!(
        answer.json["msg"].as_str().unwrap().contains("10.244.9.0/24"),
        "{}",
        answer.json
    );
    assert!(node.check("c2", &new, &after).ok);
}

fn gc(node: &mut Node, key: &str, valid: Value) -> Answer {
    node.conf[key] = valid;
    let answer = node.call("GC", "", "");
    node.conf.as_object_mut().unwrap().remove(key);
    answer
}

#[test]
fn gc_removes_what_is_not_in_the_list_of_this_network_only() {
    if !root() {
        return;
    }
    let mut node = node();
    let (a, b, c) = (Space::new(), Space::new(), Space::new());
    node.add("c1", &a);
    node.add("c2", &b);
    node.conf["name"] = json!("other");
    node.conf["delegate"]["bridge"] = json!("br1");
    node.add("c3", &c);
    node.conf["name"] = json!("cbr0");
    node.conf["delegate"].as_object_mut().unwrap().remove("bridge");
    // A lease of a plugin that died, and one that is empty.
    std::fs::write(node.file("networks/cbr0/10.244.1.77"), "gone\r\neth0").unwrap();
    std::fs::write(node.file("networks/cbr0/10.244.1.78"), "").unwrap();
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let valid = json!([{ "containerID": "c2", "ifname": "eth0" }]);
        let answer = gc(&mut node, key, valid);
        assert!(answer.ok && answer.json.is_null(), "{}", answer.json);
        assert_eq!(node.leases(), ["10.244.1.3", "fd00:244:0:1::3"]);
        assert_eq!(list(&node.file("flannel")), ["c2", "c3"]);
        assert_eq!(
            (a.devices().len(), b.devices().len(), c.devices().len()),
            (1, 2, 2)
        );
        assert!(b.pings("10.244.1.1"));
    }
    let masked = node.space.ok("nft", "list set ip flannel-cni-masq pods");
    assert!(
        !masked.contains("10.244.1.2 ") && masked.contains("10.244.1.3"),
        "{masked}"
    );
    // Everything of the network goes with an empty list, and nothing without one.
    assert_eq!(gc(&mut node, "unused", json!(1)).code(), 7);
    assert_eq!(b.devices().len(), 2);
    assert!(gc(&mut node, "cni.dev/valid-attachments", json!([])).ok);
    assert_eq!(
        (node.leases().len(), b.devices().len(), c.devices().len()),
        (0, 1, 2)
    );
}

#[test]
fn gc_refuses_a_list_that_it_cannot_read_and_removes_nothing() {
    if !root() {
        return;
    }
    let mut node = node();
    let pod = Space::new();
    node.add("c1", &pod);
    for list in [
        json!({}),
        json!(["c1"]),
        json!([{ "containerID": "c1" }]),
        json!([{ "containerID": "../c1", "ifname": "eth0" }]),
        json!([{ "containerID": "c1", "ifname": "a/b" }]),
    ] {
        assert_eq!(
            gc(&mut node, "cni.dev/valid-attachments", list.clone()).code(),
            7,
            "{list}"
        );
    }
    assert!(pod.pings("10.244.1.1"));
}

#[test]
fn status_tells_whether_an_add_would_work() {
    if !root() {
        return;
    }
    let mut node = Node::new(&V4.replace("10.244.1.1/24", "10.244.1.1/30"), json!({}));
    node.conf["cniVersion"] = json!("1.1.0");
    assert!(node.call("STATUS", "", "").ok);
    let pod = Space::new();
    node.add("c1", &pod);
    let answer = node.call("STATUS", "", "");
    assert_eq!(answer.code(), 50, "the only address is taken");
    assert!(
        answer.json["msg"]
            .as_str()
            .unwrap()
            .contains("10.244.1.1-10.244.1.2")
    );
    std::fs::remove_file(node.file("subnet.env")).unwrap();
    assert_eq!(
        node.call("STATUS", "", "").code(),
        51,
        "a pod lives on a node without a subnet"
    );
    node.del("c1", "");
    assert_eq!(node.call("STATUS", "", "").code(), 50);
    std::fs::write(node.file("subnet.env"), V4).unwrap();
    assert!(node.call("STATUS", "", "").ok);
    node.conf["delegate"]["mtu"] = json!(-1);
    assert_eq!(node.call("STATUS", "", "").code(), 7);
}
