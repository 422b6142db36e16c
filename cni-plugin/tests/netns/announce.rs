//! Who is told of a new pod's address, by the frames that others on the bridge get, and why most need not be told.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::frames::{BROADCAST, Mac, Wire, arp};
use crate::guard::{link_local, mac};
use crate::lab::{Node, Space, root};
use crate::{DUAL, V4};

const SPEAKER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 200);

/// A node with a pod that listens and one that speaks.
struct Scene {
    node: Node,
    listener: Space,
    speaker: Space,
    voice: Mac,
}

impl Scene {
    fn new(delegate: Value) -> Self {
        let node = Node::new(V4, delegate);
        let (listener, speaker) = (Space::new(), Space::new());
        node.add("listener", &listener);
        let voice = mac(&node.add("speaker", &speaker));
        Self {
            node,
            listener,
            speaker,
            voice,
        }
    }

    /// Whether everybody is told of an address by an ADD: a broadcast of ARP whose sender and target are the same (RFC 5227).
    fn announces(&self, id: &str) -> bool {
        let (hears, speaks) = (Wire::new(&self.listener), Wire::new(&self.speaker));
        self.node.add(id, &Space::new());
        let last = arp(self.voice, 1, (self.voice, SPEAKER), NOBODY);
        speaks.send(&last);
        let frames = hears.until(&last);
        let mut addressed = frames.iter().filter(|frame| frame.len() >= 42);
        addressed
            .any(|frame| frame[..6] == BROADCAST && frame[12..14] == [8, 6] && frame[28..32] == frame[38..42])
    }
}

#[test]
fn nobody_need_be_told_while_addresses_keep_their_hardware_address() {
    if !root() {
        return;
    }
    let mut scene = Scene::new(json!({}));
    assert_eq!(scene.voice, [0x0a, 0x58, 10, 244, 1, 3]);
    assert!(!scene.announces("c1"));
    // From one that somebody chose on, neighbours may know an address otherwise.
    scene.node.variables = vec![("CNI_ARGS", "MAC=02:00:00:00:00:01".to_owned())];
    assert!(scene.announces("c2"));
    scene.node.variables.clear();
    assert!(scene.announces("c3"));
}

/// An IPv6 address of its own would be one that nobody uses, and its reports of groups come to every pod.
#[test]
fn a_pod_without_ipv6_sends_nothing_unasked() {
    if !root() {
        return;
    }
    let scene = Scene::new(json!({}));
    let (hears, pod) = (Wire::new(&scene.listener), Space::new());
    let own = mac(&scene.node.add("c1", &pod));
    // A report would come some milliseconds after the address.
    std::thread::sleep(Duration::from_millis(300));
    let last = arp(own, 1, (own, Ipv4Addr::new(10, 244, 1, 4)), NOBODY);
    Wire::new(&pod).send(&last);
    let frames = hears.until(&last);
    let sent: Vec<_> = frames.iter().filter(|frame| frame[6..12] == own).collect();
    assert_eq!(sent, [&last]);
    assert_eq!(addresses6(&pod), [] as [&str; 0]);

    // One with IPv6 has the address that the guard knows.
    let node = Node::new(DUAL, json!({}));
    let pod = Space::new();
    let expected = link_local(mac(&node.add("c1", &pod))).to_string();
    assert_eq!(addresses6(&pod), [expected, "fd00:244:0:1::2".to_owned()]);
}

fn addresses6(pod: &Space) -> Vec<String> {
    let shown = pod.json("ip", "-j -6 address show dev eth0");
    let lists = shown.as_array().unwrap().iter();
    let mut found: Vec<String> = lists
        .flat_map(|device| device["addr_info"].as_array().cloned().unwrap_or_default())
        .map(|address| address["local"].as_str().unwrap().to_owned())
        .collect();
    found.sort_by_key(|address| !address.starts_with("fe80"));
    found
}

#[test]
fn who_can_send_as_anybody_is_announced() {
    if !root() {
        return;
    }
    assert!(Scene::new(json!({ "antiSpoof": false })).announces("c1"));
}

#[test]
fn pods_of_other_plugins_may_have_had_the_address() {
    if !root() {
        return;
    }
    let scene = Scene::new(json!({}));
    let lease = scene.node.file("networks/cbr0/10.244.1.77");
    std::fs::write(&lease, "stranger\r\neth0").unwrap();
    assert!(scene.announces("c1"));
    std::fs::remove_file(&lease).unwrap();
    assert!(scene.announces("c2"), "neighbours remember him still");
    // A boot makes all forget.
    let noted = scene.node.file("networks/.flannel-cbr0/announce");
    std::fs::write(noted, "an earlier boot").unwrap();
    assert!(!scene.announces("c3"));
}

/// What others know of an address is true for its next owner as well, without a word from him.
#[test]
fn a_reused_address_answers_at_once() {
    if !root() {
        return;
    }
    let mut node = Node::new(DUAL, json!({}));
    let (other, first) = (Space::new(), Space::new());
    node.add("other", &other);
    node.variables = vec![("CNI_ARGS", "IP=10.244.1.50".to_owned())];
    node.conf["runtimeConfig"] = json!({ "ips": ["fd00:244:0:1::50"] });
    node.add("c1", &first);
    // As if both had been heard of for a long time: such entries are not asked about again.
    for (family, address) in [("-4", "10.244.1.50"), ("-6", "fd00:244:0:1::50")] {
        assert!(other.pings(address));
        let known = other.json("ip", &format!("-j {family} neigh show {address}"));
        let known = known[0]["lladdr"].as_str().unwrap().to_owned();
        other.ok(
            "ip",
            &format!("{family} neigh replace {address} lladdr {known} dev eth0 nud permanent"),
        );
    }
    node.del("c1", &first.path());
    let second = Space::new();
    node.add("c2", &second);
    for address in ["10.244.1.50", "fd00:244:0:1::50"] {
        assert!(other.pings(address), "{address}");
    }
}
