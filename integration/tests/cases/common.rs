//! What several topics ask of the lab.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::etcd::Entry;
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Flanneld, Lab, Node, Pod, eventually, limit};
use serde_json::Value;

/// A lease as the lab's etcd has it.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Its subnet, such as 10.5.3.0/24.
    pub subnet: String,
    /// Its holder's address on the underlay.
    pub public_ip: String,
    /// Its holder's VTEP.
    pub vtep: String,
    /// Key, value and etcd lease.
    pub entry: Entry,
}

impl Lease {
    fn read(entry: Entry) -> Result<Self> {
        let value: Value =
            serde_json::from_str(&entry.value).with_context(|| format!("{}: {}", entry.key, entry.value))?;
        let text = |v: &Value, what: &str| {
            v.as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {what} in {value}"))
        };
        let subnet = entry
            .key
            .strip_prefix(SUBNETS_PREFIX)
            .context("not below the prefix")?
            .replace('-', "/");
        let public_ip = text(&value["PublicIP"], "PublicIP")?;
        let vtep = text(&value["BackendData"]["VtepMAC"], "VtepMAC")?;
        Ok(Self {
            subnet,
            public_ip,
            vtep,
            entry,
        })
    }

    /// The subnet's address without its length.
    pub fn base(&self) -> &str {
        self.subnet.split('/').next().unwrap_or_default()
    }

    /// The subnet's first host address, the bridge's.
    pub fn gateway(&self) -> String {
        format!("{}.1", self.base().trim_end_matches(".0"))
    }
}

/// Every lease in etcd, in order.
pub fn leases(lab: &Lab) -> Result<Vec<Lease>> {
    lab.etcd()
        .list(SUBNETS_PREFIX)?
        .into_iter()
        .map(Lease::read)
        .collect()
}

/// The one lease of `node`.
pub fn lease_of(lab: &Lab, node: &Node) -> Result<Lease> {
    let mut own: Vec<Lease> = leases(lab)?
        .into_iter()
        .filter(|l| l.public_ip == node.address())
        .collect();
    ensure!(
        own.len() == 1,
        "{} has {} leases: {own:?}",
        node.name(),
        own.len()
    );
    own.pop().context("no lease")
}

/// Starts flanneld on every node, then waits until each is ready and has programmed all others.
pub fn start_all(lab: &Lab, arguments: &[&str]) -> Result<Vec<Flanneld>> {
    let daemons = start_together(lab, arguments)?;
    await_convergence(lab)?;
    Ok(daemons)
}

/// Starts flanneld on every node, then waits until each is ready.
pub fn start_together(lab: &Lab, arguments: &[&str]) -> Result<Vec<Flanneld>> {
    let mut daemons: Vec<Flanneld> = lab
        .nodes()
        .iter()
        .map(|n| n.start_flanneld(arguments))
        .collect::<Result<_>>()?;
    daemons.iter_mut().try_for_each(Flanneld::wait_ready)?;
    Ok(daemons)
}

/// Waits until every node has programmed exactly the other nodes.
pub fn await_convergence(lab: &Lab) -> Result<()> {
    eventually(limit(20), "all nodes to have programmed each other", || {
        let leases = leases(lab)?;
        ensure!(
            leases.len() == lab.nodes().len(),
            "{} leases for {} nodes",
            leases.len(),
            lab.nodes().len()
        );
        lab.nodes().iter().try_for_each(|node| {
            let others: Vec<&Lease> = leases.iter().filter(|l| l.public_ip != node.address()).collect();
            check_peers(node, &others)
        })
    })
}

/// Checks that `node` has routes, neighbours and FDB entries for `peers`, as flannel writes them, and for nobody else.
pub fn check_peers(node: &Node, peers: &[&Lease]) -> Result<()> {
    let expected: BTreeSet<String> = peers
        .iter()
        .flat_map(|p| {
            [
                format!("route {} via {} onlink", p.subnet, p.base()),
                format!("neighbour {} {} permanent", p.base(), p.vtep),
                format!("fdb {} {} permanent", p.vtep, p.public_ip),
            ]
        })
        .collect();
    let seen = programmed(node)?;
    let missing: Vec<_> = expected.difference(&seen).collect();
    let extra: Vec<_> = seen.difference(&expected).collect();
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "{}: missing {missing:?}, unexpected {extra:?}",
        node.name()
    );
    Ok(())
}

/// What is programmed on flannel.1, one text an object.
pub fn programmed(node: &Node) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    for route in list(&node.ip_json(&["route", "show", "dev", "flannel.1"])?) {
        let onlink = if flags(&route).contains(&"onlink".into()) {
            "onlink"
        } else {
            "not onlink"
        };
        seen.insert(format!(
            "route {} via {} {onlink}",
            text(&route["dst"]),
            text(&route["gateway"])
        ));
    }
    for entry in list(&node.ip_json(&["-4", "neigh", "show", "dev", "flannel.1", "nud", "all"])?) {
        let state = list(&entry["state"])
            .iter()
            .map(text)
            .collect::<Vec<_>>()
            .join(" ")
            .to_lowercase();
        // The kernel notes broadcast and multicast here by itself.
        if state != "noarp" {
            seen.insert(format!(
                "neighbour {} {} {state}",
                text(&entry["dst"]),
                text(&entry["lladdr"])
            ));
        }
    }
    for entry in list(&node.bridge_json(&["fdb", "show", "dev", "flannel.1"])?) {
        if let Some(to) = entry["dst"].as_str() {
            seen.insert(format!(
                "fdb {} {to} {}",
                text(&entry["mac"]),
                text(&entry["state"])
            ));
        }
    }
    Ok(seen)
}

/// Waits until every node has programmed the route to a peer with subnet 10.5.`third`.0/24.
pub fn await_route_everywhere(lab: &Lab, third: usize, within: Duration) -> Result<()> {
    let route = format!("route 10.5.{third}.0/24 via 10.5.{third}.0 onlink");
    eventually(within, &format!("{route} on every node"), || {
        for node in lab.nodes() {
            ensure!(
                programmed(node)?.contains(&route),
                "{} has not got it",
                node.name()
            );
        }
        Ok(())
    })
}

/// One link of a node, as `ip -d -j link show` has it.
pub fn link(node: &Node, name: &str) -> Result<Value> {
    let links = node.ip_json(&["address", "show", "dev", name])?;
    list(&links)
        .into_iter()
        .next()
        .with_context(|| format!("{} has no {name}", node.name()))
}

/// The IPv4 addresses of a link, with their lengths.
pub fn addresses(link: &Value) -> Vec<String> {
    let v4 = list(&link["addr_info"])
        .into_iter()
        .filter(|a| a["family"] == "inet");
    v4.map(|a| format!("{}/{}", text(&a["local"]), a["prefixlen"]))
        .collect()
}

/// Waits until `from` reaches `to`. The first packets may meet a bridge port that is not forwarding yet.
pub fn await_ping(from: &Pod, to: &str) -> Result<()> {
    eventually(limit(10), &format!("a ping from {} to {to}", from.name()), || {
        from.ping(to)
    })
}

/// The elements of a JSON array; none for anything else.
pub fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// A JSON string; empty for anything else.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn flags(value: &Value) -> Vec<String> {
    list(&value["flags"]).iter().map(text).collect()
}

/// How often `part` occurs in `whole`.
pub fn count(whole: &str, part: &str) -> usize {
    whole.matches(part).count()
}

/// Writes a record of a node that does not exist.
pub fn put_peer(lab: &Lab, subnet: &str, public_ip: &str, mac: &str) -> Result<()> {
    let value = format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    lab.etcd().put(&format!("{SUBNETS_PREFIX}{subnet}"), value)
}

/// What [`put_peer`] wrote.
pub fn peer(subnet: &str, public_ip: &str, vtep: &str) -> Lease {
    let entry = flannel_lab::etcd::Entry {
        key: String::new(),
        value: String::new(),
        lease: 0,
        version: 1,
        mod_revision: 1,
    };
    Lease {
        subnet: subnet.into(),
        public_ip: public_ip.into(),
        vtep: vtep.into(),
        entry,
    }
}

/// Waits until the daemon takes deletions over from the CNI plugin.
pub fn await_reaper(node: &Node) -> Result<()> {
    eventually(limit(10), "a daemon that listens to the CNI plugin", || {
        let there = node.file("/run/flannel/cni-released.sock").try_exists()?;
        there.then_some(()).context("no socket")
    })
}
