//! What kube-proxy left on a node whose Services flanneld programs now: its rules would go on translating packets, to endpoints of
//! the day on which it ended.

use std::collections::{BTreeMap, BTreeSet};

use flannel_model::IpFamily;
use flannel_netlink::nftables::{Family, chains};
use flannel_netlink::{NetlinkError, RouteConn, address, ipset, link};

use super::legacy_iptables::{self, Legacy};
use crate::findings::{Finding, some};
use crate::output::with_causes;

const CHECK: &str = "kube-proxy";
/// Tables that flanneld programs Services in.
const OURS: [&str; 2] = ["flannel-services", "flannel-services-nat"];
/// The table of kube-proxy's nftables mode.
const TABLE: &str = "kube-proxy";
/// Its device for addresses of Services in IPVS mode.
const DEVICE: &str = "kube-ipvs0";
/// Begins the names of its chains and sets.
const PREFIX: &str = "KUBE-";
/// The kubelet's own chains, which begin so as well.
const OF_KUBELET: [&str; 3] = ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL"];

/// What is on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    /// Whether flanneld programs Services here.
    ours: bool,
    /// Tables with chains of kube-proxy, as `ip nat`, each with how many it has.
    chains: Vec<(String, usize)>,
    /// Tables of its nftables mode, as `ip kube-proxy`.
    tables: Vec<String>,
    /// How many addresses its device has.
    device: Option<usize>,
    /// How many sets it has.
    sets: usize,
    /// What stands in the tables of iptables' former interface.
    legacy: Vec<Legacy>,
}

/// Looks at this node; nothing to tell where flanneld does not program Services.
pub fn finding() -> Option<Finding> {
    match look() {
        Ok(seen) => judge(&seen),
        Err(error) => {
            let text = format!("the kernel cannot be asked: {}", with_causes(&error));
            Some(Finding::warning(
                CHECK,
                text,
                "run this on the node itself, as root",
            ))
        }
    }
}

fn look() -> Result<Seen, NetlinkError> {
    let mut seen = Seen::default();
    for (family, word) in [(Family::Ipv4, "ip"), (Family::Ipv6, "ip6")] {
        let mut counts = BTreeMap::<String, usize>::new();
        let mut tables = BTreeSet::new();
        for (table, chain) in chains(family)? {
            seen.ours |= OURS.contains(&table.as_str());
            if table == TABLE {
                tables.insert(format!("{word} {table}"));
            } else if is_theirs(&chain) {
                *counts.entry(format!("{word} {table}")).or_default() += 1;
            }
        }
        seen.chains.extend(counts);
        seen.tables.extend(tables);
    }
    let mut conn = RouteConn::open()?;
    if let Some(device) = link::by_name(&mut conn, DEVICE)? {
        let mut addresses = 0;
        for family in [IpFamily::V4, IpFamily::V6] {
            addresses += address::dump(&mut conn, family, Some(device.ifindex))?.len();
        }
        seen.device = Some(addresses);
    }
    let names = ipset::names()?;
    seen.sets = names.iter().filter(|name| name.starts_with(PREFIX)).count();
    if seen.ours {
        seen.legacy = legacy_iptables::look(is_theirs);
    }
    Ok(seen)
}

fn is_theirs(chain: &str) -> bool {
    chain.starts_with(PREFIX) && !OF_KUBELET.contains(&chain)
}

fn judge(seen: &Seen) -> Option<Finding> {
    if !seen.ours {
        return None;
    }
    let (mut found, mut fixes) = (Vec::new(), Vec::new());
    if let Some(addresses) = seen.device {
        found.push(format!("device {DEVICE} with {addresses} addresses"));
        fixes.push(format!("ip link delete {DEVICE}"));
    }
    for table in &seen.tables {
        found.push(format!("table {table}"));
        fixes.push(format!("nft delete table {table}"));
    }
    for (table, count) in &seen.chains {
        found.push(format!("{count} chains in table {table}"));
    }
    for (family, save) in [("ip ", "iptables"), ("ip6 ", "ip6tables")] {
        if seen.chains.iter().any(|(table, _)| table.starts_with(family)) {
            fixes.push(format!("{save}-save | grep -v KUBE- | {save}-restore"));
        }
    }
    for legacy in &seen.legacy {
        judge_legacy(legacy, &mut found, &mut fixes);
    }
    if seen.sets > 0 {
        found.push(format!("{} ipsets", seen.sets));
        fixes.push("ipset list -n | grep ^KUBE- | xargs -n1 ipset destroy".to_owned());
    }
    if found.is_empty() {
        return Some(Finding::ok(CHECK, "nothing of kube-proxy is left on this node"));
    }
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    let text = format!(
        "flanneld programs Services here, and kube-proxy left or still writes: {}",
        some(&found)
    );
    let fix = format!("keep kube-proxy off this node, then: {}", fixes.join("; "));
    Some(Finding::warning(CHECK, text, &fix))
}

/// Their rules act beside those of nftables, which `nft` does not show.
fn judge_legacy(legacy: &Legacy, found: &mut Vec<String>, fixes: &mut Vec<String>) {
    let family = legacy.family;
    for (table, count) in &legacy.chains {
        found.push(format!("{count} chains in table {table} of the former {family}"));
    }
    if let (Some(program), false) = (&legacy.program, legacy.chains.is_empty()) {
        fixes.push(format!("{program}-save | grep -v KUBE- | {program}-restore"));
    }
    if !legacy.unread.is_empty() {
        let tables = legacy.unread.join(", ");
        found.push(format!(
            "perhaps chains in the tables {tables} of the former {family}, which no program here can show"
        ));
        fixes.push(format!("look with {family}-legacy-save (package iptables)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_left_is_named_with_the_command_that_removes_it() {
        let seen = Seen {
            ours: true,
            chains: vec![("ip nat".to_owned(), 7), ("ip6 filter".to_owned(), 2)],
            tables: vec!["ip kube-proxy".to_owned()],
            device: Some(3),
            sets: 12,
            legacy: Vec::new(),
        };
        let finding = judge(&seen).unwrap();
        for part in [
            "device kube-ipvs0 with 3 addresses",
            "7 chains in table ip nat",
            "12 ipsets",
        ] {
            assert!(finding.text.contains(part), "{part}: {}", finding.text);
        }
        let fix = finding.fix.unwrap();
        for part in [
            "ip link delete kube-ipvs0",
            "nft delete table ip kube-proxy",
            "iptables-save | grep -v KUBE- | iptables-restore",
            "ip6tables-save",
            "ipset destroy",
        ] {
            assert!(fix.contains(part), "{part}: {fix}");
        }
    }

    #[test]
    fn chains_of_the_former_iptables_are_named_also_where_no_program_shows_them() {
        let seen = Seen {
            ours: true,
            legacy: vec![
                Legacy {
                    family: "iptables",
                    program: Some("iptables-legacy".to_owned()),
                    chains: [("nat".to_owned(), 5)].into(),
                    unread: Vec::new(),
                },
                Legacy {
                    family: "ip6tables",
                    unread: vec!["filter".to_owned()],
                    ..Legacy::default()
                },
            ],
            ..Seen::default()
        };
        let finding = judge(&seen).unwrap();
        for part in [
            "5 chains in table nat of the former iptables",
            "perhaps chains in the tables filter of the former ip6tables",
        ] {
            assert!(finding.text.contains(part), "{part}: {}", finding.text);
        }
        let fix = finding.fix.unwrap();
        for part in [
            "iptables-legacy-save | grep -v KUBE- | iptables-legacy-restore",
            "look with ip6tables-legacy-save",
        ] {
            assert!(fix.contains(part), "{part}: {fix}");
        }
    }

    #[test]
    fn kube_proxy_is_no_fault_where_it_has_the_services() {
        let theirs = Seen {
            device: Some(3),
            ..Seen::default()
        };
        assert_eq!(judge(&theirs), None);
        let ours = Seen {
            ours: true,
            ..Seen::default()
        };
        assert!(judge(&ours).unwrap().fix.is_none());
    }
}
