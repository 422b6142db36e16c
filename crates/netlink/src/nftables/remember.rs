//! The rules that remember which endpoint a client got, in the words of the kernel.
//!
//! They stand here and not as text because some versions of the nft program cannot write them for IPv6 (1.0.6 runs out of
//! registers), while all of them can show them.

use super::{Attributes, Family, Kind, Message};

/// NFT_REG32_00: the first of sixteen registers of four bytes.
const FIRST: u32 = 8;
/// NFT_META_L4PROTO
const L4_PROTOCOL: u32 = 16;
/// NFT_CT_PROTO_DST, and IP_CT_DIR_ORIGINAL
const CT_PROTO_DST: u32 = 12;
const ORIGINAL: u8 = 0;
/// NFT_CT_DST_IP, NFT_CT_DST_IP6
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;
/// NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// NFT_DYNSET_OP_UPDATE: a client that comes again is remembered anew.
const UPDATE: u32 = 1;

/// Messages that make `chain` remember for `seconds` what a translated packet was translated to: in `map`, whose key is source,
/// original destination, protocol and original port, and whose data is destination and port.
pub fn remember_chain(family: Family, table: &str, chain: &str, map: &str, seconds: u32) -> Vec<Message> {
    let name = |table_kind, chain_kind| Attributes::new().text(table_kind, table).text(chain_kind, chain);
    let mut out = vec![
        // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
        message(Kind::NewChain, name(1, 3)),
        // NFTA_RULE_TABLE, NFTA_RULE_CHAIN
        message(Kind::DeleteRule, name(1, 2)),
    ];
    for protocol in [6, 17, 132] {
        let list = expressions(family, protocol, map, seconds);
        // NFTA_LIST_ELEM in NFTA_RULE_EXPRESSIONS
        let list = list.iter().fold(Attributes::new(), |list, one| list.nest(1, one));
        out.push(message(Kind::NewRule, name(1, 2).nest(4, &list)));
    }
    out
}

fn expressions(family: Family, protocol: u8, map: &str, seconds: u32) -> Vec<Attributes> {
    // RFC 791: source at 12, destination at 16. RFC 8200: 8 and 24.
    let (width, source, destination, ct_destination) = if family == Family::Ipv6 {
        (16, 8, 24, CT_DST_IP6)
    } else {
        (4, 12, 16, CT_DST_IP)
    };
    let registers = width / 4;
    let original = FIRST + registers;
    let number = original + registers;
    let port = number + 1;
    let endpoint = port + 1;
    vec![
        meta(L4_PROTOCOL, FIRST),
        equals(FIRST, &[protocol]),
        payload(NETWORK, source, width, FIRST),
        tracked(ct_destination, original),
        meta(L4_PROTOCOL, number),
        tracked(CT_PROTO_DST, port),
        payload(NETWORK, destination, width, endpoint),
        payload(TRANSPORT, 2, 2, endpoint + registers),
        update(map, endpoint, u64::from(seconds) * 1000),
    ]
}

fn message(kind: Kind, attributes: Attributes) -> Message {
    Message { kind, attributes }
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    // NFTA_EXPR_NAME, NFTA_EXPR_DATA
    Attributes::new().text(1, name).nest(2, data)
}

fn meta(key: u32, register: u32) -> Attributes {
    // NFTA_META_DREG, NFTA_META_KEY
    expression("meta", &Attributes::new().number(1, register).number(2, key))
}

fn tracked(key: u32, register: u32) -> Attributes {
    // NFTA_CT_DREG, _KEY, _DIRECTION
    let data = Attributes::new().number(1, register).number(2, key);
    expression("ct", &data.bytes(3, &[ORIGINAL]))
}

fn payload(base: u32, offset: u32, length: u32, register: u32) -> Attributes {
    // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
    let data = Attributes::new().number(1, register).number(2, base);
    expression("payload", &data.number(3, offset).number(4, length))
}

fn equals(register: u32, bytes: &[u8]) -> Attributes {
    // NFTA_CMP_SREG, _OP = NFT_CMP_EQ, _DATA with NFTA_DATA_VALUE
    let value = Attributes::new().bytes(1, bytes);
    expression(
        "cmp",
        &Attributes::new().number(1, register).number(2, 0).nest(3, &value),
    )
}

fn update(map: &str, data: u32, milliseconds: u64) -> Attributes {
    // NFTA_DYNSET_SET_NAME, _OP, _SREG_KEY, _SREG_DATA, _TIMEOUT
    let attributes = Attributes::new().text(1, map).number(3, UPDATE).number(4, FIRST);
    expression(
        "dynset",
        &attributes.number(5, data).bytes(6, &milliseconds.to_be_bytes()),
    )
}
