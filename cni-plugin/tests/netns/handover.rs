//! DEL where a daemon listens: the device is cut off at once and deleted by somebody else.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use flannel_netlink::RouteConn;
use flannel_netlink::link::released;
use serde_json::json;

use crate::lab::{Node, Space, root};
use crate::{DUAL, V4};

/// Two addresses for pods.
const NARROW: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/30\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A daemon that listens, but does nothing until it is told.
struct Daemon(UnixDatagram);

impl Daemon {
    fn of(node: &Node) -> Self {
        let _ = std::fs::remove_file(node.file(released::SOCKET));
        let socket = UnixDatagram::bind(node.file(released::SOCKET)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(socket)
    }

    fn is_told(&self) -> bool {
        self.0.recv(&mut [0; 8]).is_ok()
    }

    fn reap(&self, node: &Node) -> usize {
        let reap = || released::reap(&mut RouteConn::open().unwrap()).unwrap();
        node.space.inside(reap)
    }
}

fn node(subnet_env: &str) -> Node {
    Node::new(
        subnet_env,
        json!({ "hairpinMode": true, "isDefaultGateway": true }),
    )
}

#[test]
fn a_released_pod_is_cut_off_at_once_and_its_addresses_wait_for_its_end() {
    if !root() {
        return;
    }
    let node = node(NARROW);
    let daemon = Daemon::of(&node);
    let (old, new) = (Space::new(), Space::new());
    assert_eq!(node.add("old", &old).ip(0), "10.244.1.2");
    assert!(old.pings("10.244.1.1"));
    node.del("old", &old.path());
    assert!(daemon.is_told());

    // Nobody has deleted it yet; it reaches nothing, and DEL left nothing else.
    let veths = node.space.veths();
    assert_eq!(veths.len(), 1);
    let shown = node.space.json("ip", &format!("-j link show dev {}", veths[0]))[0].clone();
    assert!(
        shown["master"].is_null() && shown["operstate"] == "DOWN",
        "{shown}"
    );
    assert!(!old.pings("10.244.1.1"));
    assert_eq!(node.leases(), Vec::<String>::new());

    // The only address: it is given away when the device is gone, daemon or not.
    assert_eq!(node.add("new", &new).ip(0), "10.244.1.2");
    assert_eq!(old.devices(), ["lo"]);
    assert_eq!(daemon.reap(&node), 0);
    assert!(new.pings("10.244.1.1"));
    node.del("new", "");
    assert!(daemon.is_told());
    assert_eq!(daemon.reap(&node), 1);
    assert_eq!(new.devices(), ["lo"]);
    node.assert_clean();
}

#[test]
fn all_that_was_released_goes_together_and_nothing_else() {
    if !root() {
        return;
    }
    let node = node(DUAL);
    let daemon = Daemon::of(&node);
    let pods: Vec<(String, Space)> = (0..5).map(|n| (format!("c{n}"), Space::new())).collect();
    for (id, pod) in &pods {
        node.add(id, pod);
    }
    for (id, _) in &pods[1..] {
        node.del(id, "");
        // A repeated one is told again, in case the first word was lost.
        node.del(id, "");
    }
    assert_eq!(node.space.veths().len(), 5);
    // Somebody else's device in the same group.
    node.space.ok("ip", "link add other type veth peer name other2");
    node.space
        .ok("ip", &format!("link set other group {}", released::GROUP));
    assert_eq!(daemon.reap(&node), 4);
    assert!(node.space.devices().contains(&"other".to_owned()));
    assert_eq!(node.space.veths().len(), 1);
    assert!(pods[0].1.pings("10.244.1.1") && pods[0].1.pings("fd00:244:0:1::1"));
    node.space.ok("ip", "link delete other");
    node.del("c0", "");
    assert_eq!(daemon.reap(&node), 1);
    node.assert_clean();
}

#[test]
fn what_a_dead_daemon_left_goes_with_the_next_call() {
    if !root() {
        return;
    }
    let mut node = node(V4);
    node.conf["cniVersion"] = json!("1.1.0");
    let leave = |id: &str| {
        let pod = Space::new();
        let daemon = Daemon::of(&node);
        node.add(id, &pod);
        node.del(id, &pod.path());
        assert_eq!(node.space.veths().len(), 1);
        // It leaves its socket, to which nobody listens then.
        drop(daemon);
        pod
    };
    let pod = leave("again");
    node.del("again", &pod.path());
    assert_eq!(pod.devices(), ["lo"]);
    node.assert_clean();

    let pod = leave("another");
    node.del("never-seen", "");
    assert_eq!(pod.devices(), ["lo"]);
    node.assert_clean();

    let pod = leave("same");
    node.add("same", &pod);
    assert!(pod.pings("10.244.1.1"));
    node.del("same", "");
    node.assert_clean();

    // Another container in the same namespace: its interface name is free again.
    let pod = leave("before");
    node.add("after", &pod);
    assert!(pod.pings("10.244.1.1"));
    node.del("after", "");
    node.assert_clean();
}

#[test]
fn what_is_slow_to_close_is_handed_over() {
    if !root() {
        return;
    }
    let node = node(V4);
    let daemon = Daemon::of(&node);
    let pod = Space::new();
    node.add("c1", &pod);
    node.del("c1", &pod.path());
    let held = released::hear(&daemon.0).unwrap();
    let links = held
        .iter()
        .map(|file| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap());
    let sockets: Vec<_> = links
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .collect();
    // One socket for everything that nf_tables was asked.
    assert_eq!((held.len(), sockets.len()), (1, 1));
    assert_eq!(daemon.reap(&node), 1);
    node.assert_clean();
}

#[test]
fn gc_removes_what_was_released_and_what_nobody_knows() {
    if !root() {
        return;
    }
    let mut node = node(V4);
    node.conf["cniVersion"] = json!("1.1.0");
    let daemon = Daemon::of(&node);
    let pods: Vec<Space> = (0..3).map(|_| Space::new()).collect();
    for (n, pod) in pods.iter().enumerate() {
        node.add(&format!("c{n}"), pod);
    }
    node.del("c0", "");
    drop(daemon);
    node.conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    let answer = node.call("GC", "", "");
    assert!(answer.ok, "{}", answer.json);
    assert_eq!(node.space.veths().len(), 1);
    assert_eq!(pods[1].devices(), ["lo"]);
    assert!(pods[2].pings("10.244.1.1"));
}
