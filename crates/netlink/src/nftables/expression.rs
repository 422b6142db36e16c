//! Expressions of rules: what a packet is looked at for, one register after the other.

use super::{Attributes, Family, Kind, Message};

/// NFT_REG32_00: the first of sixteen registers of four bytes.
pub(super) const FIRST: u32 = 8;
/// NFT_META_L4PROTO
const L4_PROTOCOL: u32 = 16;
/// NFT_CT_PROTO_DST, NFT_CT_DST_IP, NFT_CT_DST_IP6
const CT_PROTO_DST: u32 = 12;
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;
/// IP_CT_DIR_ORIGINAL
const ORIGINAL: u8 = 0;
/// NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// NFT_DYNSET_OP_UPDATE
const UPDATE: u32 = 1;
/// NFT_NG_RANDOM, NFT_HASH_JENKINS, NFT_NAT_DNAT
const RANDOM: u32 = 1;
const JENKINS: u32 = 0;
const DNAT: u32 = 1;

/// A rule under construction.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    ipv6: bool,
    list: Attributes,
}

impl Rule {
    pub(super) fn new(family: Family) -> Self {
        Self {
            ipv6: family == Family::Ipv6,
            list: Attributes::new(),
        }
    }

    /// Registers that an address takes.
    pub(super) fn address_registers(&self) -> u32 {
        if self.ipv6 { 4 } else { 1 }
    }

    /// Loads the packet's source address.
    pub(super) fn source(self, register: u32) -> Self {
        // RFC 791: source at 12, destination at 16. RFC 8200: 8 and 24.
        let offset = if self.ipv6 { 8 } else { 12 };
        self.address(offset, register)
    }

    /// Loads the packet's destination address.
    pub(super) fn destination(self, register: u32) -> Self {
        let offset = if self.ipv6 { 24 } else { 16 };
        self.address(offset, register)
    }

    fn address(self, offset: u32, register: u32) -> Self {
        let width = 4 * self.address_registers();
        self.payload(NETWORK, offset, width, register)
    }

    /// Loads the source port: the first field of TCP, UDP and SCTP.
    pub(super) fn source_port(self, register: u32) -> Self {
        self.payload(TRANSPORT, 0, 2, register)
    }

    /// Loads the destination port.
    pub(super) fn destination_port(self, register: u32) -> Self {
        self.payload(TRANSPORT, 2, 2, register)
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
        let data = Attributes::new().number(1, register).number(2, base);
        self.with("payload", &data.number(3, offset).number(4, length))
    }

    /// Loads the transport protocol.
    pub(super) fn protocol(self, register: u32) -> Self {
        // NFTA_META_DREG, NFTA_META_KEY
        self.with(
            "meta",
            &Attributes::new().number(1, register).number(2, L4_PROTOCOL),
        )
    }

    /// Goes on only where the register holds these bytes.
    pub(super) fn equals(self, register: u32, bytes: &[u8]) -> Self {
        // NFTA_CMP_SREG, _OP = NFT_CMP_EQ, _DATA with NFTA_DATA_VALUE
        let value = Attributes::new().bytes(1, bytes);
        self.with(
            "cmp",
            &Attributes::new().number(1, register).number(2, 0).nest(3, &value),
        )
    }

    /// Loads the address that the connection was made to, before translation.
    pub(super) fn original_destination(self, register: u32) -> Self {
        let key = if self.ipv6 { CT_DST_IP6 } else { CT_DST_IP };
        self.tracked(key, register)
    }

    /// Loads the port that the connection was made to, before translation.
    pub(super) fn original_port(self, register: u32) -> Self {
        self.tracked(CT_PROTO_DST, register)
    }

    fn tracked(self, key: u32, register: u32) -> Self {
        // NFTA_CT_DREG, _KEY, _DIRECTION
        let data = Attributes::new().number(1, register).number(2, key);
        self.with("ct", &data.bytes(3, &[ORIGINAL]))
    }

    /// Draws a number from `offset` on, below `offset` + `modulus`.
    pub(super) fn random(self, modulus: u32, offset: u32, register: u32) -> Self {
        // NFTA_NG_DREG, _MODULUS, _TYPE, _OFFSET
        let data = Attributes::new().number(1, register).number(2, modulus);
        self.with("numgen", &data.number(3, RANDOM).number(4, offset))
    }

    /// The same by a hash of so many bytes from a register on.
    pub(super) fn hash(
        self,
        (from, length): (u32, u32),
        seed: u32,
        (modulus, offset): (u32, u32),
        register: u32,
    ) -> Self {
        // NFTA_HASH_SREG, _DREG, _LEN, _MODULUS, _SEED, _OFFSET, _TYPE
        let data = Attributes::new()
            .number(1, from)
            .number(2, register)
            .number(3, length);
        let data = data.number(4, modulus).number(5, seed).number(6, offset);
        self.with("hash", &data.number(7, JENKINS))
    }

    /// Replaces what lies from a register on by what it stands for in a map; ends the rule where it is no key of it.
    pub(super) fn look_up(self, map: &str, register: u32) -> Self {
        // NFTA_LOOKUP_SET, _SREG, _DREG
        let data = Attributes::new()
            .text(1, map)
            .number(2, register)
            .number(3, register);
        self.with("lookup", &data)
    }

    /// Adds an element to a map, or renews it, for so many milliseconds.
    pub(super) fn update(self, map: &str, key: u32, data: u32, milliseconds: u64) -> Self {
        // NFTA_DYNSET_SET_NAME, _OP, _SREG_KEY, _SREG_DATA, _TIMEOUT
        let attributes = Attributes::new().text(1, map).number(3, UPDATE).number(4, key);
        self.with(
            "dynset",
            &attributes.number(5, data).bytes(6, &milliseconds.to_be_bytes()),
        )
    }

    /// Translates the destination to the address and port that lie from a register on.
    pub(super) fn translate(self, register: u32) -> Self {
        let port = register + self.address_registers();
        // NFPROTO_IPV4, NFPROTO_IPV6
        let family = if self.ipv6 { 10 } else { 2 };
        // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_ADDR_MAX, _REG_PROTO_MIN, _REG_PROTO_MAX
        let data = Attributes::new().number(1, DNAT).number(2, family);
        let data = data.number(3, register).number(4, register);
        self.with("nat", &data.number(5, port).number(6, port))
    }

    fn with(self, name: &str, data: &Attributes) -> Self {
        // NFTA_EXPR_NAME, NFTA_EXPR_DATA in NFTA_LIST_ELEM
        let expression = Attributes::new().text(1, name).nest(2, data);
        Self {
            list: self.list.nest(1, &expression),
            ..self
        }
    }
}

/// Messages that make a chain of these rules and no others.
pub(super) fn chain(table: &str, name: &str, rules: &[Rule]) -> Vec<Message> {
    let message = |kind, attributes| Message { kind, attributes };
    let named = |table_kind, chain_kind| Attributes::new().text(table_kind, table).text(chain_kind, name);
    let mut out = vec![
        // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
        message(Kind::NewChain, named(1, 3)),
        // NFTA_RULE_TABLE, NFTA_RULE_CHAIN
        message(Kind::DeleteRule, named(1, 2)),
    ];
    // NFTA_RULE_EXPRESSIONS
    out.extend(
        rules
            .iter()
            .map(|rule| message(Kind::NewRule, named(1, 2).nest(4, &rule.list))),
    );
    out
}
