//! What Services need to know of the node.

use flannel_model::is_host_address;
use flannel_netlink::{NetlinkError, RouteConn, local_route};
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
    let delivered = local_route::own_addresses(&mut conn)?;
    node.addresses
        .extend(delivered.into_iter().filter(is_host_address));
    Ok(())
}
