//! What Services need to know of the node.

use flannel_model::IpFamily;
use flannel_netlink::address::{self, Scope};
use flannel_netlink::{NetlinkError, RouteConn};
use flannel_plan::ServiceNode;

use crate::overlay::Facts;

/// The node as the overlay knows it. Its addresses are added on each pass, from the kernel.
pub fn service_node(facts: &Facts) -> ServiceNode {
    ServiceNode {
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        primary: facts.addresses.clone(),
        networks: facts.overlays().map(|overlay| overlay.network).collect(),
        pods: facts.overlays().map(|overlay| overlay.own_subnet).collect(),
        peers: facts.nodes.iter().copied().collect(),
        ..ServiceNode::default()
    }
}

/// Adds every address of the node that others could reach.
///
/// # Errors
/// When the kernel does not list them.
pub(super) fn add_kernel_addresses(node: &mut ServiceNode) -> Result<(), NetlinkError> {
    let mut conn = RouteConn::open()?;
    let addresses = address::dump(&mut conn, IpFamily::V4, None)?;
    let reachable = addresses
        .iter()
        .filter(|a| a.scope != Scope::Host && !a.local.is_loopback());
    node.addresses.extend(reachable.map(|a| a.local));
    Ok(())
}
