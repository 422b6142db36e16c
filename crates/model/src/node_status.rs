//! What a node tells of itself, as JSON on its Unix socket. Fields may be added; those that are there keep their names and meaning.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// `waiting` before the node was ready for the first time, `ready`, or `degraded` afterwards.
    pub state: String,
    /// Why it is not ready; empty when it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The interface that carries the traffic between nodes.
    pub interface: String,
    /// Addresses by which other nodes reach this one.
    pub public_ips: Vec<IpAddr>,
    /// Its subnets; none before it has a lease.
    pub subnets: Vec<String>,
    /// Largest packet of pods, in bytes; 0 before the kernel was looked at.
    pub mtu: u32,
    /// Tunnel devices that stand.
    pub devices: Vec<String>,
    /// Other nodes that are programmed.
    pub peers: usize,
    /// Records in etcd that are skipped.
    pub records_skipped: usize,
    /// Writes to the kernel that failed in the last pass; they are tried again.
    pub writes_failed: usize,
    /// What somebody undoes again and again, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fights: Vec<String>,
    /// The udp backend's data path, where the node has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpReport>,
}

/// How the udp backend's data path stands, from a second ago at the most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UdpReport {
    /// Where its datagrams arrive and leave.
    pub listen: SocketAddr,
    /// Queues of the device, a thread each.
    pub queues: usize,
    /// What may be asked of the kernel beyond one packet a system call, and whether it is in use.
    pub offloads: BTreeMap<String, bool>,
    /// Inner packets that went to peers since the data path was opened.
    pub sent_packets: u64,
    /// Inner packets that came from peers.
    pub received_packets: u64,
    /// Packets that were not forwarded, by reason; without those that never happened.
    pub dropped: BTreeMap<String, u64>,
    /// Whom it knows, one entry an address.
    pub peers: Vec<UdpPeerReport>,
}

/// A peer of the udp backend's data path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UdpPeerReport {
    /// Where its datagrams come from and go to.
    pub address: SocketAddr,
    /// Its subnets.
    pub subnets: Vec<String>,
    /// It is behind a NAT: its datagrams come from any port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any_port: bool,
    /// Packets of it that were dropped because it sent more than its share while the node could not keep up.
    #[serde(default)]
    pub overload: u64,
}
