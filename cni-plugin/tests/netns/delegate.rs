//! Delegates of other types than `bridge`, run as flannel runs them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::V4;
use crate::lab::{Node, Space, list, root};

/// Where Debian's containernetworking-plugins puts them.
const PLUGINS: &str = "/usr/lib/cni";

/// A node whose delegate is a program of our own that keeps what it is given and does as the file `behaviour` says.
struct Recorder {
    node: Node,
    dir: PathBuf,
}

impl Recorder {
    fn new(delegate: Value) -> Self {
        let mut node = Node::new(V4, delegate);
        let dir = node.file("bin");
        fs::create_dir(&dir).unwrap();
        // No PATH is set, so that it must do with the shell alone.
        let script = format!(
            "#!/bin/sh\nread -r line\necho \"$line\" > {0}/stdin\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" >> {0}/calls\n. {0}/behaviour\n",
            dir.display()
        );
        let program = dir.join("recorder");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        node.search = format!("/nonexistent:{}", dir.display());
        let recorder = Self { node, dir };
        recorder.behave("");
        recorder
    }

    fn behave(&self, script: &str) {
        fs::write(self.dir.join("behaviour"), script).unwrap();
    }

    fn stdin(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir.join("stdin")).unwrap()).unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn another_delegate_gets_what_flannel_renders_and_its_answer_is_ours() {
    if !root() {
        return;
    }
    let mut recorder = Recorder::new(json!({ "type": "recorder", "master": "eth0", "mode": "l2" }));
    let pod = Space::new();
    recorder.behave("echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.244.1.9/24\"}]}'");
    assert_eq!(recorder.node.add("c1", &pod).ip(0), "10.244.1.9");
    let given = recorder.stdin();
    let networks = recorder.node.file("networks");
    assert_eq!(
        given,
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "recorder", "master": "eth0", "mode": "l2",
            "ipMasq": false, "mtu": 1450,
            "ipam": { "type": "host-local", "dataDir": networks, "ranges": [[{ "subnet": "10.244.1.0/24" }]],
                      "routes": [{ "dst": "10.244.0.0/16" }] },
        })
    );
    let saved: Value = serde_json::from_slice(&fs::read(recorder.node.file("flannel/c1")).unwrap()).unwrap();
    assert_eq!(saved, given);

    let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.244.1.9/24" }] });
    recorder.node.conf["prevResult"] = result.clone();
    recorder.behave("");
    assert!(recorder.node.call("CHECK", "c1", &pod.path()).ok);
    assert_eq!(recorder.stdin()["prevResult"], result);

    // What fails can be repeated: nothing is forgotten.
    recorder.behave("echo '{\"code\":7,\"msg\":\"no master\"}'; exit 1");
    let refused = recorder.node.call("DEL", "c1", "");
    assert_eq!(refused.code(), 104);
    assert_eq!(refused.json["msg"], "the plugin recorder failed: no master");
    assert_eq!(list(&recorder.node.file("flannel")), ["c1"]);
    // Attached by one delegate, detached by it, whatever is configured now.
    recorder.behave("");
    recorder.node.conf["delegate"] = json!({});
    recorder.node.del("c1", "");
    assert_eq!(recorder.stdin(), given);
    assert_eq!(list(&recorder.node.file("flannel")), Vec::<String>::new());
    let calls = recorder.calls();
    assert_eq!(
        calls,
        ["ADD c1 eth0", "CHECK c1 eth0", "DEL c1 eth0", "DEL c1 eth0"]
    );
}

#[test]
fn a_delegate_that_cannot_be_run_is_named_and_leaves_nothing() {
    if !root() {
        return;
    }
    let mut recorder = Recorder::new(json!({ "type": "recorder" }));
    let pod = Space::new();
    recorder.behave("echo '{\"code\":11,\"msg\":\"later\"}'; exit 1");
    let answer = recorder.node.call("ADD", "c1", &pod.path());
    assert_eq!((answer.code(), &answer.json["msg"]), (11, &json!("later")));
    assert_eq!(recorder.node.call("ADD", "c1", "/proc/self/ns/net").code(), 8);

    recorder.behave("");
    recorder.node.del("c1", "");
    recorder.node.search = "relative:/nonexistent".to_owned();
    let answer = recorder.node.call("ADD", "c1", &pod.path());
    assert_eq!(answer.code(), 7);
    let said = answer.json.to_string();
    assert!(
        said.contains("recorder") && said.contains("/nonexistent"),
        "{said}"
    );
    // Nothing was attached, so that nothing can be missed.
    recorder.node.del("c1", "");
    for kind in ["../bin/recorder", "/bin/sh", "", "flannel", ".", "a b"] {
        recorder.node.conf["delegate"]["type"] = json!(kind);
        assert_eq!(recorder.node.call("ADD", "c1", &pod.path()).code(), 7, "{kind}");
    }
    recorder.node.conf["delegate"]["type"] = json!(7);
    assert_eq!(recorder.node.call("ADD", "c1", &pod.path()).code(), 7);
    recorder.node.assert_clean();
}

#[test]
fn status_and_gc_are_asked_of_the_delegate_too() {
    if !root() {
        return;
    }
    let mut recorder = Recorder::new(json!({ "type": "recorder" }));
    recorder.node.conf["cniVersion"] = json!("1.1.0");
    assert!(recorder.node.call("STATUS", "", "").ok);
    recorder.behave("echo '{\"code\":50,\"msg\":\"no master\"}'; exit 1");
    assert_eq!(recorder.node.call("STATUS", "", "").code(), 50);
    recorder.behave("echo '{\"cniVersion\":\"1.1.0\",\"ips\":[]}'");
    for id in ["c1", "c2"] {
        recorder.node.add(id, &Space::new());
    }
    let valid = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    recorder.node.conf["cni.dev/valid-attachments"] = valid.clone();
    let answer = recorder.node.call("GC", "", "");
    assert!(answer.ok, "{}", answer.json);
    assert_eq!(recorder.stdin()["cni.dev/valid-attachments"], valid);
    assert_eq!(list(&recorder.node.file("flannel")), ["c2"]);
    fs::remove_file(recorder.node.file("subnet.env")).unwrap();
    assert_eq!(recorder.node.call("STATUS", "", "").code(), 50);
}

fn installed(name: &str) -> bool {
    let there = PathBuf::from(PLUGINS).join(name).exists();
    assert!(
        there || std::env::var_os("CI").is_none(),
        "these tests need containernetworking-plugins"
    );
    there
}

#[test]
fn ptp_as_packaged_attaches_and_detaches() {
    if !root() || !installed("ptp") {
        return;
    }
    let mut node = Node::new(V4, json!({ "type": "ptp" }));
    node.search = PLUGINS.to_owned();
    let pod = Space::new();
    let answer = node.add("c1", &pod);
    assert_eq!(answer.ip(0), "10.244.1.2");
    assert!(pod.pings("10.244.1.1"));
    assert_eq!(node.leases(), ["10.244.1.2"]);
    node.del("c1", &pod.path());
    assert_eq!(pod.devices(), ["lo"]);
    node.assert_clean();
    node.del("c1", &pod.path());
}

#[test]
fn macvlan_as_packaged_attaches_and_detaches() {
    if !root() || !installed("macvlan") {
        return;
    }
    let mut node = Node::new(
        V4,
        json!({ "type": "macvlan", "master": "up0", "mode": "bridge" }),
    );
    node.search = PLUGINS.to_owned();
    node.space.ok("ip", "link add up0 type veth peer name far0");
    node.space.ok("ip", "link set up0 up");
    node.space.ok("ip", "link set far0 up");
    let pods = [Space::new(), Space::new()];
    for (number, pod) in pods.iter().enumerate() {
        node.add(&format!("c{number}"), pod);
    }
    assert!(pods[0].pings("10.244.1.3"));
    for (number, pod) in pods.iter().enumerate() {
        node.del(&format!("c{number}"), &pod.path());
        assert_eq!(pod.devices(), ["lo"]);
    }
    node.assert_clean();
}
