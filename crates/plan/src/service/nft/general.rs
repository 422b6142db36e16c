//! What holds for all Services, as elements.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flannel_model::IpSubnet;

use super::element::{Key, NftElement, NftSet, range};
use crate::service::frontend::Frontends;

/// The elements of one family that do not belong to a frontend: service CIDRs, pod networks, addresses of the node and of
/// endpoints on it.
pub fn general_elements(frontends: &Frontends, pods: &[IpSubnet], ipv4: bool) -> BTreeSet<NftElement> {
    let of_family = |net: &&IpSubnet| net.is_ipv4() == ipv4;
    let cidrs = frontends
        .cidrs
        .iter()
        .filter(of_family)
        .flat_map(|net| range(NftSet::Cidrs, net));
    let pods = pods
        .iter()
        .filter(of_family)
        .flat_map(|net| range(NftSet::Pods, net));
    let mine = |ip: &&IpAddr| ip.is_ipv4() == ipv4;
    // CVE-2020-8558: what listens on loopback is nobody else's business, so node ports are not on it
    let node = frontends
        .node_addresses
        .iter()
        .filter(|ip| !ip.is_loopback())
        .filter(mine);
    let node = node.map(|ip| NftElement::new(NftSet::NodeAddresses, Key::default().ip(*ip).0));
    let hairpin = frontends.local_endpoints.iter().filter(mine);
    let hairpin = hairpin.map(|ip| NftElement::new(NftSet::Hairpin, Key::default().ip(*ip).ip(*ip).0));
    cidrs.chain(pods).chain(node).chain(hairpin).collect()
}
