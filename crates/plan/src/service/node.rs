//! What matters about the node itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{IpSubnet, NodePortAddresses};

/// What matters about the node itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceNode {
    /// The name by which endpoints refer to it.
    pub name: String,
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<String>,
    /// The address of each family that it is known by, at most one each: the source of what it sends to Services itself.
    pub primary: Vec<IpAddr>,
    /// All its addresses except loopback.
    pub addresses: BTreeSet<IpAddr>,
    /// The pod networks of the cluster, at most one a family.
    pub networks: Vec<IpSubnet>,
    /// The pods of this node, at most one subnet a family.
    pub pods: Vec<IpSubnet>,
    /// Addresses of other nodes.
    pub peers: BTreeSet<IpAddr>,
    /// Further addresses that the node must go on to reach, each with its name, such as `etcd`.
    pub reserved: BTreeMap<IpAddr, String>,
    /// Addresses of the API server that Services come from. One of them may be a Service's own cluster address, and no external one.
    pub api_servers: BTreeSet<IpAddr>,
}

impl ServiceNode {
    /// The address of this family that the node is known by.
    pub fn primary(&self, ipv4: bool) -> Option<IpAddr> {
        self.primary.iter().copied().find(|ip| ip.is_ipv4() == ipv4)
    }

    /// Whether an endpoint is one of this node: by the name of its node, by its subnet of pods, or because it is the host.
    pub(crate) fn is_local(&self, node: Option<&str>, address: IpAddr) -> bool {
        node.is_some_and(|node| node == self.name)
            || self.pods.iter().any(|pods| pods.holds(address))
            || self.addresses.contains(&address)
    }

    /// Its addresses that answer on node ports.
    pub fn node_port_addresses(&self, wanted: &NodePortAddresses) -> BTreeSet<IpAddr> {
        match wanted {
            NodePortAddresses::Primary => self.primary.iter().copied().collect(),
            NodePortAddresses::All => self.addresses.clone(),
            NodePortAddresses::Inside(ranges) => {
                let inside = |ip: &&IpAddr| ranges.iter().any(|r| r.holds(**ip));
                self.addresses.iter().filter(inside).copied().collect()
            }
        }
    }

    /// What would be cut off if all of `range` were delivered on the node, in words.
    pub(crate) fn hit_by_range(&self, range: &IpSubnet) -> Option<String> {
        let span = range.network()..=range.last();
        if let Some(network) = self.networks.iter().chain(&self.pods).find(|n| n.overlaps(range)) {
            return Some(format!("it overlaps the pod network {network}"));
        }
        if let Some(own) = self
            .addresses
            .iter()
            .chain(&self.primary)
            .find(|a| range.holds(**a))
        {
            return Some(format!("it holds this node's own address {own}"));
        }
        let (address, what) = self.reserved.range(span).next()?;
        Some(format!("it holds {address}, an address of {what}"))
    }

    /// Another node with an address inside `range`. That does not refuse the range: whoever registers a node could end all Services
    /// of the cluster with an address of his choice.
    pub(crate) fn peer_in(&self, range: &IpSubnet) -> Option<IpAddr> {
        let span = range.network()..=range.last();
        self.peers.range(span).next().copied()
    }

    /// Whose address `address` is, in words, if it is anybody's who must stay reachable.
    pub(crate) fn hit_by(&self, address: IpAddr) -> Option<String> {
        if self.addresses.contains(&address) || self.primary.contains(&address) {
            return Some("it is this node's own address".to_owned());
        }
        if self.peers.contains(&address) {
            return Some("it is the address of another node".to_owned());
        }
        if let Some(what) = self.reserved.get(&address) {
            return Some(format!("it is an address of {what}"));
        }
        let network = self
            .networks
            .iter()
            .chain(&self.pods)
            .find(|n| n.holds(address))?;
        Some(format!("it lies inside the pod network {network}"))
    }
}
