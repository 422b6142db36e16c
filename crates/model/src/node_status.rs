//! What a node tells of itself, as JSON on its Unix socket. Fields may be added; those that are there keep their names and meaning.

use std::net::IpAddr;

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
}
