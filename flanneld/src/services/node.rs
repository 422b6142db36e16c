//! What Services need to know of the node.

use std::net::IpAddr;

use flannel_model::IpSubnet;
use flannel_netlink::address::{self, Scope};
use flannel_netlink::{NetlinkError, RouteConn};
use flannel_plan::ServiceNode;

use crate::overlay::Facts;

/// The node as the overlay knows it. Its addresses are added on each pass, from the kernel.
pub fn service_node(facts: &Facts) -> ServiceNode {
    let overlay = &facts.overlay;
    ServiceNode {
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        primary: vec![overlay.underlay.address.into()],
        networks: vec![IpSubnet::V4(overlay.network)],
        pods: vec![IpSubnet::V4(facts.own)],
        peers: overlay.peers.iter().map(|p| IpAddr::V4(p.public_ip)).collect(),
        ..ServiceNode::default()
    }
}

/// Adds every address of the node that others could reach.
///
/// # Errors
/// When the kernel does not list them.
pub(super) fn add_kernel_addresses(node: &mut ServiceNode) -> Result<(), NetlinkError> {
    let mut conn = RouteConn::open()?;
    let addresses = address::dump(&mut conn, None)?;
    let reachable = addresses
        .iter()
        .filter(|a| a.scope != Scope::Host && !a.local.is_loopback());
    node.addresses.extend(reachable.map(|a| IpAddr::V4(a.local)));
    Ok(())
}
