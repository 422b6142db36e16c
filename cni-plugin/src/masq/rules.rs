//! The table's messages.

use std::net::IpAddr;

use flannel_netlink::nftables::{Attributes, Kind, Message};

use crate::expression::{
    Base, ByteOrder, Field, Match, Register, base_chain, compare, elements, empty_chain, load, lookup,
    masked, masquerade, octets, rule, set, table, width,
};

/// Name of our table, in the families ip and ip6.
pub const TABLE: &str = "flannel-cni-masq";
/// Name of the set of pod addresses.
pub const SET: &str = "pods";
/// NF_INET_POST_ROUTING
const POST_ROUTING: u32 = 4;
/// NF_IP_PRI_NAT_SRC, where source translation belongs.
const PRIORITY: i32 = 100;

/// Table, set, chain, rule and element for a pod.
pub fn add(address: IpAddr, subnet: (IpAddr, u8)) -> Vec<Message> {
    let chain = chain_name(subnet);
    // TYPE_IPADDR and TYPE_IP6ADDR of the program nft.
    let key_type = if address.is_ipv4() { 7 } else { 8 };
    vec![
        table(TABLE),
        set(TABLE, SET, key_type, width(address), ByteOrder::Big),
        base_chain(TABLE, &chain, "nat", POST_ROUTING, PRIORITY),
        // The rule is made anew, in the same transaction, so that it is there once and whole.
        empty_chain(TABLE, &chain),
        rule(TABLE, &chain, &expressions(subnet)),
        element(Kind::NewElement, address),
    ]
}

/// The element alone, into the set that is there.
pub fn add_element(address: IpAddr) -> Vec<Message> {
    vec![element(Kind::NewElement, address)]
}

/// Takes the element out.
pub fn remove(address: IpAddr) -> Vec<Message> {
    vec![element(Kind::DeleteElement, address)]
}

/// One chain a subnet: a node that changes its subnet keeps both while pods of the old one live.
pub fn chain_name((network, length): (IpAddr, u8)) -> String {
    format!("from-{network}/{length}").replace(':', "_")
}

fn element(kind: Kind, address: IpAddr) -> Message {
    elements(kind, TABLE, SET, &[octets(address)])
}

/// `saddr in subnet, saddr in @pods, daddr not in subnet, daddr not multicast: masquerade`.
fn expressions(subnet: (IpAddr, u8)) -> Vec<Attributes> {
    let multicast: (IpAddr, u8) = match subnet.0 {
        IpAddr::V4(_) => (std::net::Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        IpAddr::V6(_) => (std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    let mut list = within(Side::Source, subnet, Match::Is);
    list.push(load_address(Side::Source, subnet.0));
    list.push(lookup(Register::FIRST, Match::Is, SET));
    list.extend(within(Side::Destination, subnet, Match::IsNot));
    list.extend(within(Side::Destination, multicast, Match::IsNot));
    list.push(masquerade());
    list
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// The address of one side, masked, compared with a network.
fn within(side: Side, (network, length): (IpAddr, u8), how: Match) -> Vec<Attributes> {
    vec![
        load_address(side, network),
        masked(network, length, Register::FIRST),
        compare(Register::FIRST, how, &octets(network)),
    ]
}

/// Loads an address out of the network header.
fn load_address(side: Side, like: IpAddr) -> Attributes {
    // RFC 791: source at 12, destination at 16. RFC 8200: 8 and 24.
    let offset = match (side, like) {
        (Side::Source, IpAddr::V4(_)) => 12,
        (Side::Destination, IpAddr::V4(_)) => 16,
        (Side::Source, IpAddr::V6(_)) => 8,
        (Side::Destination, IpAddr::V6(_)) => 24,
    };
    let field = Field {
        base: Base::Network,
        offset,
        length: width(like),
    };
    load(field, Register::FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_by_subnet() {
        assert_eq!(
            chain_name(("10.1.17.0".parse().unwrap(), 24)),
            "from-10.1.17.0/24"
        );
        assert_eq!(chain_name(("fc00:7::".parse().unwrap(), 64)), "from-fc00_7__/64");
    }

    #[test]
    fn a_removal_touches_one_element_only() {
        let messages = remove("10.1.17.2".parse().unwrap());
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].kind, Kind::DeleteElement);
    }
}
