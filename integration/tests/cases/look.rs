//! What flannelctl tells of a node's kernel beside what flanneld wants: peers, diff, plan and explain.

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::OPERATOR_ADDRESS;
use flannel_lab::{Lab, LabOptions, Node, Output, etcd, eventually, limit, sandbox};
use serde_json::Value;

use super::backend::Pair;
use super::common::{Lease, lease_of, put_peer, start_all};

const NOT_FOUND: i32 = 4;
const FINDINGS: i32 = 6;

/// flannelctl on a node.
pub(super) fn ctl(node: &Node, arguments: &[&str]) -> Result<Output> {
    let program = format!("{}/flannelctl", sandbox::BINARIES);
    let etcd = ["--etcd-insecure", "--etcd-endpoints", etcd::ENDPOINT];
    node.exec(&[&[program.as_str()], &etcd[..], arguments].concat())
}

pub(super) fn json_of(said: &Output) -> Result<Value> {
    serde_json::from_str(&said.stdout).with_context(|| format!("no JSON: {said:?}"))
}

fn json(node: &Node, arguments: &[&str]) -> Result<Value> {
    json_of(&ctl(node, &[arguments, &["-o", "json"]].concat())?)
}

/// Waits until nothing differs any more, and until the daemon says nothing else.
fn await_same(node: &Node) -> Result<String> {
    eventually(limit(20), "a kernel as it should be", || {
        ctl(node, &["diff"])?.ok()
    })
}

/// Checks that there are exactly these differences, each by its kind and its object.
fn differs(node: &Node, expected: &[(&str, &str)]) -> Result<Value> {
    let said = ctl(node, &["diff", "-o", "json"])?;
    ensure!(said.status.code() == Some(FINDINGS), "not {FINDINGS}: {said:?}");
    let found = json_of(&said)?;
    let lines = found["differences"].as_array().context("no differences")?;
    let told: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| {
            (
                line["kind"].as_str().unwrap_or(""),
                line["object"].as_str().unwrap_or(""),
            )
        })
        .collect();
    ensure!(told == expected, "{told:?} instead of {expected:?}");
    let table = ctl(node, &["diff"])?;
    ensure!(table.status.code() == Some(FINDINGS), "{table:?}");
    for (kind, object) in expected {
        let row = |line: &str| line.starts_with(kind) && line.contains(object);
        ensure!(
            table.stdout.lines().any(row),
            "no row {kind} {object} in {table:?}"
        );
    }
    Ok(found)
}

fn row_of<'a>(peers: &'a Value, subnet: &str) -> Result<&'a Value> {
    let rows = peers["peers"].as_array().context("no peers")?;
    let row = rows.iter().find(|row| row["subnet"] == subnet);
    row.with_context(|| format!("no row of {subnet} in {peers}"))
}

pub fn peers_and_differences_are_told_without_the_daemon() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let node = lab.node(1)?;
    let daemons = start_all(&lab, &["--ip-masq"])?;
    let peer = lease_of(&lab, lab.node(2)?)?;
    healthy(node, &peer)?;

    // Nobody repairs any more.
    drop(daemons);
    await_same(node)?;
    an_entry_is_lost(node, &peer)?;
    rules_are_changed(node)?;
    the_filter_is_changed(node, &peer)?;
    a_foreign_route_is_in_the_way(node, &peer)?;
    a_record_is_refused(&lab, node, &peer)?;
    what_is_left_by_nobody(node)?;

    // The daemon does what the plan says.
    let _again = start_all(&lab, &["--ip-masq"])?;
    await_same(node).map(drop)
}

fn healthy(node: &Node, peer: &Lease) -> Result<()> {
    let said = await_same(node)?;
    ensure!(said.contains("The kernel has what flanneld wants."), "{said}");
    ensure!(
        said.contains("/run/flannel/subnet.env"),
        "where the own lease comes from: {said}"
    );
    let plan = ctl(node, &["plan", "--dry-run"])?.ok()?;
    ensure!(plan.starts_with("flanneld would write nothing."), "{plan}");
    let peers = json(node, &["peers"])?;
    let row = row_of(&peers, &peer.subnet)?;
    let expected = [
        ("publicIp", peer.public_ip.as_str()),
        ("backend", "vxlan"),
        ("neighbour", &peer.vtep),
        ("fdb", &peer.public_ip),
    ];
    for (field, value) in expected {
        ensure!(row[field] == value, "{field} is not {value}: {row}");
    }
    ensure!(
        row["complete"] == true && row["problems"] == serde_json::json!([]),
        "{row}"
    );
    ensure!(
        row["route"] == format!("via {} dev flannel.1", peer.base()),
        "{row}"
    );
    ensure!(
        peers["peers"].as_array().is_some_and(|all| all.len() == 1),
        "{peers}"
    );
    let table = ctl(node, &["peers"])?.ok()?;
    let line = table
        .lines()
        .find(|line| line.starts_with(&peer.subnet))
        .context("no line")?;
    ensure!(
        line.contains(&peer.vtep) && line.ends_with(" complete"),
        "{table}"
    );
    // The same without subnet.env: the node is known by its address.
    let elsewhere = ctl(node, &["diff", "--subnet-file", "/nowhere/subnet.env"])?.ok()?;
    ensure!(elsewhere.contains("the address 192.168.50."), "{elsewhere}");
    Ok(())
}

fn an_entry_is_lost(node: &Node, peer: &Lease) -> Result<()> {
    node.run(&["bridge", "fdb", "del", &peer.vtep, "dev", "flannel.1"])?;
    let entry = format!("fdb {}", peer.vtep);
    let found = differs(node, &[("missing", &entry)])?;
    ensure!(
        found["differences"][0]["wanted"] == format!("dst {}", peer.public_ip),
        "{found}"
    );
    let peers = json(node, &["peers"])?;
    let row = row_of(&peers, &peer.subnet)?;
    ensure!(row["complete"] == false && row["fdb"].is_null(), "{row}");
    ensure!(
        row["problems"] == serde_json::json!([format!("missing {entry}")]),
        "{row}"
    );
    let plan = json(node, &["plan", "--dry-run"])?;
    let operation = format!(
        "fdb replace {} dev flannel.1 dst {} self permanent",
        peer.vtep, peer.public_ip
    );
    ensure!(
        plan["operations"] == serde_json::json!([{"family": "ipv4", "operation": operation}]),
        "{plan}"
    );
    let entries = node.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?;
    ensure!(!entries.contains(&peer.vtep), "a plan wrote: {entries}");
    node.run(&[
        "bridge",
        "fdb",
        "add",
        &peer.vtep,
        "dev",
        "flannel.1",
        "dst",
        &peer.public_ip,
        "self",
    ])?;
    await_same(node).map(drop)
}

fn a_foreign_route_is_in_the_way(node: &Node, peer: &Lease) -> Result<()> {
    node.run(&["ip", "route", "del", &peer.subnet])?;
    let half = format!("{}/25", peer.base());
    for (subnet, protocol) in [(&peer.subnet, "static"), (&half, "186")] {
        node.shell(&format!(
            "ip route add {subnet} via {OPERATOR_ADDRESS} proto {protocol}"
        ))?;
    }
    let (whole, part) = (format!("route {}", peer.subnet), format!("route {half}"));
    let found = differs(node, &[("foreign", &whole), ("foreign", &part)])?;
    let way = format!("via {OPERATOR_ADDRESS} dev eth0 proto 4");
    ensure!(found["differences"][0]["found"] == way.as_str(), "{found}");
    let peers = json(node, &["peers"])?;
    let row = row_of(&peers, &peer.subnet)?;
    ensure!(
        row["route"] == format!("via {OPERATOR_ADDRESS} dev eth0"),
        "{row}"
    );
    ensure!(
        row["complete"] == false && row["problems"].to_string().contains("in the way"),
        "{row}"
    );
    node.run(&["ip", "route", "del", &half])?;
    node.run(&["ip", "route", "del", &peer.subnet])?;
    node.run(&[
        "ip",
        "route",
        "add",
        &peer.subnet,
        "via",
        peer.base(),
        "dev",
        "flannel.1",
        "onlink",
        "proto",
        "70",
    ])?;
    await_same(node).map(drop)
}

fn a_record_is_refused(lab: &Lab, node: &Node, peer: &Lease) -> Result<()> {
    // It claims the peer's VTEP under another address, and the next one cannot be read at all.
    put_peer(lab, "10.5.200.0-24", "192.168.50.99", &peer.vtep)?;
    lab.etcd()
        .put("/coreos.com/network/subnets/10.5.201.0-24", "junk")?;
    let peers = json(node, &["peers"])?;
    let refused = peers["refused"].to_string();
    for part in ["10.5.200.0-24", "is that of the older record", "10.5.201.0-24"] {
        ensure!(refused.contains(part), "no {part:?} in {refused}");
    }
    ensure!(
        peers["peers"].as_array().is_some_and(|all| all.len() == 1),
        "{peers}"
    );
    let table = ctl(node, &["peers"])?.ok()?;
    ensure!(table.contains("Refused records:\n"), "{table}");
    // They ask for nothing in the kernel.
    await_same(node)?;
    for key in ["10.5.200.0-24", "10.5.201.0-24"] {
        lab.etcd().delete(&format!("/coreos.com/network/subnets/{key}"))?;
    }
    Ok(())
}

/// Each rule is named with its chain, and what was there is told apart from what should be.
fn rules_are_changed(node: &Node) -> Result<()> {
    let of = |chain: &str| format!("rule of chain {chain} in nft table ip flannel-ipv4");
    node.shell("nft -s list table ip flannel-ipv4 > /run/flannel/rules")?;
    node.run(&["nft", "add", "rule", "ip", "flannel-ipv4", "forward", "drop"])?;
    let found = differs(node, &[("extra", &of("forward"))])?;
    assert_eq!(found["differences"][0]["found"], "drop");
    let plan = ctl(node, &["plan", "--dry-run"])?.ok()?;
    ensure!(
        plan.starts_with("replace table ip flannel-ipv4 with the rules of --ip-masq"),
        "{plan}"
    );
    node.run(&["nft", "flush", "chain", "ip", "flannel-ipv4", "postrtg"])?;
    let mut expected = vec![("missing", of("postrtg")); 7];
    expected.push(("extra", of("forward")));
    let expected: Vec<(&str, &str)> = expected
        .iter()
        .map(|(kind, object)| (*kind, object.as_str()))
        .collect();
    differs(node, &expected)?;
    node.shell("nft delete table ip flannel-ipv4; nft -f /run/flannel/rules; rm /run/flannel/rules")?;
    await_same(node).map(drop)
}

/// Rules, elements and chains of the filter of encapsulated packets are compared, too.
fn the_filter_is_changed(node: &Node, peer: &Lease) -> Result<()> {
    const TABLE: &str = "ip flannel-encap";
    let own = node.read_file("/run/flannel/subnet.env")?;
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))
        .and_then(|address| address.split_once(".1/"))
        .context("no subnet")?;
    let path = |outer: &str, inner: &str| format!("{outer} . {inner} . {}.0", own.0);
    let element =
        |verb: &str, path: &str| node.shell(&format!("nft {verb} element {TABLE} paths '{{ {path} }}'"));
    let object = format!("element of set paths in nft table {TABLE}");
    let right = path(&peer.public_ip, peer.base());
    let foreign = path("192.168.50.66", "10.5.250.0");

    element("delete", &right)?;
    let found = differs(node, &[("missing", &object)])?;
    assert_eq!(found["differences"][0]["wanted"], right.as_str());
    element("add", &foreign)?;
    let found = differs(node, &[("missing", &object), ("extra", &object)])?;
    assert_eq!(found["differences"][1]["found"], foreign.as_str());
    let plan = ctl(node, &["plan", "--dry-run"])?.ok()?;
    ensure!(
        plan.contains(&format!("add element {TABLE} paths {{ {right} }}"))
            && plan.contains(&format!("delete element {TABLE} paths {{ {foreign} }}")),
        "{plan}"
    );
    element("add", &right)?;
    element("delete", &foreign)?;
    await_same(node)?;

    let of = |chain: &str| format!("rule of chain {chain} in nft table {TABLE}");
    node.shell(&format!("nft insert rule {TABLE} input accept"))?;
    let found = differs(node, &[("extra", &of("input"))])?;
    assert_eq!(found["differences"][0]["found"], "accept");
    node.shell(&format!(
        "nft delete rule {TABLE} input handle $(nft -a list chain {TABLE} input | awk '$1 == \"accept\" {{ print $NF }}')"
    ))?;
    await_same(node)?;
    node.shell(&format!(
        "nft add chain {TABLE} other '{{ type filter hook forward priority 5 ; policy drop ; }}'"
    ))?;
    let found = differs(node, &[("extra", &of("other"))])?;
    ensure!(found.to_string().contains("policy drop"), "{found}");
    node.shell(&format!("nft delete chain {TABLE} other"))?;
    await_same(node).map(drop)
}

fn what_is_left_by_nobody(node: &Node) -> Result<()> {
    node.run(&["nft", "delete", "table", "ip", "flannel-ipv4"])?;
    differs(node, &[("missing", "nft table ip flannel-ipv4")])?;
    node.run(&["ip", "link", "del", "flannel.1"])?;
    let said = ctl(node, &["diff", "-o", "json"])?;
    let found = json_of(&said)?;
    ensure!(found["differences"][0]["object"] == "device flannel.1", "{found}");
    let plan = ctl(node, &["plan"])?.ok()?;
    ensure!(plan.starts_with("link add flannel.1 mtu 1450 address "), "{plan}");
    Ok(())
}

pub fn a_host_that_is_no_node_is_told_so() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    for command in ["peers", "diff", "plan"] {
        let said = lab.flannelctl(&[command])?;
        ensure!(said.status.code() == Some(NOT_FOUND), "{command}: {said:?}");
        ensure!(
            said.stderr.contains("run this on a node of the network"),
            "{command}: {said:?}"
        );
    }
    Ok(())
}

/// Peers of a backend: complete, and then without what `mischief` takes.
fn peers_with(
    backend: &str,
    mischief: &str,
    problem: &str,
    check: impl FnOnce(&Value) -> Result<()>,
) -> Result<()> {
    let mut pair = Pair::start(backend)?;
    await_same(pair.lab.node(1)?)?;
    let peers = json(pair.lab.node(1)?, &["peers"])?;
    ensure!(
        peers["peers"].as_array().is_some_and(|all| all.len() == 1),
        "{peers}"
    );
    let row = &peers["peers"][0];
    ensure!(row["complete"] == true, "{row}");
    check(row)?;
    pair.stop();
    pair.lab.node(1)?.shell(mischief)?;
    let peers = json(pair.lab.node(1)?, &["peers"])?;
    let row = &peers["peers"][0];
    ensure!(
        row["complete"] == false && row["problems"].to_string().contains(problem),
        "{row}"
    );
    Ok(())
}

pub fn peers_of_host_gw() -> Result<()> {
    let gone = "ip route flush proto 70";
    peers_with(r#"{"Type":"host-gw"}"#, gone, "missing route 10.5.", |row| {
        ensure!(
            row["route"].to_string().contains("dev eth0") && row["fdb"].is_null(),
            "{row}"
        );
        Ok(())
    })
}

pub fn peers_of_udp() -> Result<()> {
    let gone = "ip route flush proto 70";
    peers_with(r#"{"Type":"udp"}"#, gone, "missing route 10.5.0.0/16", |row| {
        ensure!(row["route"] == "dev flannel0", "{row}");
        Ok(())
    })
}

pub fn peers_of_ipip() -> Result<()> {
    peers_with(
        r#"{"Type":"ipip"}"#,
        "ip link set flannel.ipip down",
        "wrong device flannel.ipip",
        |row| {
            ensure!(row["route"].to_string().contains("dev flannel.ipip"), "{row}");
            Ok(())
        },
    )
}

pub fn peers_of_wireguard() -> Result<()> {
    let mut pair = Pair::start(r#"{"Type":"wireguard"}"#)?;
    let node = pair.lab.node(1)?;
    await_same(node)?;
    let peers = json(node, &["peers"])?;
    let row = &peers["peers"][0];
    ensure!(
        row["complete"] == true && row["route"] == "dev flannel-wg",
        "{row}"
    );
    let there = format!("{}:51820", pair.lab.node(2)?.address());
    ensure!(row["endpoint"] == there.as_str(), "{row}");
    let age = row["handshakeSecondsAgo"].as_u64().context("no handshake")?;
    ensure!(
        age < 180 && row["sentBytes"].as_u64().is_some_and(|sent| sent > 0),
        "{row}"
    );
    let table = ctl(node, &["peers"])?.ok()?;
    ensure!(table.contains("HANDSHAKE") && table.contains("s ago "), "{table}");
    let status = ctl(node, &["status"])?.ok()?;
    ensure!(
        status.contains("1 of 1 peers of flannel-wg with a handshake"),
        "{status}"
    );
    let far = pair.pods[1].ip();
    let found = json(node, &["explain", far])?;
    ensure!(found["way"]["wireguard"]["endpoint"] == there.as_str(), "{found}");
    ensure!(
        found["way"]["outer"]["device"] == "eth0" && found["problems"] == serde_json::json!([]),
        "{found}"
    );
    pair.stop();
    let node = pair.lab.node(1)?;
    node.shell("ip link del flannel-wg; ip link add flannel-wg type wireguard; ip link set flannel-wg up")?;
    let peers = json(node, &["peers"])?;
    let problems = peers["peers"][0]["problems"].to_string();
    for part in ["missing peer ", "key of flannel-wg", "missing route 10.5.0.0/16"] {
        ensure!(problems.contains(part), "no {part:?} in {problems}");
    }
    Ok(())
}
