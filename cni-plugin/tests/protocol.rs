//! The built binary against bad input: everything that ends before anything is touched. Needs no root.

#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const ENV: &[(&str, &str)] = &[
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/nonexistent/netns"),
    ("CNI_IFNAME", "eth0"),
];
const CONF: &str = r#"{"name":"n","cniVersion":"1.0.0","subnetFile":"/nonexistent/subnet.env","dataDir":"/nonexistent/d","ipam":{"dataDir":"/nonexistent/l"}}"#;

fn call(env: &[(&str, &str)], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flannel"))
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin may answer without reading all of it.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn command(name: &str, stdin: &[u8]) -> Output {
    let mut env = ENV.to_vec();
    env.push(("CNI_COMMAND", name));
    call(&env, stdin)
}

/// The error on stdout, in the form that every runtime reads.
fn refusal(output: &Output) -> (u64, String) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["cniVersion", "msg", "details"] {
        assert!(error[key].is_string(), "{error}");
    }
    (
        error["code"].as_u64().unwrap(),
        error["msg"].as_str().unwrap().to_owned(),
    )
}

#[test]
fn version_reads_no_stdin() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flannel"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Stdin stays open: a plugin that reads it never ends.
    let held = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(held);
    assert!(output.status.success());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        answer["supportedVersions"],
        serde_json::json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
}

#[test]
fn without_a_command_it_says_what_it_is() {
    let output = call(&[], b"");
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("CNI plugin"));
}

#[test]
fn bad_stdin() {
    let huge = format!("{{\"name\":\"{}\"}}", "x".repeat(2 << 20));
    let deep = "{\"a\":".repeat(50_000);
    for (stdin, code) in [
        ("", 6),
        ("nonsense", 6),
        ("[]", 6),
        ("{\"name\":\"n\"", 6),
        (huge.as_str(), 6),
        (deep.as_str(), 6),
        ("{}", 7),
        (r#"{"name":"../n","cniVersion":"1.0.0"}"#, 7),
        (r#"{"name":"n","cniVersion":"9.9.9"}"#, 1),
        (
            r#"{"name":"n","cniVersion":"1.0.0","delegate":{},"delegate":{}}"#,
            6,
        ),
        (CONF, 11),
    ] {
        let (got, msg) = refusal(&command("ADD", stdin.as_bytes()));
        assert_eq!(got, code, "{stdin:.60}: {msg}");
    }
}

#[test]
fn bad_environment() {
    for (name, value) in [
        ("CNI_COMMAND", "FOO"),
        ("CNI_CONTAINERID", "../../etc"),
        ("CNI_CONTAINERID", ""),
        ("CNI_IFNAME", "a234567890123456"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "nonsense"),
    ] {
        let mut env = ENV.to_vec();
        env.push(("CNI_COMMAND", "ADD"));
        env.push((name, value));
        let (code, msg) = refusal(&call(&env, CONF.as_bytes()));
        assert_eq!(code, 4, "{name}={value}: {msg}");
    }
    let (code, msg) = refusal(&call(&[("CNI_COMMAND", "ADD")], b""));
    assert_eq!(code, 4);
    assert!(msg.contains("CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"), "{msg}");
}

#[test]
fn a_missing_subnet_env_is_named() {
    let output = command("ADD", CONF.as_bytes());
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 11);
    assert_eq!(error["cniVersion"], "1.0.0");
    assert!(
        error["msg"].as_str().unwrap().contains("/nonexistent/subnet.env"),
        "{error}"
    );
    assert!(error["details"].as_str().unwrap().contains("flanneld"), "{error}");
}

#[test]
fn commands_and_the_versions_that_they_need() {
    let conf = |version: &str| CONF.replace("1.0.0", version);
    for (name, version, code) in [
        ("STATUS", "1.1.0", 50),
        ("STATUS", "1.0.0", 1),
        ("GC", "1.1.0", 7),
        ("GC", "0.4.0", 1),
        ("CHECK", "0.4.0", 7),
        ("CHECK", "0.3.1", 1),
    ] {
        let (got, msg) = refusal(&command(name, conf(version).as_bytes()));
        assert_eq!(got, code, "{name} {version}: {msg}");
    }
}

#[test]
fn status_is_quiet_when_an_add_would_work() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("subnet.env");
    std::fs::write(
        &file,
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    let conf = CONF
        .replace("1.0.0", "1.1.0")
        .replace("/nonexistent/subnet.env", file.to_str().unwrap());
    let output = call(&[("CNI_COMMAND", "STATUS")], conf.as_bytes());
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}
