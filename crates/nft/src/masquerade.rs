//! The table that lets pods reach what lies outside the pod network, and forwards for them.

use flannel_model::IpSubnet;

use crate::table::{Table, TableName};

/// Packets with this bit were marked for masquerading by kube-proxy and are left to it. It is one bit of many in the mark,
/// so it is compared under itself as a mask, as flannel's iptables mode does.
const KUBE_MARK: &str = "0x4000";
/// Multicast (RFC 5771, RFC 4291): a group does not answer to a translated source.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// What the table of one family is made from. Both ranges are of that family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasqueradeTable {
    /// The pod network of the cluster.
    pub network: IpSubnet,
    /// The pods of this node.
    pub subnet: IpSubnet,
    /// Whether packets are masqueraded at all.
    pub masquerade: bool,
    /// Destinations outside the network that see the addresses of pods; those of the other family are passed over.
    pub exempt: Vec<IpSubnet>,
    /// Whether source ports are chosen at random, which lowers the odds of two connections colliding.
    pub fully_random: bool,
    /// Whether packets from and to the pod network are accepted on their way through this node. Another table may still drop
    /// them: an accept ends only its own chain.
    pub accept_forward: bool,
}

/// What ends a rule whose packets may go on to a pod: by protocol, the rest last. A random port of UDP is none of those below 10,000,
/// among which are those of tunnels (8472, 8285): no pod may send to these, so its answers would be lost, one flow in 30,000.
pub(crate) fn masquerade_statements(fully_random: bool) -> &'static [&'static str] {
    match fully_random {
        true => &[
            "meta l4proto udp masquerade to :10000-65535 fully-random",
            "masquerade fully-random",
        ],
        false => &["masquerade"],
    }
}

/// Renders the table `ip flannel-ipv4` or `ip6 flannel-ipv6`: the rules of flannel's iptables mode, in their order.
pub fn masquerade_table(input: &MasqueradeTable) -> Table {
    let mut body = String::new();
    if input.masquerade {
        body.push_str(&postrouting(input));
    }
    if input.accept_forward {
        body.push_str(&forward(input));
    }
    let name = match input.network {
        IpSubnet::V4(_) => TableName::MASQUERADE,
        IpSubnet::V6(_) => TableName::MASQUERADE_V6,
    };
    Table::new(name, body)
}

fn postrouting(input: &MasqueradeTable) -> String {
    let MasqueradeTable { network, subnet, .. } = input;
    let (ip, multicast) = of_family(network);
    let masquerade = if input.fully_random {
        "masquerade fully-random"
    } else {
        "masquerade"
    };
    let exempt = input
        .exempt
        .iter()
        .filter(|range| range.is_ipv4() == network.is_ipv4());
    let exempt = exempt.map(|range| format!("    {ip} saddr {network} {ip} daddr {range} return\n"));
    [
        "  chain postrtg {\n".to_owned(),
        "    type nat hook postrouting priority srcnat; policy accept;\n".to_owned(),
        format!("    meta mark & {KUBE_MARK} == {KUBE_MARK} return\n"),
        format!("    {ip} saddr {subnet} {ip} daddr {network} return\n"),
        format!("    {ip} saddr {network} {ip} daddr {subnet} return\n"),
        // outside to a local pod: the pod sees who calls
        format!("    {ip} saddr != {network} {ip} daddr {subnet} return\n"),
        exempt.collect(),
        format!("    {ip} saddr {network} {ip} daddr != {multicast} {masquerade}\n"),
        // host or outside to a pod elsewhere: the answer must come back through this node
        masquerade_statements(input.fully_random)
            .iter()
            .map(|masquerade| format!("    {ip} saddr != {network} {ip} daddr {network} {masquerade}\n"))
            .collect(),
        "  }\n".to_owned(),
    ]
    .concat()
}

fn forward(input: &MasqueradeTable) -> String {
    let network = input.network;
    let (ip, _) = of_family(&network);
    format!(
        "  chain forward {{\n    type filter hook forward priority filter; policy accept;\n    {ip} saddr {network} accept\n    {ip} daddr {network} accept\n  }}\n"
    )
}

/// How rules name addresses of the family, and its multicast range.
fn of_family(network: &IpSubnet) -> (&'static str, &'static str) {
    match network {
        IpSubnet::V4(_) => ("ip", MULTICAST[0]),
        IpSubnet::V6(_) => ("ip6", MULTICAST[1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> MasqueradeTable {
        MasqueradeTable {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            masquerade: true,
            exempt: Vec::new(),
            fully_random: true,
            accept_forward: true,
        }
    }

    #[test]
    fn rules_and_their_order_are_those_of_iptables_mode() {
        let text = masquerade_table(&input()).transaction();
        let rules: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("ip ") || l.starts_with("meta"))
            .collect();
        assert_eq!(
            rules,
            [
                "meta mark & 0x4000 == 0x4000 return",
                "ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return",
                "ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
                "ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
                "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
                "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 meta l4proto udp masquerade to :10000-65535 fully-random",
                "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
                "ip saddr 10.5.0.0/16 accept",
                "ip daddr 10.5.0.0/16 accept",
            ]
        );
        assert!(
            text.starts_with(
                "add table ip flannel-ipv4\ndelete table ip flannel-ipv4\ntable ip flannel-ipv4 {"
            )
        );
    }

    #[test]
    fn ipv6_has_the_same_rules_in_a_table_of_its_own() {
        let input = MasqueradeTable {
            network: "fd00:5::/48".parse().unwrap(),
            subnet: "fd00:5:0:1::/64".parse().unwrap(),
            ..input()
        };
        let text = masquerade_table(&input).transaction();
        assert!(text.starts_with("add table ip6 flannel-ipv6\n"), "{text}");
        assert!(!text.contains("ip saddr") && !text.contains("ip daddr"), "{text}");
        for rule in [
            "ip6 saddr != fd00:5::/48 ip6 daddr fd00:5:0:1::/64 return",
            "ip6 saddr fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random",
            "ip6 daddr fd00:5::/48 accept",
        ] {
            assert!(text.contains(rule), "{rule}\n{text}");
        }
    }

    #[test]
    fn exempt_destinations_come_before_what_masquerades() {
        let input = MasqueradeTable {
            exempt: vec!["192.168.0.0/16".parse().unwrap(), "fd00:9::/48".parse().unwrap()],
            ..input()
        };
        let text = masquerade_table(&input).transaction();
        let exempt = text.find("ip saddr 10.5.0.0/16 ip daddr 192.168.0.0/16 return");
        assert!(
            exempt.is_some() && exempt < text.find("masquerade fully-random"),
            "{text}"
        );
        assert!(!text.contains("fd00:9::"), "a range of the other family: {text}");
    }

    #[test]
    fn each_flag_takes_its_part_away() {
        let plain = masquerade_table(&MasqueradeTable {
            fully_random: false,
            accept_forward: false,
            ..input()
        });
        let text = plain.transaction();
        assert!(!text.contains("random") && !text.contains("forward") && text.contains("masquerade\n"));
        let forward = masquerade_table(&MasqueradeTable {
            masquerade: false,
            ..input()
        })
        .transaction();
        assert!(!forward.contains("masquerade") && forward.contains("hook forward"));
    }
}
