//! The table's messages. Attribute numbers are those of linux/netfilter/nf_tables.h, named beside each.

use std::net::IpAddr;

use flannel_netlink::nftables::{Attributes, Kind, Message};

/// Name of our table, in the families ip and ip6.
pub const TABLE: &str = "flannel-cni-masq";
/// Name of the set of pod addresses.
pub const SET: &str = "pods";
/// NFT_REG_1: the first register of 16 bytes.
const REGISTER: u32 = 1;
/// NF_INET_POST_ROUTING
const POST_ROUTING: u32 = 4;
/// NF_IP_PRI_NAT_SRC, where source translation belongs.
const PRIORITY: u32 = 100;
/// NFT_CMP_EQ, NFT_CMP_NEQ
const EQUAL: u32 = 0;
const DIFFERENT: u32 = 1;

/// Table, set, chain, rule and element for a pod.
pub fn add(address: IpAddr, subnet: (IpAddr, u8)) -> Vec<Message> {
    let chain = chain_name(subnet);
    vec![
        // NFTA_TABLE_NAME
        message(Kind::NewTable, Attributes::new().text(1, TABLE)),
        set(address),
        base_chain(&chain),
        // NFTA_RULE_TABLE, _CHAIN: the rule is made anew, in the same transaction, so that it is there once and whole.
        message(Kind::DeleteRule, Attributes::new().text(1, TABLE).text(2, &chain)),
        rule(&chain, subnet),
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

/// The first address of the subnet of `length` bits that holds `address`.
pub fn network(address: IpAddr, length: u8) -> IpAddr {
    let masked = |bytes: Vec<u8>| -> Vec<u8> {
        let bytes = bytes.into_iter().enumerate();
        bytes
            .map(|(index, byte)| byte & mask_byte(length, index))
            .collect()
    };
    let bytes = masked(octets(address));
    match (<[u8; 4]>::try_from(bytes.as_slice()), <[u8; 16]>::try_from(bytes)) {
        (Ok(v4), _) => v4.into(),
        (_, Ok(v6)) => v6.into(),
        _ => address,
    }
}

/// One chain a subnet: a node that changes its subnet keeps both while pods of the old one live.
pub fn chain_name((network, length): (IpAddr, u8)) -> String {
    format!("from-{network}/{length}").replace(':', "_")
}

fn message(kind: Kind, attributes: Attributes) -> Message {
    Message { kind, attributes }
}

fn set(address: IpAddr) -> Message {
    // TYPE_IPADDR and TYPE_IP6ADDR of the nft program, which shows elements by it; the kernel does not care.
    let key_type = if address.is_ipv4() { 7 } else { 8 };
    // NFTNL_UDATA_SET_KEYBYTEORDER (type 0, 4 bytes) = big-endian (2, host order), also for nft alone.
    let mut user_data = vec![0, 4];
    user_data.extend_from_slice(&2u32.to_ne_bytes());
    let attributes = Attributes::new()
        .text(1, TABLE) // NFTA_SET_TABLE
        .text(2, SET) // NFTA_SET_NAME
        .number(3, 0) // NFTA_SET_FLAGS
        .number(4, key_type) // NFTA_SET_KEY_TYPE
        .number(5, width(address)) // NFTA_SET_KEY_LEN
        .number(10, 1) // NFTA_SET_ID
        .bytes(13, &user_data); // NFTA_SET_USERDATA
    message(Kind::NewSet, attributes)
}

fn base_chain(name: &str) -> Message {
    // NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    let hook = Attributes::new().number(1, POST_ROUTING).number(2, PRIORITY);
    let attributes = Attributes::new()
        .text(1, TABLE) // NFTA_CHAIN_TABLE
        .text(3, name) // NFTA_CHAIN_NAME
        .nest(4, &hook) // NFTA_CHAIN_HOOK
        .number(5, 1) // NFTA_CHAIN_POLICY = NF_ACCEPT
        .text(7, "nat"); // NFTA_CHAIN_TYPE
    message(Kind::NewChain, attributes)
}

/// `saddr in subnet, saddr in @pods, daddr not in subnet, daddr not multicast: masquerade`.
fn rule(chain: &str, subnet: (IpAddr, u8)) -> Message {
    let multicast: (IpAddr, u8) = match subnet.0 {
        IpAddr::V4(_) => (std::net::Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        IpAddr::V6(_) => (std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    let mut list = within(Side::Source, subnet, EQUAL);
    list.push(load(Side::Source, subnet.0));
    list.push(lookup());
    list.extend(within(Side::Destination, subnet, DIFFERENT));
    list.extend(within(Side::Destination, multicast, DIFFERENT));
    list.push(expression("masq", &Attributes::new()));
    // NFTA_LIST_ELEM
    let list = list.iter().fold(Attributes::new(), |list, one| list.nest(1, one));
    // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS
    message(
        Kind::NewRule,
        Attributes::new().text(1, TABLE).text(2, chain).nest(4, &list),
    )
}

fn element(kind: Kind, address: IpAddr) -> Message {
    // NFTA_SET_ELEM_KEY in NFTA_LIST_ELEM
    let key = Attributes::new().nest(1, &value(&octets(address)));
    let list = Attributes::new().nest(1, &key);
    // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS
    message(kind, Attributes::new().text(1, TABLE).text(2, SET).nest(3, &list))
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// The address of one side, masked, compared with a network.
fn within(side: Side, (network, length): (IpAddr, u8), operator: u32) -> Vec<Attributes> {
    vec![
        load(side, network),
        masked(network, length),
        compare(&octets(network), operator),
    ]
}

/// Loads an address out of the network header.
fn load(side: Side, like: IpAddr) -> Attributes {
    // RFC 791: source at 12, destination at 16. RFC 8200: 8 and 24.
    let offset = match (side, like) {
        (Side::Source, IpAddr::V4(_)) => 12,
        (Side::Destination, IpAddr::V4(_)) => 16,
        (Side::Source, IpAddr::V6(_)) => 8,
        (Side::Destination, IpAddr::V6(_)) => 24,
    };
    let data = Attributes::new()
        .number(1, REGISTER) // NFTA_PAYLOAD_DREG
        .number(2, 1) // NFTA_PAYLOAD_BASE = NFT_PAYLOAD_NETWORK_HEADER
        .number(3, offset) // NFTA_PAYLOAD_OFFSET
        .number(4, width(like)); // NFTA_PAYLOAD_LEN
    expression("payload", &data)
}

fn masked(like: IpAddr, length: u8) -> Attributes {
    let bytes = octets(like).len();
    let mask: Vec<u8> = (0..bytes).map(|index| mask_byte(length, index)).collect();
    let data = Attributes::new()
        .number(1, REGISTER) // NFTA_BITWISE_SREG
        .number(2, REGISTER) // NFTA_BITWISE_DREG
        .number(3, width(like)) // NFTA_BITWISE_LEN
        .nest(4, &value(&mask)) // NFTA_BITWISE_MASK
        .nest(5, &value(&vec![0; bytes])); // NFTA_BITWISE_XOR
    expression("bitwise", &data)
}

fn mask_byte(length: u8, index: usize) -> u8 {
    let bits = usize::from(length).saturating_sub(index * 8).min(8);
    u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(u8::MAX)
}

fn compare(bytes: &[u8], operator: u32) -> Attributes {
    // NFTA_CMP_SREG, _OP, _DATA
    let data = Attributes::new()
        .number(1, REGISTER)
        .number(2, operator)
        .nest(3, &value(bytes));
    expression("cmp", &data)
}

fn lookup() -> Attributes {
    // NFTA_LOOKUP_SET, _SREG, _SET_ID: the set may be made in this very transaction.
    expression(
        "lookup",
        &Attributes::new().text(1, SET).number(2, REGISTER).number(4, 1),
    )
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    // NFTA_EXPR_NAME, NFTA_EXPR_DATA
    Attributes::new().text(1, name).nest(2, data)
}

fn value(bytes: &[u8]) -> Attributes {
    // NFTA_DATA_VALUE
    Attributes::new().bytes(1, bytes)
}

/// The address as it lies in a packet.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 4 } else { 16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let mask = |length| (0..4).map(|index| mask_byte(length, index)).collect::<Vec<_>>();
        assert_eq!(mask(0), [0, 0, 0, 0]);
        assert_eq!(mask(4), [0xf0, 0, 0, 0]);
        assert_eq!(mask(25), [255, 255, 255, 128]);
        assert_eq!(mask(32), [255, 255, 255, 255]);
    }

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
