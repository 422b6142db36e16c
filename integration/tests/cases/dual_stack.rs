//! Dual stack and IPv6 alone: leases, devices, pods and their traffic in both families.

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::{CONFIG_KEY, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pinger, Pod, eventually, limit};
use serde_json::Value;

use super::common::start_together;

const DUAL: &str =
    r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
const IPV6_ONLY: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
/// Leases of a network with IPv6 alone.
const IPV6_PREFIX: &str = "/coreos.com/network/ipv6-subnets/";
/// The host outside.
const OUTSIDE: &str = "2001:db8:2::10";

pub fn both_families_reach_across_nodes() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3).ipv6().config(DUAL))?;
    let _daemons = start_all(&lab, &["--ip-masq"], SUBNETS_PREFIX)?;
    let pods = add_pods(&lab)?;
    for from in &pods {
        for to in &pods {
            for address in to.addresses()? {
                eventually(limit(5), &format!("{} to reach {address}", from.name()), || {
                    from.ping(&address)
                })?;
            }
        }
    }
    // The router knows no pod network: without masquerading nothing would come back from outside.
    pods[0].ping(OUTSIDE)?;
    pods[0].ping(flannel_lab::lab::OUTSIDE_ADDRESS)
}

pub fn lease_devices_and_subnet_file_are_flannels() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(DUAL))?;
    let _daemons = start_all(&lab, &[], SUBNETS_PREFIX)?;
    let node = lab.node(1)?;
    let other = lease_of(&lab, lab.node(2)?, SUBNETS_PREFIX)?;
    let own = lease_of(&lab, node, SUBNETS_PREFIX)?;
    ensure!(
        own.key.contains("-24&fd00:5:0:") && own.key.ends_with("::-64"),
        "key {}",
        own.key
    );
    let value = &own.value;
    ensure!(
        value["PublicIP"] == node.address() && value["PublicIPv6"] == node.ipv6_address(),
        "{value}"
    );
    let (ipv4, ipv6) = own.subnets()?;
    let (other4, other6) = other.subnets()?;

    let env = node.subnet_env()?;
    let names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        names
            == [
                "FLANNEL_NETWORK",
                "FLANNEL_SUBNET",
                "FLANNEL_IPV6_NETWORK",
                "FLANNEL_IPV6_SUBNET",
                "FLANNEL_MTU",
                "FLANNEL_IPMASQ"
            ],
        "{env:?}"
    );
    let expected = [
        "10.5.0.0/16".to_owned(),
        format!("{}1/24", ipv4.trim_end_matches('0')),
        "fd00:5::/48".to_owned(),
        format!("{ipv6}1/64"),
        // IPv6 tunnels need 70 bytes, and pods have one MTU for both families.
        "1430".to_owned(),
        "false".to_owned(),
    ];
    for ((name, value), expected) in env.iter().zip(&expected) {
        ensure!(value == expected, "{name}={value}, not {expected}");
    }

    for (device, mtu, data) in [
        ("flannel.1", 1450, "BackendData"),
        ("flannel-v6.1", 1430, "BackendV6Data"),
    ] {
        let link = &node.ip_json(&["link", "show", device])?[0];
        ensure!(
            link["mtu"] == mtu && link["address"] == value[data]["VtepMAC"],
            "{device}: {link}, {value}"
        );
    }
    let link = &node.ip_json(&["link", "show", "flannel-v6.1"])?[0];
    ensure!(
        link["linkinfo"]["info_data"]["local6"] == node.ipv6_address(),
        "{link}"
    );
    let routes = node.ip_json(&["-6", "route", "show", "proto", "70"])?;
    ensure!(
        routes[0]["dst"] == format!("{other6}/64")
            && routes[0]["gateway"] == other6
            && routes[0]["flags"][0] == "onlink",
        "{routes}"
    );
    let routes = node.ip_json(&["-4", "route", "show", "proto", "70"])?;
    ensure!(routes[0]["dst"] == format!("{other4}/24"), "{routes}");
    let neighbours = node.ip_json(&[
        "-6",
        "neighbour",
        "show",
        "dev",
        "flannel-v6.1",
        "nud",
        "permanent",
    ])?;
    ensure!(
        neighbours[0]["lladdr"] == other.value["BackendV6Data"]["VtepMAC"],
        "{neighbours}"
    );
    let fdb = node.bridge_json(&["fdb", "show", "dev", "flannel-v6.1"])?;
    ensure!(fdb[0]["dst"] == lab.node(2)?.ipv6_address(), "{fdb}");
    only_lease_keys(&lab)
}

pub fn restart_and_repair_lose_nothing() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(DUAL))?;
    let mut daemons = start_all(&lab, &[], SUBNETS_PREFIX)?;
    let pods = add_pods(&lab)?;
    let own = lease_of(&lab, lab.node(1)?, SUBNETS_PREFIX)?;
    let target = ipv6_of(&pods[1])?;
    eventually(limit(5), "the first packet", || pods[0].ping(&target))?;
    let pinger = Pinger::between(&pods[0], &pods[1], &format!("[{target}]"))?;
    daemons.remove(0).kill()?;
    let daemon = lab.node(1)?.start_ready_flanneld(&[])?;
    let report = pinger.stop()?;
    ensure!(
        report.lost.is_empty(),
        "a restart lost {} of {}",
        report.lost.len(),
        report.sent
    );
    let again = lease_of(&lab, lab.node(1)?, SUBNETS_PREFIX)?;
    ensure!(
        again.key == own.key && again.value == own.value,
        "{} became {}",
        own.key,
        again.key
    );

    let node = lab.node(1)?;
    let routes = || node.ip_json(&["-6", "route", "show", "proto", "70"]);
    let before = routes()?;
    node.shell("ip -6 route flush proto 70; ip -6 neigh flush dev flannel-v6.1 nud permanent; ip link delete flannel-v6.1")?;
    eventually(limit(10), "the IPv6 overlay to come back", || {
        ensure!(routes()? == before, "routes are not back");
        pods[0].ping(&target)
    })?;
    drop(daemon);
    Ok(())
}

pub fn a_peer_without_ipv6_is_reached_by_ipv4() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).ipv6().config(DUAL))?;
    // A node that has not been restarted since the network got IPv6.
    let value = r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#;
    lab.etcd().put(&format!("{SUBNETS_PREFIX}10.5.77.0-24"), value)?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&[])?;
    let routes = node.ip_json(&["-4", "route", "show", "proto", "70"])?;
    ensure!(routes[0]["dst"] == "10.5.77.0/24", "{routes}");
    let routes = node.ip_json(&["-6", "route", "show", "proto", "70"])?;
    ensure!(routes.as_array().is_some_and(Vec::is_empty), "{routes}");
    Ok(())
}

pub fn ipv6_alone_asks_for_its_switch_and_works() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(IPV6_ONLY))?;
    let mut without = lab.node(1)?.start_flanneld(&[])?;
    without.wait_log("--ipv6-only")?;
    ensure!(!without.is_ready(), "ready without the switch");
    drop(without);
    let _daemons = start_all(&lab, &["--ipv6-only", "--ip-masq"], IPV6_PREFIX)?;
    ensure!(
        lab.etcd().list(SUBNETS_PREFIX)?.is_empty(),
        "keys that flannel cannot read"
    );
    only_lease_keys(&lab)?;
    let env = lab.node(1)?.subnet_env()?;
    ensure!(env[0].0 == "FLANNEL_IPV6_NETWORK" && env.len() == 4, "{env:?}");
    let pods = add_pods(&lab)?;
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        eventually(limit(5), "pods to reach each other", || from.ping(to.ip()))?;
    }
    pods[0].ping(OUTSIDE)?;
    let links = lab.node(1)?.ip_json(&["link", "show", "type", "vxlan"])?;
    ensure!(
        links.as_array().is_some_and(|all| all.len() == 1) && links[0]["ifname"] == "flannel-v6.1",
        "{links}"
    );
    Ok(())
}

pub fn ipv4_that_becomes_dual_stack_at_a_restart() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).ipv6())?;
    let before = start_all(&lab, &[], SUBNETS_PREFIX)?;
    let pods = add_pods(&lab)?;
    lab.etcd().put(CONFIG_KEY, DUAL)?;
    drop(before);
    let _after = start_all(&lab, &[], SUBNETS_PREFIX)?;
    for node in lab.nodes() {
        ensure!(
            lease_of(&lab, node, SUBNETS_PREFIX)?.key.contains('&'),
            "{} has no IPv6 subnet",
            node.name()
        );
    }
    let new = lab.node(1)?.add_pod("dual")?;
    let far = lab.node(2)?.add_pod("far")?;
    for address in far.addresses()? {
        eventually(limit(5), "new pods to reach each other", || new.ping(&address))?;
    }
    drop(pods);
    Ok(())
}

/// A lease as the lab's etcd has it.
struct Lease {
    /// What stands behind the range.
    key: String,
    value: Value,
}

impl Lease {
    /// First addresses of both subnets.
    fn subnets(&self) -> Result<(String, String)> {
        let (ipv4, ipv6) = self.key.split_once('&').context("not dual stack")?;
        let base = |text: &str| text.rsplit_once('-').map(|(base, _)| base.to_owned());
        base(ipv4).zip(base(ipv6)).context("no lengths")
    }
}

fn leases(lab: &Lab, range: &str) -> Result<Vec<Lease>> {
    let read = |entry: flannel_lab::etcd::Entry| {
        let key = entry
            .key
            .strip_prefix(range)
            .context("not in the range")?
            .to_owned();
        let value = serde_json::from_str(&entry.value).with_context(|| entry.value.clone())?;
        Ok(Lease { key, value })
    };
    lab.etcd().list(range)?.into_iter().map(read).collect()
}

fn lease_of(lab: &Lab, node: &Node, range: &str) -> Result<Lease> {
    let mut all = leases(lab, range)?;
    all.retain(|lease| lease.value["PublicIPv6"] == node.ipv6_address());
    ensure!(all.len() == 1, "{} has {} leases", node.name(), all.len());
    all.pop().context("no lease")
}

/// Starts flanneld on every node and waits until each has a route to each other in every family of the leases.
fn start_all(lab: &Lab, arguments: &[&str], range: &str) -> Result<Vec<Flanneld>> {
    let daemons = start_together(lab, arguments)?;
    eventually(limit(20), "all nodes to have programmed each other", || {
        let leases = leases(lab, range)?;
        ensure!(leases.len() == lab.nodes().len(), "{} leases", leases.len());
        let (v4, v6) = (
            leases.iter().filter(|lease| lease.key.contains('.')).count(),
            leases.iter().filter(|lease| lease.key.contains(':')).count(),
        );
        lab.nodes().iter().try_for_each(|node| {
            for (family, wanted) in [("-4", v4.saturating_sub(1)), ("-6", v6.saturating_sub(1))] {
                let routes = node.ip_json(&[family, "route", "show", "proto", "70"])?;
                let count = routes.as_array().map_or(0, Vec::len);
                ensure!(
                    count == wanted,
                    "{} has {count} routes of {wanted} ({family})",
                    node.name()
                );
            }
            Ok(())
        })
    })?;
    Ok(daemons)
}

fn add_pods(lab: &Lab) -> Result<Vec<Pod>> {
    let add = |node: &Node| node.add_pod(&format!("pod-{}", node.name()));
    lab.nodes().iter().map(add).collect()
}

pub fn ipv6_of(pod: &Pod) -> Result<String> {
    pod.addresses()?
        .into_iter()
        .find(|a| a.contains(':'))
        .context("no IPv6 address")
}

/// Every key that begins with `<prefix>/subnets` is one that flannel reads; another one makes flannel drop all its peers.
fn only_lease_keys(lab: &Lab) -> Result<()> {
    for entry in lab.etcd().list(SUBNETS_PREFIX.trim_end_matches('/'))? {
        let key = entry
            .key
            .strip_prefix(SUBNETS_PREFIX)
            .with_context(|| format!("stray key {}", entry.key))?;
        let mut parts = key.split('&').map(|part| {
            part.rsplit_once('-')
                .map(|(address, length)| (address, length.parse::<u8>()))
        });
        let ipv4 = parts
            .next()
            .flatten()
            .with_context(|| format!("stray key {key}"))?;
        ensure!(
            ipv4.0.parse::<std::net::Ipv4Addr>().is_ok() && matches!(ipv4.1, Ok(1..=31)),
            "stray key {key}"
        );
        if let Some(ipv6) = parts.next() {
            let (address, length) = ipv6.with_context(|| format!("stray key {key}"))?;
            ensure!(
                address.parse::<std::net::Ipv6Addr>().is_ok() && matches!(length, Ok(1..=127)),
                "stray key {key}"
            );
            ensure!(address == address.to_lowercase(), "{key} is in upper case");
        }
    }
    Ok(())
}
