//! Rules of nftables as the kernel takes them: expressions in attributes. Numbers are those of linux/netfilter/nf_tables.h,
//! named beside each.

use std::net::IpAddr;

use flannel_netlink::nftables::{Attributes, Kind, Message};

/// A register of 4 bytes; values of more go into it and those behind it.
#[derive(Debug, Clone, Copy)]
pub struct Register(u32);

impl Register {
    /// NFT_REG32_00
    pub const FIRST: Self = Self(8);
    /// The register behind an interface name of 16 bytes in the first: the second part of a key.
    pub const BEHIND_NAME: Self = Self(12);
}

/// Where in a frame an offset counts from.
#[derive(Debug, Clone, Copy)]
pub enum Base {
    /// NFT_PAYLOAD_LL_HEADER
    Link = 0,
    /// NFT_PAYLOAD_NETWORK_HEADER
    Network = 1,
    /// NFT_PAYLOAD_TRANSPORT_HEADER
    Transport = 2,
}

/// What is looked at in a frame, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Where it begins.
    pub base: Base,
    /// How far behind.
    pub offset: u32,
    /// How long it is.
    pub length: u32,
}

/// How a value is compared or looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It must be there: NFT_CMP_EQ.
    Is = 0,
    /// It must not: NFT_CMP_NEQ, NFT_LOOKUP_F_INV.
    IsNot = 1,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    /// NF_DROP
    Drop,
    /// NF_ACCEPT: no further rule of this hook's chain.
    Accept,
    /// NFT_JUMP: come back behind this rule.
    Jump(&'a str),
    /// NFT_GOTO: do not.
    Goto(&'a str),
}

/// The table.
pub fn table(name: &str) -> Message {
    // NFTA_TABLE_NAME
    message(Kind::NewTable, Attributes::new().text(1, name))
}

/// A set with keys of `length` bytes; `data_type` is the number by which the program nft knows how to show them.
pub fn set(table: &str, name: &str, data_type: u32, length: u32, byte_order: ByteOrder) -> Message {
    // NFTNL_UDATA_SET_KEYBYTEORDER: type 0, 4 bytes in host order, for nft alone.
    let mut user_data = vec![0, 4];
    user_data.extend_from_slice(&(byte_order as u32).to_ne_bytes());
    let attributes = Attributes::new()
        .text(1, table) // NFTA_SET_TABLE
        .text(2, name) // NFTA_SET_NAME
        .number(3, 0) // NFTA_SET_FLAGS
        .number(4, data_type) // NFTA_SET_KEY_TYPE
        .number(5, length) // NFTA_SET_KEY_LEN
        .number(10, 1) // NFTA_SET_ID
        .bytes(13, &user_data); // NFTA_SET_USERDATA
    message(Kind::NewSet, attributes)
}

/// How nft shows keys; the kernel does not care.
#[derive(Debug, Clone, Copy)]
pub enum ByteOrder {
    /// Strings.
    Host = 1,
    /// Addresses.
    Big = 2,
}

/// A chain that other chains send frames to.
pub fn chain(table: &str, name: &str) -> Message {
    // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
    message(Kind::NewChain, Attributes::new().text(1, table).text(3, name))
}

/// A chain that the kernel sends frames to; what it does not decide is accepted.
pub fn base_chain(table: &str, name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    // NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    let hook = Attributes::new()
        .number(1, hook)
        .number(2, priority.cast_unsigned());
    let attributes = Attributes::new()
        .text(1, table) // NFTA_CHAIN_TABLE
        .text(3, name) // NFTA_CHAIN_NAME
        .nest(4, &hook) // NFTA_CHAIN_HOOK
        .number(5, 1) // NFTA_CHAIN_POLICY = NF_ACCEPT
        .text(7, kind); // NFTA_CHAIN_TYPE
    message(Kind::NewChain, attributes)
}

/// Removes all rules of a chain.
pub fn empty_chain(table: &str, chain: &str) -> Message {
    // NFTA_RULE_TABLE, NFTA_RULE_CHAIN
    message(Kind::DeleteRule, Attributes::new().text(1, table).text(2, chain))
}

/// A rule at the end of a chain.
pub fn rule(table: &str, chain: &str, expressions: &[Attributes]) -> Message {
    // NFTA_LIST_ELEM
    let list = expressions
        .iter()
        .fold(Attributes::new(), |list, one| list.nest(1, one));
    // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS
    let attributes = Attributes::new().text(1, table).text(2, chain).nest(4, &list);
    message(Kind::NewRule, attributes)
}

/// Adds elements to a set, or takes them out.
pub fn elements(kind: Kind, table: &str, set: &str, keys: &[Vec<u8>]) -> Message {
    // NFTA_SET_ELEM_KEY in NFTA_LIST_ELEM
    let list = keys.iter().fold(Attributes::new(), |list, key| {
        list.nest(1, &Attributes::new().nest(1, &value(key)))
    });
    // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS
    let attributes = Attributes::new().text(1, table).text(2, set).nest(3, &list);
    message(kind, attributes)
}

/// Loads part of a frame.
pub fn load(field: Field, to: Register) -> Attributes {
    let data = Attributes::new()
        .number(1, to.0) // NFTA_PAYLOAD_DREG
        .number(2, field.base as u32) // NFTA_PAYLOAD_BASE
        .number(3, field.offset) // NFTA_PAYLOAD_OFFSET
        .number(4, field.length); // NFTA_PAYLOAD_LEN
    expression("payload", &data)
}

/// Loads the name of the device on which the frame came: NFT_META_IIFNAME, 16 bytes.
pub fn load_device(to: Register) -> Attributes {
    meta(6, to)
}

/// Loads the number of the transport protocol: NFT_META_L4PROTO.
pub fn load_protocol(to: Register) -> Attributes {
    meta(16, to)
}

fn meta(key: u32, to: Register) -> Attributes {
    // NFTA_META_DREG, NFTA_META_KEY
    expression("meta", &Attributes::new().number(1, to.0).number(2, key))
}

/// Clears the bits of a loaded address that are not of its network.
pub fn masked(like: IpAddr, length: u8, register: Register) -> Attributes {
    let bytes = octets(like).len();
    let mask: Vec<u8> = (0..bytes).map(|index| mask_byte(length, index)).collect();
    and(register, &mask)
}

/// Clears the bits of a loaded value that are not in `mask`, in place.
pub fn and(register: Register, mask: &[u8]) -> Attributes {
    let data = Attributes::new()
        .number(1, register.0) // NFTA_BITWISE_SREG
        .number(2, register.0) // NFTA_BITWISE_DREG
        .number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX)) // NFTA_BITWISE_LEN
        .nest(4, &value(mask)) // NFTA_BITWISE_MASK
        .nest(5, &value(&vec![0; mask.len()])); // NFTA_BITWISE_XOR
    expression("bitwise", &data)
}

/// Goes on with the rule if what was loaded matches `bytes`.
pub fn compare(register: Register, how: Match, bytes: &[u8]) -> Attributes {
    // NFTA_CMP_SREG, _OP, _DATA
    let data = Attributes::new()
        .number(1, register.0)
        .number(2, how as u32)
        .nest(3, &value(bytes));
    expression("cmp", &data)
}

/// Goes on with the rule if what was loaded is in a set, or is not.
pub fn lookup(register: Register, how: Match, set: &str) -> Attributes {
    // NFTA_LOOKUP_SET, _SREG, _SET_ID, _FLAGS
    let data = Attributes::new()
        .text(1, set)
        .number(2, register.0)
        .number(4, 1)
        .number(5, how as u32);
    expression("lookup", &data)
}

/// Counts packets and bytes.
pub fn counter() -> Attributes {
    expression("counter", &Attributes::new())
}

/// Masquerades.
pub fn masquerade() -> Attributes {
    expression("masq", &Attributes::new())
}

/// Ends the rule.
pub fn verdict(verdict: Verdict<'_>) -> Attributes {
    let (code, chain) = match verdict {
        Verdict::Drop => (0_i32, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    // NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
    let mut inner = Attributes::new().number(1, code.cast_unsigned());
    if let Some(chain) = chain {
        inner = inner.text(2, chain);
    }
    // NFTA_IMMEDIATE_DREG = NFT_REG_VERDICT, NFTA_IMMEDIATE_DATA with NFTA_DATA_VERDICT
    let data = Attributes::new()
        .number(1, 0)
        .nest(2, &Attributes::new().nest(2, &inner));
    expression("immediate", &data)
}

fn message(kind: Kind, attributes: Attributes) -> Message {
    Message { kind, attributes }
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    // NFTA_EXPR_NAME, NFTA_EXPR_DATA
    Attributes::new().text(1, name).nest(2, data)
}

fn value(bytes: &[u8]) -> Attributes {
    // NFTA_DATA_VALUE
    Attributes::new().bytes(1, bytes)
}

/// The byte at `index` of the mask of a network of `length` bits.
fn mask_byte(length: u8, index: usize) -> u8 {
    let bits = usize::from(length).saturating_sub(index * 8).min(8);
    u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(u8::MAX)
}

/// The first address of the subnet of `length` bits that holds `address`.
pub fn network(address: IpAddr, length: u8) -> IpAddr {
    let bytes = octets(address).into_iter().enumerate();
    let masked: Vec<u8> = bytes
        .map(|(index, byte)| byte & mask_byte(length, index))
        .collect();
    match (
        <[u8; 4]>::try_from(masked.as_slice()),
        <[u8; 16]>::try_from(masked),
    ) {
        (Ok(v4), _) => v4.into(),
        (_, Ok(v6)) => v6.into(),
        _ => address,
    }
}

/// The address as it lies in a packet.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Length of an address in bytes.
pub fn width(address: IpAddr) -> u32 {
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
    fn networks() {
        let network = |text: &str, length| network(text.parse().unwrap(), length).to_string();
        assert_eq!(network("10.1.17.200", 25), "10.1.17.128");
        assert_eq!(network("fc00:7::9", 64), "fc00:7::");
        assert_eq!(network("fc00:7::9", 128), "fc00:7::9");
    }
}
