//! Calls and versions, with a pod where one is needed. docs/conformance.md tells which case is which.

use std::fs::File;
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::{Node, Space, VERSIONS, call_other, root};
use crate::{DUAL, V4};

/// Of Debian's containernetworking-plugins, which integration/setup.sh installs.
const PORTMAP: &str = "/usr/lib/cni/portmap";

#[test]
fn s3_without_a_version_it_is_the_first_one() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, json!({}));
    node.conf.as_object_mut().unwrap().remove("cniVersion");
    let answer = node.add("c1", &Space::new());
    assert_eq!(answer.json["ip4"]["ip"], "10.244.1.2/24");
    assert_eq!(answer.json["cniVersion"], "0.1.0");
    node.del("c1", "");
    node.assert_clean();
}

#[test]
fn s7_a_stdin_that_cannot_be_read() {
    let output = Command::new(env!("CARGO_BIN_EXE_flannel"))
        .env_clear()
        .envs([
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
        ])
        .stdin(File::open("/").unwrap())
        .output()
        .unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 5, "{error}");
}

#[test]
fn s10_s13_a_broken_earlier_result() {
    if !root() {
        return;
    }
    for broken in [
        json!("text"),
        json!([]),
        json!({ "cniVersion": "9.9.9" }),
        json!({ "ips": [{ "address": "x" }] }),
        json!({ "interfaces": 7 }),
    ] {
        let mut node = Node::new(V4, json!({}));
        let pod = Space::new();
        node.add("c1", &pod);
        node.conf["prevResult"] = broken.clone();
        assert_eq!(node.call("CHECK", "c1", &pod.path()).code(), 7, "{broken}");
        node.del("c1", &pod.path());
        node.assert_clean();
    }
}

/// portmap without ports gives back the earlier result as the CNI project's library has read it.
fn read_by_the_library(node: &Node, version: &str, result: &Value) -> Value {
    let conf = json!({ "name": "cbr0", "cniVersion": version, "type": "portmap", "prevResult": result });
    let output = call_other(PORTMAP, "ADD", "c1", &conf);
    assert!(output.status.success(), "{version}: {output:?} {}", node.conf);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn x7_the_library_of_the_cni_project_reads_our_results() {
    if !root() {
        return;
    }
    // Debian's library knows no newer version.
    for version in VERSIONS.into_iter().filter(|version| *version != "1.1.0") {
        for subnet_env in [V4, DUAL] {
            let mut node = Node::new(
                subnet_env,
                json!({ "isDefaultGateway": true, "dns": { "nameservers": ["192.0.2.53"] } }),
            );
            node.conf["cniVersion"] = json!(version);
            let ours = node.add("c1", &Space::new()).json;
            assert_eq!(read_by_the_library(&node, version, &ours), ours, "{version}");
        }
    }
}
