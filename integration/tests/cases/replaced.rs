//! A peer's subnet passes to another machine with another address and another key, while pods of others send to it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flannel_lab::capture::Capture;
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pod, eventually, limit};

use super::backend::{Pair, config, subnet_env, way};
use super::common::{await_ping, list, text};

const FLAGS: [&str; 1] = ["--ip-masq"];

/// Three nodes, of which the third takes the second's subnet.
struct Change {
    lab: Lab,
    here: Pod,
    /// What both had.
    subnet: String,
    _daemons: Vec<Flanneld>,
    _pods: Vec<Pod>,
}

impl Change {
    /// The second node is lost without a word, and so is its lease; a new machine is told of its subnet by subnet.env.
    fn make(backend: &str) -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(3).config(&config(backend)))?;
        let (first, second, third) = (lab.node(1)?, lab.node(2)?, lab.node(3)?);
        let kept = first.start_ready_flanneld(&FLAGS)?;
        let lost = second.start_ready_flanneld(&FLAGS)?;
        let pods = [first.add_pod("one")?, second.add_pod("two")?];
        await_ping(&pods[0], pods[1].ip())?;
        await_ping(&pods[1], pods[0].ip())?;
        let env = subnet_env(second)?;
        let subnet = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        let subnet = subnet.context("no FLANNEL_SUBNET")?.replace(".1/", ".0/");
        lost.kill()?;
        second.run(&["ip", "link", "set", "eth0", "down"])?;
        let key = format!("{SUBNETS_PREFIX}{}", subnet.replace('/', "-"));
        lab.etcd().delete(&key)?;
        third.shell(&format!("cat > /run/flannel/subnet.env << 'END'\n{env}\nEND"))?;
        let new = third.start_ready_flanneld(&FLAGS)?;
        ensure!(
            subnet_env(third)?.contains(&subnet.replace(".0/", ".1/")),
            "the third node has not {subnet}: {}",
            subnet_env(third)?
        );
        let there = third.add_pod("three")?;
        let [here, gone] = pods;
        eventually(limit(20), "the pod of the new machine", || here.ping(there.ip()))?;
        eventually(limit(20), "the way back", || there.ping(here.ip()))?;
        flannel_lab::transfer(&here, &there, 1)?;
        Ok(Self {
            lab,
            here,
            subnet,
            _daemons: vec![kept, new],
            _pods: vec![gone, there],
        })
    }

    fn node(&self) -> Result<&Node> {
        self.lab.node(1)
    }
}

pub fn of_wireguard_has_another_key() -> Result<()> {
    let change = Change::make(r#"{"Type":"wireguard"}"#)?;
    let key = change.lab.node(3)?.shell("wg show flannel-wg public-key")?;
    let peers = change.node()?.shell("wg show flannel-wg allowed-ips")?;
    // The old key is no peer any more.
    assert_eq!(peers.trim(), format!("{}\t{}", key.trim(), change.subnet));
    let endpoints = change.node()?.shell("wg show flannel-wg endpoints")?;
    let there = change.lab.node(3)?.address();
    ensure!(endpoints.contains(&format!("{there}:51820")), "{endpoints}");
    change.here.ping(&change.subnet.replace(".0/24", ".1"))
}

pub fn of_ipip_is_the_only_sender() -> Result<()> {
    let change = Change::make(r#"{"Type":"ipip"}"#)?;
    let there = change.lab.node(3)?.address();
    let base = change.subnet.replace(".0/24", ".9");
    let expected = ("flannel.ipip".to_owned(), there.to_owned());
    assert_eq!(way(change.node()?, &base)?, expected);
    // What the old machine might still send is dropped.
    let shown = change
        .node()?
        .nft_json(&["list", "set", "ip", "flannel-encap", "subnets"])?;
    let sets = list(&shown["nftables"]);
    let elements = sets.iter().flat_map(|part| list(&part["set"]["elem"]));
    let senders: BTreeSet<String> = elements
        .map(|element| text(&list(&element["concat"])[0]))
        .collect();
    assert_eq!(senders, BTreeSet::from([there.to_owned()]));
    Ok(())
}

pub fn of_vxlan_is_the_only_sender() -> Result<()> {
    let change = Change::make(r#"{"Type":"vxlan"}"#)?;
    let there = change.lab.node(3)?.address();
    let mac = change.lab.node(3)?.ip_json(&["link", "show", "flannel.1"])?;
    let entries = change.node()?.bridge_json(&["fdb", "show", "dev", "flannel.1"])?;
    let known: Vec<(String, String)> = list(&entries)
        .iter()
        .filter(|entry| entry["dst"].is_string())
        .map(|entry| (text(&entry["mac"]), text(&entry["dst"])))
        .collect();
    assert_eq!(known, [(text(&mac[0]["address"]), there.to_owned())]);
    Ok(())
}

/// Peers on the link are reached without the tunnel, those behind a router through it.
pub fn ipip_avoids_the_tunnel_on_one_link() -> Result<()> {
    let mut pair = Pair::start(r#"{"Type":"ipip","DirectRouting":true}"#)?;
    assert_eq!(pair.way()?, ("eth0".to_owned(), "192.168.50.12".to_owned()));
    let node = pair.lab.node(1)?;
    let env = subnet_env(node)?;
    // Another node may be behind a router, so pods keep the tunnel's MTU.
    ensure!(env.contains("FLANNEL_MTU=1480"), "{env}");
    pair.carries(1480)?;
    let far = r#"{"PublicIP":"192.0.2.77","PublicIPv6":null,"BackendType":"ipip"}"#;
    pair.lab
        .etcd()
        .put(&format!("{SUBNETS_PREFIX}10.5.250.0-24"), far)?;
    let expected = ("flannel.ipip".to_owned(), "192.0.2.77".to_owned());
    eventually(limit(10), "the way to the node behind the router", || {
        let found = way(node, "10.5.250.9")?;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })?;
    let capture = Capture::headers(node, "eth0")?;
    // Nobody answers.
    ensure!(pair.pods[0].ping("10.5.250.9").is_err(), "an answer");
    pair.pods[0].ping(pair.pods[1].ip())?;
    let counted = capture.count(&[
        "ip proto 4 and src host 192.168.50.11 and dst host 192.0.2.77",
        "ip proto 4 and dst host 192.168.50.12",
        &format!("icmp and dst host {}", pair.pods[1].ip()),
    ])?;
    ensure!(
        counted[0] > 0 && counted[1] == 0 && counted[2] > 0,
        "{counted:?}: through the tunnel to the far node, through it to the near one, and directly"
    );
    pair.restarts_unfelt()
}
