//! What Services need to know of the node.

use std::collections::BTreeSet;
use std::net::{IpAddr, ToSocketAddrs};

use flannel_model::is_host_address;
use flannel_netlink::{NetlinkError, RouteConn, link, local_route};
use flannel_plan::ServiceNode;

use crate::overlay::Facts;

/// On this device kube-proxy's IPVS mode leaves the addresses of all Services: they are none of the node's.
const KUBE_PROXY: &str = "kube-ipvs0";

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
    let kube_proxy = link::by_name(&mut conn, KUBE_PROXY)?.map(|device| device.ifindex);
    let delivered = local_route::own_addresses(&mut conn, kube_proxy)?;
    node.addresses
        .extend(delivered.into_iter().filter(is_host_address));
    Ok(())
}

/// The addresses behind URLs of servers, which no Service may take over: a node that delivered them itself would hear from them no
/// more. Names are looked up, which may block. One that nobody knows is left out.
pub fn server_addresses(urls: &[String]) -> BTreeSet<IpAddr> {
    let addresses = urls.iter().flat_map(|url| look_up(url));
    addresses.filter(is_host_address).collect()
}

/// `http://10.0.0.1:2379`, `[fd00::1]:2379`, `etcd.example.org`
fn look_up(endpoint: &str) -> Vec<IpAddr> {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
    let host = host.split('/').next().unwrap_or_default();
    let found = match host.to_socket_addrs() {
        Ok(found) => Ok(found),
        // without a port; which one does not matter
        Err(_) => (host.trim_matches(['[', ']']), 0).to_socket_addrs(),
    };
    found.into_iter().flatten().map(|at| at.ip()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers_are_read_from_every_form_of_a_url() {
        let endpoints = [
            "http://192.0.2.7:2379",
            "https://[fd00::7]:2379/",
            "192.0.2.8",
            "http://[fd00::8]",
            "http://127.0.0.1:2379",
            "no such host",
        ];
        let found = server_addresses(&endpoints.map(str::to_owned));
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.7", "192.0.2.8", "fd00::7", "fd00::8"]);
    }
}
