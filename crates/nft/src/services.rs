//! The table that guards the virtual addresses of Services and sees to it that answers come back.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use flannel_model::Ipv4Subnet;

use crate::table::{Table, TableName};

/// IPVS takes its packets in hook input at priorities 98 and 99 (net/netfilter/ipvs/ip_vs_core.c: NF_IP_PRI_NAT_SRC − 2 and − 1):
/// what comes by later belongs to no virtual server.
const BEHIND_IPVS: u8 = 101;

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicesTable {
    /// The service CIDRs, none inside another.
    pub cidrs: Vec<Ipv4Subnet>,
    /// The pod network of the cluster.
    pub network: Ipv4Subnet,
    /// Pods of this node that are real servers.
    pub local_endpoints: BTreeSet<Ipv4Addr>,
    /// Whether source ports are chosen at random.
    pub fully_random: bool,
}

/// Renders the table `ip flannel-services`.
///
/// The whole range of virtual addresses is local to the node, so without the guard every port of the host would answer on
/// each of them.
pub fn services_table(input: &ServicesTable) -> Table {
    Table::new(
        TableName::SERVICES,
        [sets(input), guard(), postrouting(input)].concat(),
    )
}

fn sets(input: &ServicesTable) -> String {
    let cidrs: Vec<String> = input.cidrs.iter().map(ToString::to_string).collect();
    let pods: Vec<String> = input
        .local_endpoints
        .iter()
        .map(|ip| format!("{ip} . {ip}"))
        .collect();
    [
        "  set cidrs {\n    type ipv4_addr\n    flags interval\n".to_owned(),
        elements(&cidrs),
        "  }\n  set hairpin {\n    type ipv4_addr . ipv4_addr\n".to_owned(),
        elements(&pods),
        "  }\n".to_owned(),
    ]
    .concat()
}

/// An empty list is no syntax of nft.
fn elements(list: &[String]) -> String {
    if list.is_empty() {
        String::new()
    } else {
        format!("    elements = {{ {} }}\n", list.join(", "))
    }
}

fn guard() -> String {
    format!(
        "  chain guard {{\n    type filter hook input priority {BEHIND_IPVS}; policy accept;\n    ip daddr @cidrs meta l4proto tcp reject with tcp reset\n    ip daddr @cidrs reject with icmp type port-unreachable\n  }}\n"
    )
}

fn postrouting(input: &ServicesTable) -> String {
    let network = input.network;
    let masquerade = if input.fully_random {
        "masquerade fully-random"
    } else {
        "masquerade"
    };
    [
        "  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n".to_owned(),
        // host or outside through a virtual server: the answer must come back through this node to be translated
        format!("    ct original ip daddr @cidrs ip saddr != {network} {masquerade}\n"),
        // a pod that reaches itself would otherwise get an answer from its own address
        format!("    ct original ip daddr @cidrs ip saddr . ip daddr @hairpin {masquerade}\n"),
        "  }\n".to_owned(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_stands_behind_ipvs_and_sets_hold_what_varies() {
        let text = services_table(&ServicesTable {
            cidrs: vec!["10.96.0.0/16".parse().unwrap(), "10.98.0.0/24".parse().unwrap()],
            network: "10.5.0.0/16".parse().unwrap(),
            local_endpoints: BTreeSet::from([Ipv4Addr::new(10, 5, 1, 2), Ipv4Addr::new(10, 5, 1, 3)]),
            fully_random: true,
        })
        .transaction();
        for part in [
            "elements = { 10.96.0.0/16, 10.98.0.0/24 }",
            "elements = { 10.5.1.2 . 10.5.1.2, 10.5.1.3 . 10.5.1.3 }",
            "hook input priority 101;",
            "ip daddr @cidrs meta l4proto tcp reject with tcp reset",
            "ct original ip daddr @cidrs ip saddr != 10.5.0.0/16 masquerade fully-random",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn an_empty_set_has_no_elements() {
        let network = "10.5.0.0/16".parse().unwrap();
        let cidrs = vec!["10.96.0.0/16".parse().unwrap()];
        let input = ServicesTable {
            cidrs,
            network,
            local_endpoints: BTreeSet::new(),
            fully_random: false,
        };
        let text = services_table(&input).transaction();
        assert_eq!(text.matches("elements").count(), 1);
        assert!(!text.contains("random"));
    }
}
