//! What an address is in the network: a pod's, a node's, or somebody's outside.

use std::net::IpAddr;

use flannel_model::{IpSubnet, LeaseKey};
use serde::Serialize;

use crate::node::NodeView;
use crate::subnets::Record;

/// What an address is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// `thisHost`, `podHere`, `podElsewhere`, `refused`, `unassigned`, `node` or `outside`.
    pub kind: &'static str,
    /// The subnet that holds it.
    pub subnet: Option<String>,
    /// The address of the node that it belongs to.
    pub node: Option<IpAddr>,
    /// The same in a sentence.
    pub text: String,
}

impl Place {
    fn new(kind: &'static str, subnet: Option<IpSubnet>, node: Option<IpAddr>, text: String) -> Self {
        Self {
            kind,
            subnet: subnet.map(|subnet| subnet.to_string()),
            node,
            text,
        }
    }

    /// What of the overlay keeps packets from it.
    pub fn problems(&self, node: &NodeView) -> Vec<String> {
        if self.kind == "refused" {
            return vec![self.text.clone()];
        }
        let subnet: Option<IpSubnet> = self.subnet.as_ref().and_then(|text| text.parse().ok());
        let (Some(subnet), "podElsewhere") = (subnet, self.kind) else {
            return Vec::new();
        };
        let row = crate::peers::rows(node)
            .into_iter()
            .find(|row| row.subnet == subnet.to_string());
        row.map(|row| row.problems).unwrap_or_default()
    }
}

/// Finds out by the leases.
pub fn of(node: &NodeView, address: IpAddr) -> Place {
    if let Some(interface) = node.seen.holder(address) {
        let text = format!("an address of this host, on {}", interface.name);
        return Place::new("thisHost", None, Some(node.own.address()), text);
    }
    let holding = |record: &&Record| subnet_with(&record.key, address).is_some();
    if let Some(record) = node.listing.records.iter().find(holding) {
        return in_lease(node, record, address);
    }
    let network = node.overlays.iter().map(|overlay| overlay.desired.network);
    if let Some(network) = network.into_iter().find(|network| network.holds(address)) {
        let text = format!("in the network {network}, in a subnet that no node has");
        return Place::new("unassigned", None, None, text);
    }
    let is_node = |record: &&Record| {
        record.address() == address || record.value.public_ipv6.map(IpAddr::from) == Some(address)
    };
    match node.listing.records.iter().find(is_node) {
        Some(record) => {
            let text = format!("the node that has {}", record.key);
            Place::new("node", None, Some(address), text)
        }
        None => Place::new("outside", None, None, "outside of the network of pods".to_owned()),
    }
}

fn in_lease(node: &NodeView, record: &Record, address: IpAddr) -> Place {
    let subnet = subnet_with(&record.key, address);
    let shown = subnet.map(|subnet| subnet.to_string()).unwrap_or_default();
    let holder = Some(record.address());
    if record.key == node.own.key {
        return Place::new(
            "podHere",
            subnet,
            holder,
            format!("in {shown}, the subnet of this node"),
        );
    }
    let key = record.key.to_string();
    match node.expected.refused.iter().find(|(refused, _)| *refused == key) {
        Some((_, reason)) => {
            let text = format!(
                "in {shown} of {}, whose record this node does not use: {reason}",
                record.holder()
            );
            Place::new("refused", subnet, holder, text)
        }
        None => {
            let text = format!("in {shown}, the subnet of {}", record.holder());
            Place::new("podElsewhere", subnet, holder, text)
        }
    }
}

fn subnet_with(key: &LeaseKey, address: IpAddr) -> Option<IpSubnet> {
    let ipv4 = key.ipv4().map(IpSubnet::from);
    let ipv6 = key.ipv6().map(IpSubnet::from);
    ipv4.into_iter().chain(ipv6).find(|subnet| subnet.holds(address))
}
