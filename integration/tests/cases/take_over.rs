//! A host with flannel's iptables chains, and hosts on which others filter forwarded packets.

use anyhow::{Result, ensure};
use flannel_lab::{Lab, LabOptions, Node, Pod, eventually, limit};

use super::common::await_ping;
use super::ctl::finds;
use super::overlay::outside;

/// flannel's rules as its iptables mode writes them, with `iptables` in one of its variants, among those of others.
fn flannels(iptables: &str) -> String {
    format!(
        "{iptables} -t nat -N DOCKER; {iptables} -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; \
         {iptables} -t nat -N FLANNEL-POSTRTG; \
         {iptables} -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG; \
         {iptables} -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment 'flanneld masq' -j RETURN; \
         {iptables} -t nat -A FLANNEL-POSTRTG -s 10.9.0.0/16 ! -d 224.0.0.0/4 -m comment --comment 'flanneld masq' -j MASQUERADE; \
         {iptables} -A FORWARD -i docker0 -j ACCEPT; {iptables} -N FLANNEL-FWD; \
         {iptables} -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD; \
         {iptables} -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT; {iptables} -A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT"
    )
}

/// Every rule and chain, without the counters of those that packets pass.
fn saved(node: &Node, iptables: &str) -> Result<Vec<String>> {
    let text = node.shell(&format!("{iptables} -t nat -S; {iptables} -S"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn await_outside(pod: &Pod) -> Result<()> {
    eventually(limit(10), "an answer from outside", || pod.ask("tcp", &outside())).map(drop)
}

fn nothing_drops(node: &Node, pod: &Pod) -> Result<()> {
    await_outside(pod)?;
    finds(node, "ok", "forwarding  ", "no chain drops")
}

fn without_flannels(rules: &[String]) -> Vec<String> {
    rules
        .iter()
        .filter(|rule| !rule.contains("FLANNEL"))
        .cloned()
        .collect()
}

pub fn old_chains_are_removed_and_nothing_else() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let variants = ["iptables-nft", "iptables-legacy"];
    let mut before = Vec::new();
    for iptables in variants {
        node.shell(&flannels(iptables))?;
        before.push(saved(node, iptables)?);
    }
    let mut daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    daemon.wait_log("FLANNEL-POSTRTG in table ip nat is removed")?;
    for (iptables, before) in variants.iter().zip(&before) {
        let expected = without_flannels(before);
        ensure!(
            expected.len() < before.len(),
            "{iptables} shows no chain of flannel: {before:?}"
        );
        eventually(limit(10), "the chains of flannel to be gone", || {
            let after = saved(node, iptables)?;
            ensure!(
                after == expected,
                "{iptables}: {after:#?} instead of {expected:#?}"
            );
            Ok(())
        })?;
    }
    let pod = node.add_pod("one")?;
    await_outside(&pod)
}

/// docker lets the policy of FORWARD drop: what flannel's chain accepts there nobody else can.
pub fn a_chain_that_keeps_pods_connected_stays() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    node.shell(&flannels("iptables-nft"))?;
    node.shell("iptables-nft -P FORWARD DROP")?;
    let before = saved(node, "iptables-nft")?;
    let mut daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    daemon.wait_log("FLANNEL-FWD in table ip filter stays")?;
    let pod = node.add_pod("one")?;
    nothing_drops(node, &pod)?;
    let after = saved(node, "iptables-nft")?;
    let expected: Vec<String> = before
        .into_iter()
        .filter(|rule| !rule.contains("FLANNEL-POSTRTG"))
        .collect();
    ensure!(after == expected, "{after:#?} instead of {expected:#?}");

    // Without it nothing passes, and the doctor says why and what helps.
    node.shell("iptables-nft -F FLANNEL-FWD")?;
    ensure!(pod.ask("tcp", &outside()).is_err(), "the policy does not drop");
    finds(
        node,
        "error",
        "forwarding  ",
        "chain FORWARD of table ip filter drops, by its policy, packets from pods here",
    )?;
    node.shell(
        "iptables-nft -I FORWARD -s 10.5.0.0/16 -j ACCEPT; iptables-nft -I FORWARD -d 10.5.0.0/16 -j ACCEPT",
    )?;
    nothing_drops(node, &pod)
}

/// firewalld's shape: a table for both families, a jump by zone, what is established passes, and the rest is rejected at the end.
pub fn a_firewall_that_rejects_pods_is_named() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    let pod = node.add_pod("one")?;
    await_outside(&pod)?;
    node.shell(
        "nft -f - <<'END'\n\
         table inet firewalld {\n\
         chain zones { iifname \"nobody0\" goto trusted\n }\n\
         chain trusted { accept\n }\n\
         chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;\n\
         ct state { established, related } accept\n ct status dnat accept\n iifname \"lo\" accept\n jump zones\n\
         ct state invalid drop\n reject with icmpx admin-prohibited\n }\n\
         }\nEND",
    )?;
    ensure!(pod.ask("tcp", &outside()).is_err(), "nothing rejects");
    let part = "chain filter_FORWARD of table inet firewalld drops, by rule";
    // Whether a connection is established is asked of a set, into which nobody looks here.
    finds(node, "warning", "forwarding  ", part)?;
    // What pods send is trusted now.
    for side in ["saddr", "daddr"] {
        node.shell(&format!(
            "nft insert rule inet firewalld zones ip {side} 10.5.0.0/16 goto trusted"
        ))?;
    }
    nothing_drops(node, &pod)
}

/// kube-proxy marks what it masquerades itself; packets with its mark are left to it.
pub fn packets_with_the_mark_of_kube_proxy_are_left_to_it() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    let pod = node.add_pod("one")?;
    await_ping(&pod, node.address())?;
    await_outside(&pod)?;
    // The mark is one bit among others.
    node.shell(
        "nft 'add table ip marks; add chain ip marks prepare { type filter hook prerouting priority -150; }; \
         add rule ip marks prepare ip daddr 192.0.2.0/24 meta mark set 0x14001'",
    )?;
    ensure!(
        pod.ask("tcp", &outside()).is_err(),
        "a marked packet was masqueraded"
    );
    node.shell(
        "nft 'flush chain ip marks prepare; add rule ip marks prepare ip daddr 192.0.2.0/24 meta mark set 0x10001'",
    )?;
    await_outside(&pod)
}
