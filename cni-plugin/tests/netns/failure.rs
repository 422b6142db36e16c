//! What goes wrong, and that nothing is left then.

use std::time::Duration;

use serde_json::json;

use crate::lab::{Node, Space, list, root};
use crate::{DUAL, V4};

fn node() -> Node {
    Node::new(V4, json!({ "hairpinMode": true, "isDefaultGateway": true }))
}

#[test]
fn del_is_repeatable_and_needs_no_namespace() {
    if !root() {
        return;
    }
    let node = node();
    for netns in ["given", "", "/nonexistent/netns", "/etc/hostname"] {
        let pod = Space::new();
        node.add("c1", &pod);
        let path = if netns == "given" {
            pod.path()
        } else {
            netns.to_owned()
        };
        node.del("c1", &path);
        node.assert_clean();
        node.del("c1", &path);
        assert_eq!(pod.devices(), ["lo"], "{netns}");
    }
    std::fs::remove_file(node.file("subnet.env")).unwrap();
    let quiet = node.del("never-seen", "");
    assert_eq!(quiet.stderr, "");
    assert!(
        node.space.devices().contains(&"cni0".to_owned()),
        "the bridge stays for the next pod"
    );
}

#[test]
fn a_second_add_is_refused_and_changes_nothing() {
    if !root() {
        return;
    }
    let node = node();
    let (pod, other) = (Space::new(), Space::new());
    node.add("c1", &pod);
    let veths = node.space.veths();
    assert_eq!(node.call("ADD", "c1", &pod.path()).code(), 102);
    assert_eq!(node.call("ADD", "c1", &other.path()).code(), 102);
    assert_eq!(node.space.veths(), veths);
    assert_eq!(node.leases(), ["10.244.1.2"]);
    assert!(pod.pings("10.244.1.1"));
    assert_eq!(other.devices(), ["lo"]);
}

#[test]
fn an_interface_of_somebody_else_is_left_alone() {
    if !root() {
        return;
    }
    let node = node();
    let pod = Space::new();
    pod.ok("ip", "link add eth0 type bridge");
    assert_eq!(node.call("ADD", "c1", &pod.path()).code(), 102);
    node.assert_clean();
    node.del("c1", &pod.path());
    assert!(pod.devices().contains(&"eth0".to_owned()));
}

#[test]
fn the_nodes_own_namespace_is_never_touched() {
    if !root() {
        return;
    }
    let node = node();
    node.space.ok("ip", "link add eth0 type veth peer name eth1");
    // Resolved by the plugin, this is the namespace that it runs in.
    let own = "/proc/self/ns/net";
    assert_eq!(node.call("ADD", "c1", own).code(), 8);
    node.del("c1", own);
    let devices = node.space.devices();
    assert!(
        devices.contains(&"eth0".to_owned()) && !devices.contains(&"cni0".to_owned()),
        "{devices:?}"
    );
    node.assert_clean();
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    if !root() {
        return;
    }
    let node = node();
    for path in [
        "/nonexistent",
        "/etc/hostname",
        "/proc/self/ns/mnt",
        "/dev/zero",
        "/",
    ] {
        assert_eq!(node.call("ADD", "c1", path).code(), 8, "{path}");
    }
    node.assert_clean();
}

#[test]
fn a_device_that_is_no_bridge_is_named() {
    if !root() {
        return;
    }
    let node = node();
    node.space.ok("ip", "link add cni0 type veth peer name other");
    let pod = Space::new();
    let answer = node.call("ADD", "c1", &pod.path());
    assert_eq!(answer.code(), 102);
    assert!(
        answer.json["msg"].as_str().unwrap().contains("cni0"),
        "{}",
        answer.json
    );
    node.assert_clean();
    assert_eq!(pod.devices(), ["lo"]);
}

#[test]
fn an_exhausted_subnet_leaves_nothing_behind() {
    if !root() {
        return;
    }
    let node = Node::new(&DUAL.replace("10.244.1.1/24", "10.244.1.1/30"), json!({}));
    let (a, b) = (Space::new(), Space::new());
    node.add("c1", &a);
    let answer = node.call("ADD", "c2", &b.path());
    assert_eq!(answer.code(), 101);
    assert_eq!((node.leases().len(), node.space.veths().len()), (2, 1));
    assert_eq!(list(&node.file("flannel")), ["c1"]);
    node.del("c2", &b.path());
    node.del("c1", &a.path());
    node.assert_clean();
    node.add("c2", &b);
}

#[test]
fn a_route_that_the_kernel_refuses_rolls_everything_back() {
    if !root() {
        return;
    }
    let mut node = node();
    // The gateway is on no network of the pod.
    node.conf["ipam"]["routes"] = json!([{ "dst": "172.16.0.0/12", "gw": "198.51.100.1" }]);
    let pod = Space::new();
    let answer = node.call("ADD", "c1", &pod.path());
    assert_eq!(answer.code(), 100);
    assert!(
        answer.json["msg"].as_str().unwrap().contains("172.16.0.0/12"),
        "{}",
        answer.json
    );
    node.assert_clean();
    assert_eq!(pod.devices(), ["lo"]);
}

#[test]
fn a_result_without_a_reader_rolls_everything_back() {
    if !root() {
        return;
    }
    let node = Node::new(
        &DUAL.replace("IPMASQ=true", "IPMASQ=false"),
        json!({ "isDefaultGateway": true }),
    );
    let pod = Space::new();
    let mut child = node.start("ADD", "c1", &pod.path());
    drop(child.stdout.take());
    assert!(!child.wait().unwrap().success());
    node.assert_clean();
    let set = node.space.json("nft", "-j list set ip flannel-cni-masq pods");
    assert!(set["nftables"][1]["set"].get("elem").is_none(), "{set}");
}

#[test]
fn after_a_kill_at_any_moment_del_leaves_nothing() {
    if !root() {
        return;
    }
    let node = Node::new(
        &DUAL.replace("IPMASQ=true", "IPMASQ=false"),
        json!({ "isDefaultGateway": true }),
    );
    let pod = Space::new();
    let mut unfinished = 0;
    for step in 0..40 {
        let mut child = node.start("ADD", "c1", &pod.path());
        // From before the first file to after the last message; an ADD takes a few milliseconds.
        std::thread::sleep(Duration::from_micros(step * 200));
        child.kill().unwrap();
        unfinished += u32::from(!child.wait_with_output().unwrap().status.success());
        node.del("c1", if step % 2 == 0 { "" } else { "/nonexistent" });
        assert_eq!(
            (node.space.veths(), node.leases()),
            (vec![], vec![]),
            "step {step}"
        );
        assert_eq!(pod.devices(), ["lo"], "step {step}");
    }
    assert!(unfinished > 0, "no ADD was interrupted");
    node.add("c1", &pod);
    assert!(pod.pings("10.244.1.1"));
    node.del("c1", "");
    node.assert_clean();
}

#[test]
fn the_rest_of_a_killed_add_is_replaced() {
    if !root() {
        return;
    }
    let node = node();
    let pod = Space::new();
    node.add("c1", &pod);
    // As if ADD had been killed just before its last step.
    let records = node.file("networks/.flannel-cbr0/records");
    let record = records.join(&list(&records)[0]);
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replacen("done  ", "adding", 1)).unwrap();
    let answer = node.add("c1", &pod);
    assert!(answer.stderr.contains("replaced"), "{}", answer.stderr);
    assert_eq!(node.space.veths().len(), 1);
    assert_eq!(node.leases(), ["10.244.1.3"]);
    assert_eq!(pod.addresses("eth0"), ["10.244.1.3/24"]);
    assert!(pod.pings("10.244.1.1"));
}

#[test]
fn lost_leases_and_records_come_back_from_the_kernel() {
    if !root() {
        return;
    }
    let node = node();
    let (a, b, c) = (Space::new(), Space::new(), Space::new());
    node.add("c1", &a);
    std::fs::remove_file(node.file("networks/cbr0/10.244.1.2")).unwrap();
    std::fs::remove_file(node.file("networks/cbr0/last_reserved_ip.0")).unwrap();
    node.add("c2", &b);
    assert_eq!(node.leases(), ["10.244.1.2", "10.244.1.3"]);
    std::fs::remove_dir_all(node.file("networks")).unwrap();
    let third = node.add("c3", &c);
    assert_eq!(third.ip(0), "10.244.1.4", "{}", third.stderr);
    assert_eq!(node.leases(), ["10.244.1.2", "10.244.1.3", "10.244.1.4"]);
    assert_eq!(node.call("ADD", "c1", &a.path()).code(), 102);
    for id in ["c1", "c2", "c3"] {
        node.del(id, "");
    }
    node.assert_clean();
}

#[test]
fn a_pool_full_of_dead_pods_has_room() {
    if !root() {
        return;
    }
    let mut node = Node::new(&V4.replace("10.244.1.1/24", "10.244.1.1/29"), json!({}));
    node.conf["cniVersion"] = json!("1.1.0");
    let pods: Vec<Space> = (0..5).map(|_| Space::new()).collect();
    for (number, pod) in pods.iter().enumerate() {
        node.add(&format!("c{number}"), pod);
    }
    let late = Space::new();
    let full = node.call("ADD", "late", &late.path());
    assert_eq!(full.code(), 101);
    let details = full.json["details"].as_str().unwrap();
    assert!(
        details.contains("5 addresses are held, among them 10.244.1."),
        "{details}"
    );
    drop(pods);
    // Their namespaces are gone; no DEL ever comes. The kernel takes a moment to remove the devices.
    for _ in 0..100 {
        if node.space.veths().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(node.call("STATUS", "", "").ok);
    node.add("late", &late);
    assert_eq!(node.leases().len(), 1);
}

#[test]
fn files_that_are_no_leases_are_put_aside() {
    if !root() {
        return;
    }
    let node = node();
    let leases = node.file("networks/cbr0");
    std::fs::create_dir_all(&leases).unwrap();
    std::fs::write(leases.join("10.244.1.2"), "").unwrap();
    std::fs::write(leases.join("10.244.1.3"), [0, 0xff]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", leases.join("10.244.1.4")).unwrap();
    let answer = node.add("c1", &Space::new());
    assert_eq!(answer.ip(0), "10.244.1.2");
    assert!(answer.stderr.contains("put aside"), "{}", answer.stderr);
    assert_eq!(node.leases(), ["10.244.1.2"]);
    assert_eq!(list(&node.file("networks/.flannel-cbr0/quarantine")).len(), 3);
}

#[test]
fn a_subnet_env_that_is_not_there_yet() {
    if !root() {
        return;
    }
    let node = node();
    std::fs::remove_file(node.file("subnet.env")).unwrap();
    let pod = Space::new();
    assert_eq!(node.call("ADD", "c1", &pod.path()).code(), 11);
    assert_eq!(list(node.dir.path()), Vec::<String>::new());
    assert!(!node.space.devices().contains(&"cni0".to_owned()));
}
