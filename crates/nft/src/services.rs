//! The tables that stand around IPVS: they guard virtual addresses, tell traffic from outside from that of pods, and see to it that
//! answers come back. One table a family; rules do not grow with the number of Services, only sets do.

mod element;

use std::collections::BTreeSet;
use std::net::IpAddr;

use flannel_model::IpSubnet;

pub use element::{Element, ElementBytes, NODE_SERVERS, read_node_server};

use crate::masquerade::masquerade_statements;
use crate::table::{Family, Table, TableName};

/// IPVS takes its packets in hook input at priorities 98 and 99 (net/netfilter/ipvs/ip_vs_core.c: NF_IP_PRI_NAT_SRC − 2 and − 1):
/// what comes by later belongs to no virtual server.
const BEHIND_IPVS: u8 = 101;
/// Before IPVS in hook input.
const BEFORE_IPVS: u8 = 80;

/// Marks that packets carry from our first chain to our last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceMarks {
    /// Packets whose source address is kept have this in the bits of `mask`.
    pub keep_source: u32,
    /// Packets to be masqueraded.
    pub masquerade: u32,
    /// The bits that tell them from marks of others.
    pub mask: u32,
}

impl ServiceMarks {
    /// A match on one of the two.
    fn matching(&self, mark: u32) -> String {
        format!("meta mark & {:#010x} == {mark:#010x}", self.mask)
    }
}

/// What the table of one family is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicesTable {
    /// Which family; addresses of the other are left out everywhere.
    pub ipv4: bool,
    /// The service CIDRs, none inside another.
    pub cidrs: Vec<IpSubnet>,
    /// The pod networks of the cluster.
    pub networks: Vec<IpSubnet>,
    /// Addresses of the node that answer on node ports.
    pub node_addresses: BTreeSet<IpAddr>,
    /// How the table and IPVS tell packets from each other.
    pub marks: ServiceMarks,
    /// What changes with Services.
    pub elements: BTreeSet<Element>,
    /// Whether source ports are chosen at random.
    pub fully_random: bool,
}

/// The table of this family.
pub fn services_table_name(ipv4: bool) -> TableName {
    if ipv4 {
        TableName::SERVICES
    } else {
        TableName::SERVICES_V6
    }
}

/// Renders the table `flannel-services` of one family.
///
/// All virtual addresses are local to the node, so without the guard every port of the host would answer on each of them.
pub fn services_table(input: &ServicesTable) -> Table {
    let words = Words::of(input.ipv4);
    let chains = [
        marking(input, &words),
        unmark(input),
        restrict(&words),
        guard(&words),
        postrouting(input, &words),
    ];
    Table::new(
        services_table_name(input.ipv4),
        [sets(input, &words), chains.concat()].concat(),
    )
}

/// What a family calls things.
struct Words {
    /// Its header, as in `ip daddr`.
    ip: &'static str,
    /// Its type of address.
    address: &'static str,
    /// The header's own field for the protocol. For sets of ranges nft turns `meta l4proto` into network byte order, which newer kernels
    /// refuse for its single byte (seen on 7.3, not on 6.18). Behind extension headers of IPv6 the field names another protocol: nobody is let in then.
    protocol: &'static str,
    /// How it says that nobody listens.
    refuse: &'static str,
}

impl Words {
    fn of(ipv4: bool) -> Self {
        match if ipv4 { Family::Ip } else { Family::Ip6 } {
            Family::Ip => Self {
                ip: "ip",
                address: "ipv4_addr",
                protocol: "ip protocol",
                refuse: "icmp type port-unreachable",
            },
            Family::Ip6 => Self {
                ip: "ip6",
                address: "ipv6_addr",
                protocol: "ip6 nexthdr",
                refuse: "icmpv6 type port-unreachable",
            },
        }
    }
}

fn sets(input: &ServicesTable, words: &Words) -> String {
    let ranges = |list: &[IpSubnet]| -> Vec<String> {
        let of_family = list.iter().filter(|r| r.is_ipv4() == input.ipv4);
        of_family.map(ToString::to_string).collect()
    };
    let nodes = input
        .node_addresses
        .iter()
        .filter(|ip| ip.is_ipv4() == input.ipv4);
    let nodes: Vec<String> = nodes.map(ToString::to_string).collect();
    let address = words.address;
    let mut text = set(
        "set",
        "cidrs",
        &format!("{address}; flags interval"),
        &ranges(&input.cidrs),
    );
    text += &set(
        "set",
        "pods",
        &format!("{address}; flags interval"),
        &ranges(&input.networks),
    );
    text += &set("set", "node_addresses", address, &nodes);
    for name in element::SETS {
        let elements: Vec<String> = input
            .elements
            .iter()
            .filter(|e| e.set() == name && e.is_of(input.ipv4))
            .map(Element::text)
            .collect();
        let (keyword, kind) = element::declaration(name, address);
        text += &set(keyword, name, &kind, &elements);
    }
    text
}

fn set(keyword: &str, name: &str, kind: &str, elements: &[String]) -> String {
    // An empty list is no syntax of nft.
    let elements = if elements.is_empty() {
        String::new()
    } else {
        format!("    elements = {{ {} }}\n", elements.join(", "))
    };
    format!("  {keyword} {name} {{\n    type {kind};\n{elements}  }}\n")
}

/// Packets from outside get the mark of their frontend where its endpoints see who asks. Packets to node ports otherwise get the mark
/// for masquerading: behind IPVS their port cannot be asked for any more.
fn marking(input: &ServicesTable, words: &Words) -> String {
    let (ip, marks) = (words.ip, input.marks);
    let node_port = format!(
        "    {ip} daddr @node_addresses meta l4proto . th dport @node_ports meta mark set {:#010x}\n",
        marks.masquerade
    );
    [
        "  chain prerouting {\n    type filter hook prerouting priority mangle; policy accept;\n".to_owned(),
        format!("    {ip} saddr @pods accept\n"),
        node_port.clone(),
        format!("    meta mark set {ip} daddr . meta l4proto . th dport map @marks\n"),
        format!(
            "    {ip} daddr @node_addresses meta mark set meta l4proto . th dport map @node_port_marks\n"
        ),
        "  }\n  chain output {\n    type filter hook output priority mangle; policy accept;\n".to_owned(),
        node_port,
        "  }\n".to_owned(),
    ]
    .concat()
}

/// The marks have done their duty then.
fn unmark(input: &ServicesTable) -> String {
    let marks = input.marks;
    let rule = |mark| format!("    {} meta mark set 0\n", marks.matching(mark));
    let (keep, masquerade) = (rule(marks.keep_source), rule(marks.masquerade));
    format!(
        "  chain unmark {{\n    type filter hook postrouting priority srcnat + 10; policy accept;\n{keep}{masquerade}  }}\n"
    )
}

/// Addresses of load balancers with source ranges. What the host itself sends is seen in hook output, before IPVS there. Then TCP to
/// frontends that nobody answers: IPVS itself would refuse it by ICMP, of which the kernel sends a client one a second once six were
/// sent (icmp_ratelimit); of resets it sends as many as there are questions.
fn restrict(words: &Words) -> String {
    let (ip, protocol) = (words.ip, words.protocol);
    let rule = format!(
        "    {ip} daddr . meta l4proto . th dport @restricted {ip} daddr . {protocol} . th dport . {ip} saddr != @allowed drop\n    {ip} daddr . meta l4proto . th dport @unserved meta l4proto tcp reject with tcp reset\n"
    );
    format!(
        "  chain restrict {{\n    type filter hook input priority {BEFORE_IPVS}; policy accept;\n{rule}  }}\n  chain restrict_own {{\n    type filter hook output priority mangle; policy accept;\n{rule}  }}\n"
    )
}

fn guard(words: &Words) -> String {
    let (ip, refuse) = (words.ip, words.refuse);
    let mut text =
        format!("  chain guard {{\n    type filter hook input priority {BEHIND_IPVS}; policy accept;\n");
    for set in ["cidrs", "external"] {
        text += &format!("    {ip} daddr @{set} meta l4proto tcp reject with tcp reset\n");
        text += &format!("    {ip} daddr @{set} reject with {refuse}\n");
    }
    text + "  }\n"
}

fn postrouting(input: &ServicesTable, words: &Words) -> String {
    let ip = words.ip;
    let masquerade = |whom: &str| -> String {
        let statements = masquerade_statements(input.fully_random).iter();
        statements
            .map(|statement| format!("    {whom} {statement}\n"))
            .collect()
    };
    let to = format!("ct original {ip} daddr");
    let mut text =
        "  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n".to_owned();
    // a pod that reaches itself would otherwise get an answer from its own address
    text += &masquerade(&format!("{ip} saddr . {ip} daddr @hairpin"));
    // real servers of this node that see who asks: the answer comes by here anyway
    let marks = input.marks;
    text += &format!("    {} accept\n", marks.matching(marks.keep_source));
    // host or outside through a virtual server: the answer must come back through this node to be translated
    for set in ["cidrs", "external"] {
        text += &masquerade(&format!("{to} @{set} {ip} saddr != @pods"));
    }
    let node_port = marks.matching(marks.masquerade);
    text += &masquerade(&format!("{node_port} {ip} saddr != @pods"));
    text + "  }\n"
}

#[cfg(test)]
mod tests {
    use flannel_model::{ServiceProtocol, VirtualAddress};

    use super::*;

    fn at(address: &str) -> VirtualAddress {
        VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: address.parse().unwrap(),
            port: 443,
        }
    }

    fn input(ipv4: bool) -> ServicesTable {
        ServicesTable {
            ipv4,
            cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
            networks: vec!["10.5.0.0/16".parse().unwrap()],
            node_addresses: ["192.0.2.1".parse().unwrap()].into(),
            marks: ServiceMarks {
                keep_source: 0xf100_0000,
                masquerade: 0xf200_0000,
                mask: 0xff00_0000,
            },
            elements: [
                Element::Hairpin("10.5.1.2".parse().unwrap()),
                Element::External("203.0.113.8".parse().unwrap()),
                Element::Mark(at("203.0.113.8"), 0xf180_0001),
                Element::Restricted(at("203.0.113.8")),
                Element::Allowed(at("203.0.113.8"), "198.51.100.0/24".parse().unwrap()),
                Element::NodePort(true, ServiceProtocol::Udp, 30053),
                Element::NodePortMark(true, ServiceProtocol::Sctp, 30080, 0xf100_7580),
            ]
            .into(),
            fully_random: true,
        }
    }

    #[test]
    fn sets_hold_what_varies_each_in_its_family() {
        let four = services_table(&input(true)).transaction();
        for part in [
            "table ip flannel-services",
            "elements = { 10.96.0.0/16 }",
            "elements = { 10.5.1.2 . 10.5.1.2 }",
            "elements = { 203.0.113.8 . tcp . 443 : 0xf1800001 }",
            "elements = { 203.0.113.8 . tcp . 443 . 198.51.100.0/24 }",
            "elements = { udp . 30053 }",
            "elements = { sctp . 30080 : 0xf1007580 }",
            "hook input priority 101;",
            "ip daddr @cidrs meta l4proto tcp reject with tcp reset",
            "ct original ip daddr @cidrs ip saddr != @pods masquerade fully-random",
        ] {
            assert!(four.contains(part), "{part}\n{four}");
        }
        let six = services_table(&input(false)).transaction();
        assert!(six.contains("table ip6 flannel-services") && six.contains("elements = { fd00:96::/112 }"));
        assert_eq!(six.matches("elements = ").count(), 1, "{six}");
        assert!(six.contains("icmpv6 type port-unreachable"));
    }
}
