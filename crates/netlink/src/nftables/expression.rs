//! Expressions of rules: what a packet is looked at for, one register after the other.

use super::set::{ACCEPT, DROP, GOTO, verdict};
use super::{Attributes, Family, Kind, Message};

/// NFT_REG32_00: the first of sixteen registers of four bytes.
pub(super) const FIRST: u32 = 8;
/// NFT_META_IIFNAME, NFT_META_L4PROTO
const DEVICE: u32 = 6;
const L4_PROTOCOL: u32 = 16;
/// IFNAMSIZ: names of devices are compared whole, with the zeros behind them.
const DEVICE_NAME: usize = 16;
/// NFT_CMP_EQ, NFT_CMP_NEQ
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
/// NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR, RTN_LOCAL
const ADDRESS_TYPE: u32 = 3;
const OF_DESTINATION: u32 = 2;
const LOCAL: u32 = 2;
/// NFT_OBJECT_COUNTER
pub(super) const COUNTER: u32 = 1;
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

    /// Loads what lies so many bytes behind the begin of the transport header.
    pub(super) fn behind_transport(self, offset: u32, length: u32, register: u32) -> Self {
        self.payload(TRANSPORT, offset, length, register)
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
        self.compare(EQUAL, register, bytes)
    }

    /// Goes on only where the register holds other bytes.
    pub(super) fn differs(self, register: u32, bytes: &[u8]) -> Self {
        self.compare(NOT_EQUAL, register, bytes)
    }

    fn compare(self, how: u32, register: u32, bytes: &[u8]) -> Self {
        // NFTA_CMP_SREG, _OP, _DATA with NFTA_DATA_VALUE
        let value = Attributes::new().bytes(1, bytes);
        let data = Attributes::new().number(1, register).number(2, how);
        self.with("cmp", &data.nest(3, &value))
    }

    /// Clears the bits of a register that are not in the mask.
    pub(super) fn mask(self, register: u32, mask: &[u8]) -> Self {
        let value = |bytes: &[u8]| Attributes::new().bytes(1, bytes);
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR
        let data = Attributes::new().number(1, register).number(2, register);
        let data = data.number(3, length).nest(4, &value(mask));
        self.with("bitwise", &data.nest(5, &value(&vec![0; mask.len()])))
    }

    /// Goes on only where what lies from a register on is in a set.
    pub(super) fn found_in(self, set: &str, register: u32) -> Self {
        // NFTA_LOOKUP_SET, _SREG
        self.with("lookup", &Attributes::new().text(1, set).number(2, register))
    }

    /// Goes on only where it is not.
    pub(super) fn missing_from(self, set: &str, register: u32) -> Self {
        let data = Attributes::new().text(1, set).number(2, register);
        // NFTA_LOOKUP_FLAGS: NFT_LOOKUP_F_INV
        self.with("lookup", &data.number(5, 1))
    }

    /// Goes on only where the packet came by this device.
    pub(super) fn by_device(self, name: &str, register: u32) -> Self {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(DEVICE_NAME, 0);
        // NFTA_META_DREG, NFTA_META_KEY
        let data = Attributes::new().number(1, register).number(2, DEVICE);
        self.with("meta", &data).equals(register, &padded)
    }

    /// Goes on only where the destination is a unicast address of this host.
    pub(super) fn for_this_host(self, register: u32) -> Self {
        self.destination_type(register)
            .equals(register, &LOCAL.to_ne_bytes())
    }

    /// Goes on only where it is not.
    pub(super) fn for_others(self, register: u32) -> Self {
        self.destination_type(register)
            .differs(register, &LOCAL.to_ne_bytes())
    }

    fn destination_type(self, register: u32) -> Self {
        // NFTA_FIB_DREG, _RESULT, _FLAGS
        let data = Attributes::new().number(1, register).number(2, ADDRESS_TYPE);
        self.with("fib", &data.number(3, OF_DESTINATION))
    }

    /// The chain has nothing more to say.
    pub(super) fn accept(self) -> Self {
        self.decide(ACCEPT, None)
    }

    /// The packet goes no further, and is counted by a named counter.
    pub(super) fn drop_for(self, counter: &str) -> Self {
        // NFTA_OBJREF_IMM_TYPE, _IMM_NAME
        let data = Attributes::new().number(1, COUNTER).text(2, counter);
        self.with("objref", &data).decide(DROP, None)
    }

    /// Another chain decides.
    pub(super) fn go_to(self, chain: &str) -> Self {
        self.decide(GOTO, Some(chain))
    }

    fn decide(self, code: u32, chain: Option<&str>) -> Self {
        // NFTA_IMMEDIATE_DREG = NFT_REG_VERDICT, _DATA
        let data = Attributes::new().number(1, 0).nest(2, &verdict(code, chain));
        self.with("immediate", &data)
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
    // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
    let chain = Message {
        kind: Kind::NewChain,
        attributes: Attributes::new().text(1, table).text(3, name),
    };
    std::iter::once(chain).chain(fill(table, name, rules)).collect()
}

/// Messages that make a chain of these rules and no others, to which the kernel sends what passes a hook; what they do not decide
/// is accepted.
pub(super) fn base_chain(
    table: &str,
    name: &str,
    (hook, priority): (u32, i32),
    rules: &[Rule],
) -> Vec<Message> {
    // NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    let hook = Attributes::new()
        .number(1, hook)
        .number(2, priority.cast_unsigned());
    // NFTA_CHAIN_TABLE, _NAME, _HOOK, _POLICY = NF_ACCEPT, _TYPE
    let attributes = Attributes::new().text(1, table).text(3, name).nest(4, &hook);
    let chain = Message {
        kind: Kind::NewChain,
        attributes: attributes.number(5, 1).text(7, "filter"),
    };
    std::iter::once(chain).chain(fill(table, name, rules)).collect()
}

/// Messages that leave these rules in a chain and no others.
fn fill(table: &str, name: &str, rules: &[Rule]) -> Vec<Message> {
    // NFTA_RULE_TABLE, NFTA_RULE_CHAIN
    let named = || Attributes::new().text(1, table).text(2, name);
    let mut out = vec![Message {
        kind: Kind::DeleteRule,
        attributes: named(),
    }];
    // NFTA_RULE_EXPRESSIONS
    out.extend(rules.iter().map(|rule| Message {
        kind: Kind::NewRule,
        attributes: named().nest(4, &rule.list),
    }));
    out
}
