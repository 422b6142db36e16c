//! The filter of encapsulated packets: who may send what through a tunnel.
//!
//! It looks at outer and inner header of one packet, before the tunnel device gets it, because afterwards nothing tells where it
//! came from. The inner header is loaded by its distance from the outer transport header: that works on every kernel and is shown by
//! every nft, while its own expressions for inner headers need Linux 6.2 and nft 1.0.7.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_model::IpSubnet;

use super::expression::{COUNTER, FIRST, Rule, base_chain, chain};
use super::presence::BaseChain;
use super::set::Element;
use super::{Attributes, Family, Kind, Message};

/// NF_INET_PRE_ROUTING and NF_INET_LOCAL_IN, both before everything else (NF_IP_PRI_RAW).
const PREROUTING: (u32, i32) = (0, -300);
const INPUT: (u32, i32) = (1, -300);
/// IPPROTO_IPIP, IPPROTO_UDP
const IPIP: u8 = 4;
const UDP: u8 = 17;
/// Behind the outer UDP header, which has 8 bytes: the VNI, and the inner Ethernet header's destination and type (RFC 7348 §5).
/// What has four bytes where it could have fewer is loaded and masked without a call by the kernel (`nft_payload_fast_ops`,
/// `nft_bitwise_fast_ops`).
const VNI: u32 = 12;
const VNI_BITS: [u8; 4] = [0xff, 0xff, 0xff, 0];
const INNER_MAC: u32 = 16;
const INNER_TYPE: u32 = 28;
const INNER_IP_OF_VXLAN: u32 = 30;
/// IPIP has nothing before the inner header.
const INNER_IP_OF_IPIP: u32 = 0;
/// The bit of an Ethernet address that says that a group is meant.
const GROUP: [u8; 4] = [1, 0, 0, 0];
/// ETH_P_IP, ETH_P_IPV6
const ETHER_IPV4: [u8; 2] = [0x08, 0x00];
const ETHER_IPV6: [u8; 2] = [0x86, 0xdd];

/// What packets are dropped for, as the counters of the table are called: an outer source that is no peer's, an outer destination that
/// is no unicast address of this host, an inner packet of another protocol, an inner destination of these kinds or elsewhere than in the
/// own subnet, an inner source that is not the sender's, and too few bytes.
pub const ENCAP_REASONS: [&str; 9] = [
    "outer_source",
    "outer_destination",
    "inner_protocol",
    "loopback",
    "link_local",
    "multicast",
    "foreign",
    "inner_source",
    MALFORMED,
];
const MALFORMED: &str = "malformed";
/// Inner destinations that never travel: RFC 1122 §3.2.1.3, RFC 3927, RFC 5771 with the limited broadcast, and RFC 4291.
const NOWHERE_V4: [(IpAddr, u8, &str); 4] = [
    (IpAddr::V4(Ipv4Addr::LOCALHOST), 8, "loopback"),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16, "link_local"),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4, "multicast"),
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32, "multicast"),
];
const NOWHERE_V6: [(IpAddr, u8, &str); 3] = [
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128, "loopback"),
    (
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)),
        10,
        "link_local",
    ),
    (
        IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)),
        8,
        "multicast",
    ),
];

/// A set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EncapSet {
    /// Which node sends for which subnet: its address, and the first of the subnet.
    Subnets,
    /// The same with the first address of the own subnet behind: from where to where, so that one look tells of all three.
    Paths,
    /// The nodes' own addresses, twice: a node also sends from the address by which it is reached.
    Nodes,
}

impl EncapSet {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Subnets, Self::Paths, Self::Nodes];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Subnets => "subnets",
            Self::Paths => "paths",
            Self::Nodes => "nodes",
        }
    }

    /// Addresses of an element.
    fn addresses(self) -> u32 {
        match self {
            Self::Subnets | Self::Nodes => 2,
            Self::Paths => 3,
        }
    }
}

/// An element of a set. All addresses are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EncapKey {
    /// The outer source.
    pub outer: IpAddr,
    /// The inner source, or the first of its subnet.
    pub inner: IpAddr,
    /// Of [`EncapSet::Paths`], the first of the subnet where the inner destination is.
    pub destination: Option<IpAddr>,
}

/// What the filter of one family is made from. All addresses are of that family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncapFilter {
    /// The pool of all subnets, which have one length.
    pub network: IpSubnet,
    /// The node's own subnet.
    pub own_subnet: IpSubnet,
    /// How packets are encapsulated.
    pub kind: EncapKind,
    /// The tunnel device.
    pub device: String,
}

/// How packets are encapsulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncapKind {
    /// VXLAN with this UDP port and identifier.
    Vxlan {
        /// Destination port.
        port: u16,
        /// 24 bits.
        vni: u32,
        /// The node's address to which most packets come, of the other end's family; what comes to another one takes longer.
        local: IpAddr,
    },
    /// IP in IP.
    Ipip,
    /// By a device that knows itself who may send what, as WireGuard does.
    Checked,
}

impl EncapFilter {
    /// The family of its table.
    pub fn family(&self) -> Family {
        match self.own_subnet {
            IpSubnet::V4(_) => Family::Ipv4,
            IpSubnet::V6(_) => Family::Ipv6,
        }
    }

    /// The sets that its rules look into.
    pub fn sets(&self) -> [EncapSet; 2] {
        match self.kind {
            EncapKind::Vxlan { .. } => [EncapSet::Paths, EncapSet::Nodes],
            EncapKind::Ipip | EncapKind::Checked => [EncapSet::Subnets, EncapSet::Nodes],
        }
    }

    fn rule(&self) -> Rule {
        Rule::new(self.family())
    }

    /// Registers of an address.
    fn width(&self) -> u32 {
        self.rule().address_registers()
    }
}

/// Messages that make the table and its counters; those that are there stay as they are.
pub fn encap_counters(table: &str) -> Vec<Message> {
    // NFTA_TABLE_NAME
    let mut out = vec![Message {
        kind: Kind::NewTable,
        attributes: Attributes::new().text(1, table),
    }];
    // NFTA_OBJ_TABLE, _NAME, _TYPE, _DATA; a new counter begins at 0
    out.extend(ENCAP_REASONS.iter().map(|reason| {
        Message {
            kind: Kind::NewObject,
            attributes: Attributes::new()
                .text(1, table)
                .text(2, reason)
                .number(3, COUNTER)
                .nest(4, &Attributes::new()),
        }
    }));
    out
}

/// Messages that make these sets; those that are there keep their elements.
pub fn encap_sets(family: Family, table: &str, sets: &[EncapSet]) -> Vec<Message> {
    // How nft shows an address: ipv4_addr (7) or ipv6_addr (8), six bits each (TYPE_BITS of nftables).
    let (shown, width): (u32, u32) = match family {
        Family::Ipv6 => (8, 16),
        Family::Ipv4 | Family::Inet | Family::Bridge => (7, 4),
    };
    // NFTNL_UDATA_SET_KEYBYTEORDER: type 0, 4 bytes: big endian
    let order = [&[0, 4][..], &2_u32.to_ne_bytes()].concat();
    // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _ID, _USERDATA
    let set = |(id, set): (u32, &EncapSet)| Message {
        kind: Kind::NewSet,
        attributes: Attributes::new()
            .text(1, table)
            .text(2, set.name())
            .number(3, 0)
            .number(4, (0..set.addresses()).fold(0, |all, _| all << 6 | shown))
            .number(5, set.addresses() * width)
            .number(10, id)
            .bytes(13, &order),
    };
    (1..).zip(sets).map(set).collect()
}

/// An element of one of the sets.
pub fn encap_element(key: EncapKey) -> Element {
    let addresses = [Some(key.outer), Some(key.inner), key.destination];
    Element::key(
        addresses
            .into_iter()
            .flatten()
            .flat_map(octets)
            .collect::<Vec<u8>>(),
    )
}

/// The addresses of an element of this set; `None` for one that is none of ours.
pub fn encap_key(set: EncapSet, element: &Element) -> Option<EncapKey> {
    let count = usize::try_from(set.addresses()).ok()?;
    let width = element.key.len().checked_div(count).filter(|width| *width > 0)?;
    let mut parts = element.key.chunks(width).map(address);
    let key = EncapKey {
        outer: parts.next()??,
        inner: parts.next()??,
        destination: (count > 2).then(|| parts.next().flatten()).flatten(),
    };
    (parts.next().is_none() && key.destination.is_some() == (count > 2)).then_some(key)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Messages that remove a table with all that is in it.
pub fn delete_table(table: &str) -> Vec<Message> {
    // NFTA_TABLE_NAME
    vec![Message {
        kind: Kind::DeleteTable,
        attributes: Attributes::new().text(1, table),
    }]
}

/// The base chains that [`encap_rules`] makes, by name.
pub fn encap_bases(filter: &EncapFilter) -> BTreeMap<String, BaseChain> {
    let chain = |name: &str, (hook, priority)| {
        let base = BaseChain {
            kind: "filter".to_owned(),
            hook,
            priority,
            drops: false,
        };
        (name.to_owned(), base)
    };
    let mut out = BTreeMap::from([chain("input", INPUT)]);
    if !matches!(filter.kind, EncapKind::Vxlan { .. }) {
        out.extend([chain("prerouting", PREROUTING)]);
    }
    out
}

/// Messages that make the chains with these rules and no others.
pub fn encap_rules(table: &str, filter: &EncapFilter) -> Vec<Message> {
    let (input, scope, outer, inner) = match filter.kind {
        EncapKind::Vxlan { port, vni, local } => {
            let scope = || scope_of_vxlan(filter, port, vni);
            let header = Header::Inner(INNER_IP_OF_VXLAN);
            // Nearly every packet is told by one rule, without another chain and without a look for the route.
            let usual = header.is_on_path(sound_frame(filter, scope()), filter);
            let usual = usual.destination(FIRST).equals(FIRST, &octets(local));
            let input = vec![usual.accept(), scope().go_to("outer")];
            (input, Vec::new(), checks_of_vxlan(filter), Vec::new())
        }
        EncapKind::Ipip => (
            vec![
                filter
                    .rule()
                    .protocol(FIRST)
                    .equals(FIRST, &[IPIP])
                    .go_to("scope"),
            ],
            scopes_of_ipip(filter),
            checks_of_ipip(filter),
            checks_of_device(filter),
        ),
        EncapKind::Checked => (Vec::new(), Vec::new(), Vec::new(), checks_of_device(filter)),
    };
    let mut messages = [
        chain(table, "outer", &outer),
        chain(table, "scope", &scope),
        chain(table, "inner", &inner),
        base_chain(table, "input", INPUT, &input),
    ]
    .concat();
    // A base chain costs every packet of the host, also without rules; it is made and deleted, because there is no way to delete one
    // that may not be there.
    let prerouting = match inner.is_empty() {
        true => Vec::new(),
        false => vec![filter.rule().by_device(&filter.device, FIRST).go_to("inner")],
    };
    messages.extend(base_chain(table, "prerouting", PREROUTING, &prerouting));
    if prerouting.is_empty() {
        messages.push(Message {
            kind: Kind::DeleteChain,
            // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
            attributes: Attributes::new().text(1, table).text(3, "prerouting"),
        });
    }
    messages
}

/// Only our own VNI: another tunnel of the host may use the same port.
fn scope_of_vxlan(filter: &EncapFilter, port: u16, vni: u32) -> Rule {
    let rule = filter.rule().protocol(FIRST).equals(FIRST, &[UDP]);
    let rule = rule.destination_port(FIRST).equals(FIRST, &port.to_be_bytes());
    let rule = rule.behind_transport(VNI, 4, FIRST).mask(FIRST, &VNI_BITS);
    rule.equals(FIRST, &(vni << 8).to_be_bytes())
}

/// What most frames inside are: of the family, and to one device.
fn sound_frame(filter: &EncapFilter, rule: Rule) -> Rule {
    group(inner_type(rule).equals(FIRST, &ethertype(filter))).equals(FIRST, &[0; 4])
}

fn ethertype(filter: &EncapFilter) -> [u8; 2] {
    match filter.own_subnet {
        IpSubnet::V4(_) => ETHER_IPV4,
        IpSubnet::V6(_) => ETHER_IPV6,
    }
}

fn inner_type(rule: Rule) -> Rule {
    rule.behind_transport(INNER_TYPE, 2, FIRST)
}

fn group(rule: Rule) -> Rule {
    rule.behind_transport(INNER_MAC, 4, FIRST).mask(FIRST, &GROUP)
}

/// Only what has to do with the pod network: other tunnels of the host end at the same address. The protocol is looked at by another
/// chain, because nft 1.0.6 aborts when it shows a rule with this protocol and something behind the transport header.
fn scopes_of_ipip(filter: &EncapFilter) -> Vec<Rule> {
    let header = Header::Inner(INNER_IP_OF_IPIP);
    vec![
        header.comes_from(filter.rule(), filter.network).go_to("outer"),
        header.goes_to(filter.rule(), filter.own_subnet).go_to("outer"),
    ]
}

/// What most packets are comes first; only what is to be dropped is looked at again, to count it by its reason.
fn checks_of_vxlan(filter: &EncapFilter) -> Vec<Rule> {
    let header = Header::Inner(INNER_IP_OF_VXLAN);
    let sound = || sound_frame(filter, filter.rule());
    let of_node = header.is_of_node(header.goes_to(sound(), filter.own_subnet), filter);
    let stranger = filter.rule().source(FIRST).source(FIRST + filter.width());
    let mut rules = vec![
        header.is_on_path(sound(), filter).for_this_host(FIRST).accept(),
        of_node.for_this_host(FIRST).accept(),
        stranger
            .missing_from(EncapSet::Nodes.name(), FIRST)
            .drop_for("outer_source"),
        filter.rule().for_others(FIRST).drop_for("outer_destination"),
        inner_type(filter.rule())
            .differs(FIRST, &ethertype(filter))
            .drop_for("inner_protocol"),
        group(filter.rule()).equals(FIRST, &GROUP).drop_for("multicast"),
    ];
    rules.extend(header.drops_by_destination(filter));
    // Whatever is left but too short for its headers.
    rules.push(header.destination(filter.rule(), FIRST).drop_for("inner_source"));
    rules.push(filter.rule().drop_for(MALFORMED));
    rules
}

/// Where it goes is looked at when it comes out of the device.
fn checks_of_ipip(filter: &EncapFilter) -> Vec<Rule> {
    let header = Header::Inner(INNER_IP_OF_IPIP);
    let stranger = filter.rule().source(FIRST).source(FIRST + filter.width());
    vec![
        header.is_of_sender(filter.rule(), filter).accept(),
        header.is_of_node(filter.rule(), filter).accept(),
        stranger
            .missing_from(EncapSet::Nodes.name(), FIRST)
            .drop_for("outer_source"),
        filter.rule().drop_for("inner_source"),
    ]
}

/// What came out of the device.
fn checks_of_device(filter: &EncapFilter) -> Vec<Rule> {
    let mut rules = vec![Header::Own.goes_to(filter.rule(), filter.own_subnet).accept()];
    rules.extend(Header::Own.drops_by_destination(filter));
    rules
}

/// The IP header that is looked at.
#[derive(Debug, Clone, Copy)]
enum Header {
    /// The packet's own.
    Own,
    /// One inside, so many bytes behind the begin of the transport header.
    Inner(u32),
}

impl Header {
    /// Loads the source address.
    fn source(self, rule: Rule, register: u32) -> Rule {
        match self {
            Self::Own => rule.source(register),
            // RFC 791: source at 12, destination at 16. RFC 8200: 8 and 24.
            Self::Inner(begin) if rule.address_registers() == 1 => {
                rule.behind_transport(begin + 12, 4, register)
            }
            Self::Inner(begin) => rule.behind_transport(begin + 8, 16, register),
        }
    }

    /// Loads the destination address.
    fn destination(self, rule: Rule, register: u32) -> Rule {
        match self {
            Self::Own => rule.destination(register),
            Self::Inner(begin) if rule.address_registers() == 1 => {
                rule.behind_transport(begin + 16, 4, register)
            }
            Self::Inner(begin) => rule.behind_transport(begin + 24, 16, register),
        }
    }

    fn comes_from(self, rule: Rule, subnet: IpSubnet) -> Rule {
        let rule = self.source(rule, FIRST).mask(FIRST, &mask(subnet));
        rule.equals(FIRST, &octets(subnet.network()))
    }

    fn goes_to(self, rule: Rule, subnet: IpSubnet) -> Rule {
        let rule = self.destination(rule, FIRST).mask(FIRST, &mask(subnet));
        rule.equals(FIRST, &octets(subnet.network()))
    }

    /// Goes on only where the outer source sends for the subnet of the inner one.
    fn is_of_sender(self, rule: Rule, filter: &EncapFilter) -> Rule {
        let inner = FIRST + filter.width();
        let rule = self.source(rule.source(FIRST), inner);
        // Every subnet has the length of the own one.
        rule.mask(inner, &mask(filter.own_subnet))
            .found_in(EncapSet::Subnets.name(), FIRST)
    }

    /// Goes on only where the outer source sends for the subnet of the inner one, and that to the own subnet.
    fn is_on_path(self, rule: Rule, filter: &EncapFilter) -> Rule {
        let inner = FIRST + filter.width();
        // Every subnet has the length of the own one.
        let mask = mask(filter.own_subnet);
        let rule = match (self, filter.own_subnet) {
            // Both lie beside each other, and one load takes half the time of two.
            (Self::Inner(begin), IpSubnet::V4(_)) => {
                let rule = rule.source(FIRST).behind_transport(begin + 12, 8, inner);
                rule.mask(inner, &mask.repeat(2))
            }
            // A mask has 16 bytes at the most.
            _ => {
                let rule = self.source(rule.source(FIRST), inner).mask(inner, &mask);
                let other = inner + filter.width();
                self.destination(rule, other).mask(other, &mask)
            }
        };
        rule.found_in(EncapSet::Paths.name(), FIRST)
    }

    /// Goes on only where outer and inner source are one node's address.
    fn is_of_node(self, rule: Rule, filter: &EncapFilter) -> Rule {
        self.source(rule.source(FIRST), FIRST + filter.width())
            .found_in(EncapSet::Nodes.name(), FIRST)
    }

    /// Rules that drop what does not go to the own subnet.
    fn drops_by_destination(self, filter: &EncapFilter) -> Vec<Rule> {
        let ranges = match filter.own_subnet {
            IpSubnet::V4(_) => &NOWHERE_V4[..],
            IpSubnet::V6(_) => &NOWHERE_V6[..],
        };
        let mut rules = Vec::new();
        for (address, length, reason) in ranges {
            if let Some(range) = IpSubnet::around(*address, *length) {
                rules.push(self.goes_to(filter.rule(), range).drop_for(reason));
            }
        }
        let rule = self.destination(filter.rule(), FIRST);
        let rule = rule.mask(FIRST, &mask(filter.own_subnet));
        rules.push(
            rule.differs(FIRST, &octets(filter.own_subnet.network()))
                .drop_for("foreign"),
        );
        rules
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The bits of addresses that tell which subnet they are of.
fn mask(subnet: IpSubnet) -> Vec<u8> {
    let bytes = octets(subnet.network()).len();
    let bits = (0..bytes).map(|index| usize::from(subnet.length()).saturating_sub(8 * index).min(8));
    bits.map(|bits| u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(u8::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_tells_its_addresses() {
        let all = [
            ("192.0.2.1", "10.5.2.0", "10.5.1.0"),
            ("fd00:50::11", "fd00:5:0:2::", "fd00:5:0:1::"),
        ];
        for (outer, inner, destination) in all {
            let pair = EncapKey {
                outer: outer.parse().unwrap(),
                inner: inner.parse().unwrap(),
                destination: None,
            };
            let path = EncapKey {
                destination: Some(destination.parse().unwrap()),
                ..pair
            };
            assert_eq!(encap_key(EncapSet::Subnets, &encap_element(pair)), Some(pair));
            assert_eq!(encap_key(EncapSet::Paths, &encap_element(path)), Some(path));
            assert_eq!(encap_key(EncapSet::Paths, &encap_element(pair)), None);
            assert_eq!(encap_key(EncapSet::Nodes, &encap_element(path)), None);
        }
        for set in EncapSet::ALL {
            for bytes in [0, 1, 3, 7, 9, 11, 24, 47] {
                assert_eq!(encap_key(set, &Element::key(vec![1; bytes])), None, "{bytes}");
            }
        }
    }

    #[test]
    fn masks_have_the_bits_of_the_subnet() {
        let of = |text: &str| mask(text.parse().unwrap());
        assert_eq!(of("10.5.1.0/24"), [255, 255, 255, 0]);
        assert_eq!(of("10.4.0.0/15"), [255, 254, 0, 0]);
        assert_eq!(of("10.5.1.8/29"), [255, 255, 255, 248]);
        assert_eq!(of("0.0.0.0/0"), [0; 4]);
        assert_eq!(
            of("fd00:5::/63")[..9],
            [255, 255, 255, 255, 255, 255, 255, 254, 0]
        );
    }
}
