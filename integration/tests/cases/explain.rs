//! `flannelctl explain ADDRESS`: what the address is, and what a packet to it meets, beside what the kernel itself shows.

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::OUTSIDE_ADDRESS;
use flannel_lab::{Lab, LabOptions, Node, Pod, eventually, limit};
use serde_json::Value;

use super::common::{await_ping, lease_of, start_all};
use super::look::{ctl, json_of};

fn explained(node: &Node, address: &str) -> Result<Value> {
    let said = ctl(node, &["explain", address, "-o", "json"])?;
    ensure!(said.success(), "{said:?}");
    json_of(&said)
}

fn is(found: &Value, path: &str, expected: &str) -> Result<()> {
    let value = found
        .pointer(path)
        .with_context(|| format!("no {path} in {found}"))?;
    ensure!(value == expected, "{path} is {value}, not {expected}: {found}");
    Ok(())
}

/// The rule of our own table at the hook.
fn ours<'a>(found: &'a Value, hook: &str) -> Result<&'a Value> {
    let rules = found["rules"].as_array().context("no rules")?;
    let rule = rules.iter().find(|rule| {
        rule["hook"] == hook
            && rule["table"]
                .as_str()
                .is_some_and(|table| table.contains("flannel-ipv"))
    });
    rule.with_context(|| format!("no rule of ours at {hook} in {found}"))
}

pub fn an_address_is_explained_wherever_it_lies() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    let daemons = start_all(&lab, &["--ip-masq"])?;
    let pods = [lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?];
    await_ping(&pods[0], pods[1].ip())?;
    let node = lab.node(1)?;
    a_pod_elsewhere(&lab, node, &pods[1])?;
    a_pod_here(node, &pods[0])?;
    nodes_and_others(&lab, node)?;
    drop(daemons);
    a_broken_way(&lab, node, &pods[1])?;
    lab.etcd_mut().kill()?;
    let found = explained(lab.node(1)?, pods[1].ip())?;
    ensure!(
        found["place"].is_null() && found["unknown"].as_array().is_some_and(|u| u.len() == 1),
        "{found}"
    );
    is(&found, "/way/route/device", "flannel.1")
}

fn a_pod_elsewhere(lab: &Lab, node: &Node, pod: &Pod) -> Result<()> {
    let peer = lease_of(lab, lab.node(2)?)?;
    let found = explained(node, pod.ip())?;
    for (path, expected) in [
        ("/place/kind", "podElsewhere"),
        ("/place/subnet", &peer.subnet),
        ("/place/node", &peer.public_ip),
        ("/way/route/via", peer.base()),
        ("/way/route/device", "flannel.1"),
        ("/way/neighbour/mac", &peer.vtep),
        ("/way/fdb", &peer.public_ip),
        ("/way/outer/to", &peer.public_ip),
        ("/way/outer/device", "eth0"),
        ("/way/devices/0/name", "flannel.1"),
        ("/way/devices/1/name", "eth0"),
    ] {
        is(&found, path, expected)?;
    }
    ensure!(found["way"]["neighbour"]["permanent"] == true, "{found}");
    let entry = found["way"]["entry"].as_str().unwrap_or_default();
    ensure!(
        entry.starts_with(&peer.subnet) && entry.ends_with("proto 70 (flanneld's)"),
        "{entry}"
    );
    let counted = || -> Result<u64> {
        explained(node, pod.ip())?
            .pointer("/way/devices/0/sentPackets")
            .and_then(Value::as_u64)
            .context("no counter")
    };
    let before = counted()?;
    node.ping(pod.ip())?;
    ensure!(
        counted()? > before,
        "a packet went there, and the counter stays at {before}"
    );
    ensure!(ours(&found, "forward")?["verdict"] == "pass", "{found}");
    ensure!(
        ours(&found, "postrouting")?["verdict"] == "pass",
        "pods see each other: {found}"
    );
    ensure!(found["problems"] == serde_json::json!([]), "{found}");
    let own = lease_of(lab, node)?;
    let path = format!("paths {} . {} . {}", peer.public_ip, peer.base(), own.base());
    is(&found, "/answers/by/0", &path)?;
    let table = ctl(node, &["explain", pod.ip()])?.ok()?;
    for part in [
        "the subnet of ",
        "FDB entry     dst ",
        "Answers       let in by element paths ",
        "flannel.1",
        "flannel-ipv4",
        "DEVICE",
    ] {
        ensure!(table.contains(part), "no {part:?} in\n{table}");
    }
    Ok(())
}

fn a_pod_here(node: &Node, pod: &Pod) -> Result<()> {
    node.ping(pod.ip())?;
    let found = explained(node, pod.ip())?;
    is(&found, "/place/kind", "podHere")?;
    is(&found, "/way/route/device", "cni0")?;
    let mac = found
        .pointer("/way/neighbour/mac")
        .and_then(Value::as_str)
        .context("no neighbour")?;
    let link = pod.run(&["ip", "link", "show", "eth0"])?;
    ensure!(link.contains(mac), "{mac} is not in {link}");
    // Nobody has the next address but one, and the kernel finds out when it asks.
    let (network, last) = pod.ip().rsplit_once('.').context("no IPv4 address")?;
    let nobody = format!("{network}.{}", last.parse::<u8>()? + 50);
    let _ = node.exec(&["ping", "-c", "1", "-W", "1", &nobody])?;
    eventually(limit(10), "an answer that does not come", || {
        let found = explained(node, &nobody)?;
        ensure!(found["problems"].to_string().contains("no pod has it"), "{found}");
        Ok(())
    })
}

fn nodes_and_others(lab: &Lab, node: &Node) -> Result<()> {
    let found = explained(node, lab.node(2)?.address())?;
    is(&found, "/place/kind", "node")?;
    is(&found, "/way/route/device", "eth0")?;
    let found = explained(node, node.address())?;
    is(&found, "/place/kind", "thisHost")?;
    ensure!(found["rules"] == serde_json::json!([]), "{found}");
    let found = explained(node, OUTSIDE_ADDRESS)?;
    is(&found, "/place/kind", "outside")?;
    ensure!(ours(&found, "postrouting")?["verdict"] == "masquerade", "{found}");
    let found = explained(node, "10.5.253.9")?;
    is(&found, "/place/kind", "unassigned")?;
    let wrong = ctl(node, &["explain", "nobody"])?;
    ensure!(
        wrong.status.code() == Some(1) && wrong.stderr.contains("10.96.0.10:80"),
        "{wrong:?}"
    );
    Ok(())
}

fn a_broken_way(lab: &Lab, node: &Node, pod: &Pod) -> Result<()> {
    let peer = lease_of(lab, lab.node(2)?)?;
    node.run(&["bridge", "fdb", "del", &peer.vtep, "dev", "flannel.1"])?;
    node.shell("nft 'add table ip hers; add chain ip hers gate { type filter hook forward priority 10; policy drop; }'")?;
    let own = lease_of(lab, node)?;
    let element = format!("{} . {} . {}", peer.public_ip, peer.base(), own.base());
    node.shell(&format!(
        "nft 'delete element ip flannel-encap paths {{ {element} }}'"
    ))?;
    let found = explained(node, pod.ip())?;
    let problems = found["problems"].to_string();
    let lost = format!("missing fdb {}", peer.vtep);
    for part in [
        lost.as_str(),
        &format!("answers are dropped: element paths {element} is not in table ip flannel-encap"),
        "chain gate of table ip hers drops it, by its policy",
    ] {
        ensure!(problems.contains(part), "no {part:?} in {problems}");
    }
    node.run(&["nft", "delete", "table", "ip", "hers"])?;
    node.run(&["ip", "route", "replace", "blackhole", &format!("{}/32", pod.ip())])?;
    let found = explained(node, pod.ip())?;
    ensure!(found["way"]["route"].is_null(), "{found}");
    ensure!(
        found["way"]["entry"]
            .as_str()
            .is_some_and(|entry| entry.starts_with("blackhole ")),
        "{found}"
    );
    node.run(&["ip", "route", "del", "blackhole", &format!("{}/32", pod.ip())])
        .map(drop)
}

pub fn an_address_of_ipv6_is_explained_alike() -> Result<()> {
    let dual = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(dual))?;
    let _daemons: Vec<_> = lab
        .nodes()
        .iter()
        .map(|node| node.start_ready_flanneld(&["--ip-masq"]))
        .collect::<Result<_>>()?;
    let pods = [lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?];
    let there = pods[1]
        .addresses()?
        .into_iter()
        .find(|address| address.contains(':'))
        .context("no IPv6")?;
    await_ping(&pods[0], &there)?;
    let found = explained(lab.node(1)?, &there)?;
    is(&found, "/place/kind", "podElsewhere")?;
    is(&found, "/way/route/device", "flannel-v6.1")?;
    is(&found, "/way/fdb", lab.node(2)?.ipv6_address())?;
    ensure!(ours(&found, "forward")?["table"] == "ip6 flannel-ipv6", "{found}");
    ensure!(found["problems"] == serde_json::json!([]), "{found}");
    let found = explained(lab.node(1)?, "2001:db8:2::10")?;
    ensure!(ours(&found, "postrouting")?["verdict"] == "masquerade", "{found}");
    ctl(lab.node(1)?, &["diff"])?.ok().map(drop)
}
