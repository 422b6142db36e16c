//! The table's messages.

use std::net::{IpAddr, Ipv6Addr};

use flannel_model::Mac;
use flannel_netlink::nftables::{
    Attributes, DEFAULT_TUNNEL_PORTS, GUARD_TABLE, GUARDED_PORTS, Kind, Message, guard_ports,
};

use super::{Port, Scope};
use crate::expression::{self, Base, ByteOrder, Field, Match, Register, Verdict};

/// Name of our table, in the family bridge.
pub const TABLE: &str = GUARD_TABLE;
/// The chain that the kernel enters.
pub const BASE: &str = "prerouting";
const FROM_POD: &str = "from-pod";
const ARP: &str = "arp";
const IPV4: &str = "ipv4";
const IPV6: &str = "ipv6";
const TRUNK: &str = "trunk";
/// NF_BR_PRE_ROUTING
const PRE_ROUTING: u32 = 0;
/// NF_BR_PRI_NAT_DST_BRIDGED, nft's `dstnat`: before anybody acts upon the frame.
const PRIORITY: i32 = -300;
/// IFNAMSIZ
const NAME: usize = 16;

/// The sets, and what their keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Guarded ports: name.
    Pods,
    /// Hardware addresses: name, address.
    Macs,
    /// IPv4 addresses: name, address.
    Ipv4,
    /// IPv6 addresses: name, address.
    Ipv6,
    /// Ports of which only the hardware address is checked: name.
    MacOnly,
    /// VLANs whose frames have a tag: name, number.
    Tagged,
    /// Ports with more elements than one for each of their addresses, because they share those of other ports of their container
    /// or have a trunk: name.
    Shared,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pods,
        Self::Macs,
        Self::Ipv4,
        Self::Ipv6,
        Self::MacOnly,
        Self::Tagged,
        Self::Shared,
    ];

    /// The set's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Macs => "macs",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::MacOnly => "mac-only",
            Self::Tagged => "tagged",
            Self::Shared => "shared",
        }
    }

    /// Length of the second part of a key, on a boundary of 4 bytes; 0 where there is none.
    fn second(self) -> usize {
        match self {
            Self::Pods | Self::MacOnly | Self::Shared => 0,
            Self::Macs => 8,
            Self::Ipv4 | Self::Tagged => 4,
            Self::Ipv6 => 16,
        }
    }

    fn message(self) -> Message {
        // TYPE_IFNAME of the program nft, and behind it, 6 bits to the right, TYPE_ETHERADDR, TYPE_IPADDR,
        // TYPE_IP6ADDR or, to show a number, TYPE_INET_SERVICE.
        let data_type = match self {
            Self::Pods | Self::MacOnly | Self::Shared => 41,
            Self::Macs => 41 << 6 | 9,
            Self::Ipv4 => 41 << 6 | 7,
            Self::Ipv6 => 41 << 6 | 8,
            Self::Tagged => 41 << 6 | 13,
        };
        let length = u32::try_from(NAME + self.second()).unwrap_or(u32::MAX);
        expression::set(TABLE, self.name(), data_type, length, ByteOrder::Host)
    }
}

/// Table, sets, chains and rules.
pub fn table() -> Vec<Message> {
    let mut messages = vec![expression::table(TABLE)];
    messages.extend(Set::ALL.map(Set::message));
    // In a set of their own, because flanneld names other ports there.
    messages.extend(guard_ports(DEFAULT_TUNNEL_PORTS));
    messages.push(expression::base_chain(
        TABLE,
        BASE,
        "filter",
        PRE_ROUTING,
        PRIORITY,
    ));
    let inner = [FROM_POD, ARP, IPV4, IPV6, TRUNK];
    messages.extend(inner.map(|name| expression::chain(TABLE, name)));
    // Rules are made anew, in the same transaction, so that each is there once.
    messages
        .extend([BASE, FROM_POD, ARP, IPV4, IPV6, TRUNK].map(|name| expression::empty_chain(TABLE, name)));
    let rule = |(chain, expressions): (&str, Vec<Attributes>)| expression::rule(TABLE, chain, &expressions);
    messages.extend(base_rules().into_iter().map(rule));
    messages.extend(arp_rules().into_iter().map(rule));
    messages.extend(ipv4_rules().into_iter().map(rule));
    messages.extend(ipv6_rules().into_iter().map(rule));
    messages.extend(vlan_rules().into_iter().map(rule));
    messages
}

type Rule = (&'static str, Vec<Attributes>);

fn base_rules() -> Vec<Rule> {
    let guarded = |set: Set| {
        vec![
            expression::load_device(Register::FIRST),
            expression::lookup(Register::FIRST, Match::Is, set.name()),
        ]
    };
    let of_type = |number: u16, chain| {
        vec![
            // The tag of a VLAN counts as the type, also where the kernel keeps it beside the frame.
            expression::load(field(Base::Link, 12, 2), Register::FIRST),
            expression::compare(Register::FIRST, Match::Is, &number.to_be_bytes()),
            expression::verdict(Verdict::Goto(chain)),
        ]
    };
    vec![
        (BASE, ended(guarded(Set::Pods), Verdict::Jump(FROM_POD))),
        (FROM_POD, foreign(field(Base::Link, 6, 6), Set::Macs)),
        (FROM_POD, ended(guarded(Set::MacOnly), Verdict::Accept)),
        (FROM_POD, of_type(0x0806, ARP)),
        (FROM_POD, of_type(0x0800, IPV4)),
        (FROM_POD, of_type(0x86dd, IPV6)),
        (FROM_POD, of_type(0x8100, TRUNK)),
        (FROM_POD, dropped(Vec::new())),
    ]
}

fn arp_rules() -> Vec<Rule> {
    // RFC 826: Ethernet and IPv4, with addresses of 6 and 4 bytes.
    let other = vec![
        expression::load(field(Base::Network, 0, 6), Register::FIRST),
        expression::compare(Register::FIRST, Match::IsNot, &[0, 1, 8, 0, 6, 4]),
    ];
    // RFC 5227: who looks whether an address is free has none yet.
    let probe = vec![
        expression::load(field(Base::Network, 14, 4), Register::FIRST),
        expression::compare(Register::FIRST, Match::Is, &[0; 4]),
    ];
    vec![
        (ARP, dropped(other)),
        (ARP, foreign(field(Base::Network, 8, 6), Set::Macs)),
        (ARP, ended(probe, Verdict::Accept)),
        (ARP, foreign(field(Base::Network, 14, 4), Set::Ipv4)),
    ]
}

fn ipv4_rules() -> Vec<Rule> {
    let redirect = vec![
        expression::load_protocol(Register::FIRST),
        // IPPROTO_ICMP
        expression::compare(Register::FIRST, Match::Is, &[1]),
        expression::load(field(Base::Transport, 0, 1), Register::FIRST),
        // RFC 792
        expression::compare(Register::FIRST, Match::Is, &[5]),
    ];
    vec![
        (IPV4, foreign(field(Base::Network, 12, 4), Set::Ipv4)),
        // A DHCP server (RFC 2131).
        (IPV4, dropped(from_port(67))),
        (IPV4, dropped(to_tunnel())),
        (IPV4, dropped(redirect)),
    ]
}

/// Frames with the tag of a VLAN that is the container's, and nothing else: a tag 0, or that of the untagged frames' own VLAN,
/// would carry a false address past the other rules.
fn vlan_rules() -> Vec<Rule> {
    vec![(
        TRUNK,
        dropped(vec![
            expression::load_device(Register::FIRST),
            expression::load(field(Base::Link, 14, 2), Register::BEHIND_NAME),
            // Beside the number, there are priority bits.
            expression::and(Register::BEHIND_NAME, &[0x0f, 0xff, 0, 0]),
            expression::lookup(Register::FIRST, Match::IsNot, Set::Tagged.name()),
        ]),
    )]
}

fn ipv6_rules() -> Vec<Rule> {
    let unspecified = |kind: u8| {
        let mut list = vec![
            expression::load(field(Base::Network, 8, 16), Register::FIRST),
            expression::compare(Register::FIRST, Match::Is, &[0; 16]),
        ];
        list.extend(icmp(kind));
        ended(list, Verdict::Accept)
    };
    let mut advertisement = icmp(136);
    // RFC 4861: the target of a neighbour advertisement.
    advertisement.extend(foreign(field(Base::Transport, 8, 16), Set::Ipv6));
    vec![
        // Duplicate address detection: a neighbour solicitation, and a report of multicast groups (RFC 4862, RFC 3810).
        (IPV6, unspecified(135)),
        (IPV6, unspecified(143)),
        (IPV6, foreign(field(Base::Network, 8, 16), Set::Ipv6)),
        // Router advertisement and redirect.
        (IPV6, dropped(icmp(134))),
        (IPV6, dropped(icmp(137))),
        (IPV6, advertisement),
        // A DHCPv6 server (RFC 8415).
        (IPV6, dropped(from_port(547))),
        (IPV6, dropped(to_tunnel())),
    ]
}

fn field(base: Base, offset: u32, length: u32) -> Field {
    Field { base, offset, length }
}

/// Drops what has a value in `field` that is not the port's.
fn foreign(field: Field, set: Set) -> Vec<Attributes> {
    dropped(vec![
        expression::load_device(Register::FIRST),
        expression::load(field, Register::BEHIND_NAME),
        expression::lookup(Register::FIRST, Match::IsNot, set.name()),
    ])
}

fn icmp(kind: u8) -> Vec<Attributes> {
    vec![
        expression::load_protocol(Register::FIRST),
        // IPPROTO_ICMPV6
        expression::compare(Register::FIRST, Match::Is, &[58]),
        expression::load(field(Base::Transport, 0, 1), Register::FIRST),
        expression::compare(Register::FIRST, Match::Is, &[kind]),
    ]
}

fn from_port(number: u16) -> Vec<Attributes> {
    let mut list = udp(0);
    list.push(expression::compare(
        Register::FIRST,
        Match::Is,
        &number.to_be_bytes(),
    ));
    list
}

fn to_tunnel() -> Vec<Attributes> {
    let mut list = udp(2);
    list.push(expression::lookup(Register::FIRST, Match::Is, GUARDED_PORTS));
    list
}

/// Loads a port number of UDP, whose place in the header is `offset`.
fn udp(offset: u32) -> Vec<Attributes> {
    vec![
        expression::load_protocol(Register::FIRST),
        // IPPROTO_UDP
        expression::compare(Register::FIRST, Match::Is, &[17]),
        expression::load(field(Base::Transport, offset, 2), Register::FIRST),
    ]
}

fn dropped(mut list: Vec<Attributes>) -> Vec<Attributes> {
    list.push(expression::counter());
    ended(list, Verdict::Drop)
}

fn ended(mut list: Vec<Attributes>, verdict: Verdict<'_>) -> Vec<Attributes> {
    list.push(expression::verdict(verdict));
    list
}

/// The elements for a port, and for its siblings as far as they change with it.
pub fn elements(port: &Port, siblings: &[Port], scope: Scope) -> Vec<(Set, Vec<Vec<u8>>)> {
    let mut lists: Vec<(Set, Vec<Vec<u8>>)> = Set::ALL.map(|set| (set, Vec::new())).to_vec();
    let mut put = |set: Set, key: Vec<u8>| {
        let list = lists.iter_mut().find(|(one, _)| *one == set);
        list.into_iter().for_each(|(_, keys)| keys.push(key.clone()));
    };
    if scope == Scope::Nothing {
        return Vec::new();
    }
    put(Set::Pods, name_key(&port.name));
    allow(&port.name, port, scope, &mut put);
    if scope == Scope::Mac {
        put(Set::MacOnly, name_key(&port.name));
    }
    for sibling in siblings {
        put(Set::Shared, name_key(&sibling.name));
        allow(&sibling.name, port, scope, &mut put);
        allow(&port.name, sibling, scope, &mut put);
    }
    if scope == Scope::All {
        let number = |id: &u16| key(Set::Tagged, &port.name, &id.to_be_bytes());
        port.tagged.iter().for_each(|id| put(Set::Tagged, number(id)));
    }
    let more = !siblings.is_empty() || (scope == Scope::All && !port.tagged.is_empty());
    if more {
        put(Set::Shared, name_key(&port.name));
    }
    lists.retain(|(_, keys)| !keys.is_empty());
    lists
}

/// Lets the addresses of `whose` in by the port called `name`.
fn allow(name: &str, whose: &Port, scope: Scope, put: &mut dyn FnMut(Set, Vec<u8>)) {
    put(Set::Macs, key(Set::Macs, name, &whose.mac.bytes()));
    if scope == Scope::Mac {
        return;
    }
    for ip in &whose.addresses {
        let set = if ip.is_ipv4() { Set::Ipv4 } else { Set::Ipv6 };
        put(set, key(set, name, &expression::octets(*ip)));
    }
    let link_local = link_local(whose.mac).octets();
    put(Set::Ipv6, key(Set::Ipv6, name, &link_local));
}

/// The link-local address that follows from a hardware address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    let [ab, cf, fd, ef] = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]].map(u16::from_be_bytes);
    Ipv6Addr::new(0xfe80, 0, 0, 0, ab, cf, fd, ef)
}

/// One message a set that has elements.
pub fn change(kind: Kind, elements: &[(Set, Vec<Vec<u8>>)]) -> Vec<Message> {
    let some = elements.iter().filter(|(_, keys)| !keys.is_empty());
    some.map(|(set, keys)| expression::elements(kind, TABLE, set.name(), keys))
        .collect()
}

/// A device name as the kernel compares it.
pub fn name_key(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes
}

fn key(set: Set, name: &str, second: &[u8]) -> Vec<u8> {
    let mut bytes = name_key(name);
    bytes.extend_from_slice(second);
    bytes.resize(NAME + set.second(), 0);
    bytes
}

/// Whether an element is there because of the port called `name` with these addresses.
pub fn concerns(set: Set, element: &[u8], name: &str, mac: Option<Mac>, addresses: &[IpAddr]) -> bool {
    let Some((port, second)) = element.split_at_checked(NAME) else {
        return false;
    };
    let is = |bytes: &[u8]| second.get(..bytes.len()) == Some(bytes);
    let its_address = match set {
        Set::Macs => mac.is_some_and(|mac| is(&mac.bytes())),
        Set::Ipv4 => addresses
            .iter()
            .any(|ip| ip.is_ipv4() && is(&expression::octets(*ip))),
        Set::Ipv6 => {
            addresses
                .iter()
                .any(|ip| ip.is_ipv6() && is(&expression::octets(*ip)))
                || mac.is_some_and(|mac| is(&link_local(mac).octets()))
        }
        Set::Pods | Set::MacOnly | Set::Tagged | Set::Shared => false,
    };
    port == name_key(name) || its_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, last: u8) -> Port {
        Port {
            name: name.to_owned(),
            mac: Mac::new([2, 0, 0, 0, 0, last]),
            addresses: vec![IpAddr::from([10, 1, 17, last]), "fc00::2".parse().unwrap()],
            tagged: Vec::new(),
        }
    }

    fn count(elements: &[(Set, Vec<Vec<u8>>)], wanted: Set) -> usize {
        let list = elements.iter().find(|(set, _)| *set == wanted);
        list.map_or(0, |(_, keys)| keys.len())
    }

    #[test]
    fn a_port_has_an_element_for_each_of_its_addresses() {
        let all = elements(&port("veth0", 2), &[], Scope::All);
        let counts = Set::ALL.map(|set| count(&all, set));
        assert_eq!(counts, [1, 1, 1, 2, 0, 0, 0]);
        let mac = elements(&port("veth0", 2), &[], Scope::Mac);
        assert_eq!(Set::ALL.map(|set| count(&mac, set)), [1, 1, 0, 0, 1, 0, 0]);
        assert!(elements(&port("veth0", 2), &[], Scope::Nothing).is_empty());
    }

    #[test]
    fn siblings_share_their_addresses() {
        let all = elements(&port("veth0", 2), &[port("veth1", 3)], Scope::All);
        // The sibling's own elements are there already.
        assert_eq!(Set::ALL.map(|set| count(&all, set)), [1, 3, 3, 6, 0, 0, 2]);
    }

    #[test]
    fn a_trunk_has_an_element_for_each_vlan() {
        let trunk = Port {
            tagged: vec![5, 260],
            ..port("veth0", 2)
        };
        let all = elements(&trunk, &[], Scope::All);
        assert_eq!(Set::ALL.map(|set| count(&all, set)), [1, 1, 1, 2, 0, 2, 1]);
        let (_, keys) = all.iter().find(|(set, _)| *set == Set::Tagged).unwrap();
        assert_eq!(&keys[1][16..], [1, 4, 0, 0]);
        assert!(concerns(Set::Tagged, &keys[0], "veth0", None, &[]));
    }

    #[test]
    fn what_a_port_left_is_known_again() {
        let (own, other) = (port("veth0", 2), port("veth1", 3));
        for (set, keys) in elements(&own, std::slice::from_ref(&other), Scope::All) {
            let ours = |key: &&Vec<u8>| concerns(set, key, "veth0", Some(own.mac), &own.addresses[..1]);
            let left: Vec<_> = keys.iter().filter(|key| !ours(key)).collect();
            assert_eq!(
                left.len(),
                usize::from(set == Set::Shared) + usize::from(set == Set::Ipv6),
                "{set:?}"
            );
        }
        assert!(!concerns(Set::Macs, b"short", "veth0", Some(own.mac), &[]));
    }

    #[test]
    fn keys_are_padded_as_the_kernel_pads_them() {
        assert_eq!(key(Set::Macs, "veth0", &[1; 6]).len(), 24);
        assert_eq!(key(Set::Ipv4, "veth0", &[1; 4]).len(), 20);
        assert_eq!(&name_key("veth0")[..6], b"veth0\0");
    }

    #[test]
    fn link_local_addresses_follow_from_the_hardware_address() {
        let mac = Mac::new([0x02, 0x42, 0xac, 0x11, 0, 2]);
        assert_eq!(link_local(mac).to_string(), "fe80::42:acff:fe11:2");
    }
}
