//! Which ranges and addresses may be delivered on the node itself without cutting off something else.

use std::net::IpAddr;

use flannel_model::{IpSubnet, ServicesConfig, is_host_address};

use super::frontend::ServiceNote;
use super::node::ServiceNode;

/// Most bits of host addresses in a service CIDR: Kubernetes' API server refuses more, and every address of the range is delivered
/// on the node itself.
const MOST_HOST_BITS: u8 = 20;

/// The service CIDRs that can be delivered locally without harm; a range inside another counts as part of it.
pub(super) fn sound_cidrs(
    config: &ServicesConfig,
    node: &ServiceNode,
    notes: &mut Vec<ServiceNote>,
) -> Vec<IpSubnet> {
    let mut sound: Vec<IpSubnet> = Vec::new();
    for cidr in &config.cidrs {
        match fault(cidr, node) {
            // a containing range is sorted before what it contains
            None if !sound.iter().any(|s| s.contains(cidr)) => {
                notes.extend(node.peer_in(cidr).map(|peer| ServiceNote {
                    subject: "config".to_owned(),
                    text: format!("cidrs {cidr} holds {peer}, the address of another node, which this node cannot reach any more"),
                }));
                sound.push(*cidr);
            }
            None => {}
            Some(reason) => notes.push(ServiceNote {
                subject: "config".to_owned(),
                text: format!("cidrs {cidr} is refused: {reason}"),
            }),
        }
    }
    sound
}

fn fault(cidr: &IpSubnet, node: &ServiceNode) -> Option<String> {
    let bits = if cidr.is_ipv4() { 32 } else { 128 };
    let shortest = bits - MOST_HOST_BITS;
    if cidr.length() < shortest {
        return Some(format!("expected a prefix of at least {shortest} bits"));
    }
    if !is_host_address(&cidr.last()) || !is_host_address(&cidr.network()) {
        return Some("expected unicast addresses that are neither loopback nor link-local".to_owned());
    }
    if node.primary(cidr.is_ipv4()).is_none() {
        let family = if cidr.is_ipv4() { "IPv4" } else { "IPv6" };
        return Some(format!("this node has no {family} address to reach it from"));
    }
    node.hit_by_range(cidr)
}

/// Why a cluster address cannot be delivered.
pub(super) fn cluster_ip_fault(ip: IpAddr, cidrs: &[IpSubnet], node: &ServiceNode) -> Option<String> {
    if !cidrs.iter().any(|c| c.holds(ip)) {
        return Some(format!("it lies outside the service CIDRs {}", list(cidrs)));
    }
    node.hit_by(ip)
}

/// Why an external address or that of a load balancer cannot be delivered.
pub(super) fn external_ip_fault(
    ip: IpAddr,
    cidrs: &[IpSubnet],
    config: &ServicesConfig,
    node: &ServiceNode,
) -> Option<String> {
    if let Some(reason) = node.hit_by(ip) {
        return Some(reason);
    }
    if let Some(cidr) = cidrs.iter().find(|c| c.holds(ip)) {
        return Some(format!("it lies inside the service CIDR {cidr}"));
    }
    if node.api_servers.contains(&ip) {
        return Some("it is an address of the API server".to_owned());
    }
    if !config.external_cidrs.iter().any(|c| c.holds(ip)) {
        return Some(format!(
            "it lies outside the ranges {} that externalCidrs allows for such addresses",
            list(&config.external_cidrs)
        ));
    }
    None
}

fn list(ranges: &[IpSubnet]) -> String {
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    if texts.is_empty() {
        "(none)".to_owned()
    } else {
        texts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_external_address_is_that_of_the_api_server_and_a_cluster_address_may_be() {
        let api_server: IpAddr = "203.0.113.9".parse().unwrap();
        let within: IpAddr = "10.96.0.1".parse().unwrap();
        let node = ServiceNode {
            api_servers: [api_server, within].into(),
            ..ServiceNode::default()
        };
        let cidrs = ["10.96.0.0/16".parse().unwrap()];
        let config = ServicesConfig {
            external_cidrs: vec!["203.0.113.0/24".parse().unwrap()],
            ..ServicesConfig::default()
        };
        assert_eq!(
            external_ip_fault(api_server, &cidrs, &config, &node).unwrap(),
            "it is an address of the API server"
        );
        let other = "203.0.113.10".parse().unwrap();
        assert_eq!(external_ip_fault(other, &cidrs, &config, &node), None);
        // the API server may be reached by its own Service
        assert_eq!(cluster_ip_fault(within, &cidrs, &node), None);
    }
}
