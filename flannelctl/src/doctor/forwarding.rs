//! Whether the packet filters of others (docker, firewalld, an operator) let packets of pods pass: a chain of ours that accepts does not
//! keep another one from dropping.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_model::{IpFamily, IpSubnet};
use flannel_netlink::nftables::ruleset;
use flannel_netlink::route::Route;
use flannel_plan::packet_filter::{Fate, Hook, Met, Packet, Ruleset, met};
use flannel_plan::{DesiredOverlay, Out};

use crate::findings::{Finding, some};
use crate::node::{Expected, Seen};
use crate::output::with_causes;

const CHECK: &str = "forwarding";

/// Looks at the packet filter of each family.
pub fn findings(expected: &Expected, seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    for overlay in &expected.overlays {
        match ruleset(overlay.family()) {
            Ok(ruleset) => found.extend(judge(&ruleset, overlay, seen)),
            Err(error) => {
                let text = format!("the packet filter cannot be looked at: {}", with_causes(&error));
                found.push(Finding::warning(
                    CHECK,
                    text,
                    "run this as root, on the node itself",
                ));
            }
        }
    }
    found.extend(legacy());
    if found.is_empty() {
        found.push(Finding::ok(
            CHECK,
            "no chain drops what pods send by way of this node",
        ));
    }
    found
}

/// The rules of iptables-legacy cannot be followed, but its policy can be read where its tables are.
fn legacy() -> Option<Finding> {
    let tables = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    tables.lines().any(|table| table == "filter").then(|| {
        Finding::warning(
            CHECK,
            "there are rules of iptables-legacy, which are not looked at here",
            "look yourself whether they drop packets of pods: iptables-legacy -S FORWARD",
        )
    })
}

fn judge(ruleset: &Ruleset, overlay: &DesiredOverlay, seen: &Seen) -> Vec<Finding> {
    let mut findings: Vec<(Met, Vec<&str>)> = Vec::new();
    for (what, packet) in packets(overlay, seen) {
        for met in met(ruleset, Hook::Forward, &packet) {
            if met.fate != Fate::Drops {
                continue;
            }
            match findings
                .iter_mut()
                .find(|(known, _)| (&known.table, &known.chain) == (&met.table, &met.chain))
            {
                Some((_, whats)) => whats.push(what),
                None => findings.push((met, vec![what])),
            }
        }
    }
    let network = overlay.network;
    findings
        .iter()
        .map(|(met, whats)| finding(met, whats, &network))
        .collect()
}

fn finding(met: &Met, whats: &[&str], network: &IpSubnet) -> Finding {
    let Met {
        table,
        chain,
        by,
        unless,
        ..
    } = met;
    let text = format!(
        "chain {chain} of table {table} drops, by {by}, packets {}",
        whats.join(", ")
    );
    let fix = remedy(table, chain, network);
    match met.is_certain() {
        true => Finding::error(CHECK, text, &fix),
        false => {
            let text = format!("{text}, unless one of these lets them pass: {}", some(unless));
            Finding::warning(CHECK, text, &fix)
        }
    }
}

/// What an operator does about it, by whose the table is.
fn remedy(table: &str, chain: &str, network: &IpSubnet) -> String {
    let (iptables, ip) = match network {
        IpSubnet::V4(_) => ("iptables", "ip"),
        IpSubnet::V6(_) => ("ip6tables", "ip6"),
    };
    if table == "inet firewalld" {
        return format!(
            "tell firewalld that pods are trusted: firewall-cmd --permanent --zone=trusted --add-source={network} && firewall-cmd --reload"
        );
    }
    if matches!(table, "ip filter" | "ip6 filter") {
        return format!(
            "docker sets this policy: {iptables} -I DOCKER-USER -s {network} -j ACCEPT; {iptables} -I DOCKER-USER -d {network} -j ACCEPT \
             (without docker, {chain} in place of DOCKER-USER)"
        );
    }
    format!(
        "accept them there: nft insert rule {table} {chain} {ip} saddr {network} accept; nft insert rule {table} {chain} {ip} daddr {network} accept"
    )
}

/// What pods send by way of this node, in words and as packets.
fn packets(overlay: &DesiredOverlay, seen: &Seen) -> Vec<(&'static str, Packet)> {
    let here = second(&overlay.own_subnet);
    let pods = device_by(seen, |route| route.destination == overlay.own_subnet);
    let family = overlay.family();
    let default = device_by(seen, |route| {
        route.destination.length() == 0 && IpFamily::of(route.destination.network()) == family
    });
    let outside: IpAddr = match overlay.family() {
        IpFamily::V4 => Ipv4Addr::new(198, 51, 100, 1).into(),
        IpFamily::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let packet = |source, input: &Option<String>, destination, output: &Option<String>| Packet {
        source,
        destination,
        input: input.clone(),
        output: output.clone(),
    };
    let mut all = vec![(
        "from pods here to the outside",
        packet(here, &pods, outside, &default),
    )];
    if let Some((subnet, way)) = overlay.routes.iter().next() {
        let there = if subnet.contains(&overlay.own_subnet) {
            subnet.network()
        } else {
            second(subnet)
        };
        let between = match way.out {
            Out::Tunnel => overlay.device().map(|device| device.to_string()),
            Out::Interface(index) => Some(seen.name(index)),
        };
        all.insert(
            0,
            (
                "from pods here to pods of other nodes",
                packet(here, &pods, there, &between),
            ),
        );
        all.insert(
            1,
            (
                "from pods of other nodes to pods here",
                packet(there, &between, here, &pods),
            ),
        );
    }
    all
}

/// An address that a pod of the subnet may have.
pub fn second(subnet: &IpSubnet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).saturating_add(2)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).saturating_add(2)).into(),
    }
}

/// The device of the first of these routes, if there is one.
fn device_by(seen: &Seen, wanted: impl Fn(&Route) -> bool) -> Option<String> {
    let routes = seen.routes.iter().filter(|route| wanted(route));
    let first = routes.min_by_key(|route| route.metric)?;
    Some(seen.name(first.ifindex?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Level;

    fn met_by(table: &str, unless: &[&str]) -> Met {
        Met {
            table: table.to_owned(),
            chain: "FORWARD".to_owned(),
            priority: 0,
            fate: Fate::Drops,
            by: "its policy".to_owned(),
            counter: None,
            unless: unless.iter().map(|&rule| rule.to_owned()).collect(),
        }
    }

    #[test]
    fn who_drops_is_named_with_what_to_do_about_it() {
        let network: IpSubnet = "10.5.0.0/16".parse().unwrap();
        let whats = ["from pods here to the outside"];
        let found = finding(&met_by("ip filter", &[]), &whats, &network);
        assert_eq!(found.level, Level::Error);
        assert!(
            found
                .text
                .contains("chain FORWARD of table ip filter drops, by its policy"),
            "{}",
            found.text
        );
        assert!(
            found
                .fix
                .unwrap()
                .contains("iptables -I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT")
        );
        let found = finding(
            &met_by("inet firewalld", &["rule 7 of chain filter_FORWARD"]),
            &whats,
            &network,
        );
        assert_eq!(found.level, Level::Warning);
        assert!(
            found.text.contains("unless one of these lets them pass: rule 7"),
            "{}",
            found.text
        );
        assert!(
            found
                .fix
                .unwrap()
                .contains("--zone=trusted --add-source=10.5.0.0/16")
        );
        let found = finding(&met_by("inet mine", &[]), &whats, &"fd00:5::/48".parse().unwrap());
        assert!(
            found
                .fix
                .unwrap()
                .contains("nft insert rule inet mine FORWARD ip6 saddr fd00:5::/48 accept")
        );
    }
}
