//! What the packet filter does with a packet that a pod of this node sends there.

use std::net::IpAddr;

use flannel_model::IpFamily;
use flannel_netlink::nftables::ruleset;
use flannel_plan::packet_filter::{Fate, Hook, Met, Packet, met};
use serde::Serialize;

use super::way::Way;
use crate::node::NodeView;
use crate::output::with_causes;

/// What a base chain does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `forward` or `postrouting`.
    pub hook: &'static str,
    /// The table with its family.
    pub table: String,
    /// The base chain.
    pub chain: String,
    /// `pass`, `masquerade` or `drop`.
    pub verdict: &'static str,
    /// What decides.
    pub by: String,
    /// Packets that the rule has counted, where it counts.
    pub packets: Option<u64>,
    /// Rules that may decide otherwise: it cannot be told from outside.
    pub unless: Vec<String>,
}

impl Rule {
    fn new(hook: &'static str, met: Met) -> Self {
        Self {
            hook,
            table: met.table,
            chain: met.chain,
            verdict: match met.fate {
                Fate::Passes => "pass",
                Fate::Masquerades => "masquerade",
                Fate::Drops => "drop",
            },
            by: met.by,
            packets: met.counter.map(|(packets, _)| packets),
            unless: met.unless,
        }
    }

    /// As a row of a table.
    pub fn row(&self) -> [String; 7] {
        [
            self.hook.to_owned(),
            self.table.clone(),
            self.chain.clone(),
            self.verdict.to_owned(),
            self.by.clone(),
            self.packets
                .map_or_else(|| "-".to_owned(), |packets| packets.to_string()),
            match self.unless.is_empty() {
                true => "-".to_owned(),
                false => self.unless.join(", "),
            },
        ]
    }
}

/// Every base chain that the packet meets, in order; none for an address of this host, to which nothing is forwarded.
pub fn rules(node: &NodeView, way: &Way, address: IpAddr, unknown: &mut Vec<String>) -> Vec<Rule> {
    let family = IpFamily::of(address);
    let Some(overlay) = node.overlays.iter().find(|overlay| overlay.family() == family) else {
        return Vec::new();
    };
    if node.seen.holder(address).is_some() {
        return Vec::new();
    }
    let ruleset = match ruleset(family) {
        Ok(ruleset) => ruleset,
        Err(error) => {
            unknown.push(format!("the packet filter: {}", with_causes(&error)));
            return Vec::new();
        }
    };
    let own = overlay.desired.own_subnet;
    let pods = node.seen.routes.iter().find(|route| route.destination == own);
    let packet = Packet {
        source: crate::doctor::second(&own),
        destination: address,
        input: pods
            .and_then(|route| route.ifindex)
            .map(|index| node.seen.name(index)),
        output: way.route.as_ref().map(|route| route.device.clone()),
    };
    let mut rules: Vec<Rule> = Vec::new();
    for (hook, name) in [(Hook::Forward, "forward"), (Hook::Postrouting, "postrouting")] {
        rules.extend(
            met(&ruleset, hook, &packet)
                .into_iter()
                .map(|met| Rule::new(name, met)),
        );
        if rules
            .iter()
            .any(|rule| rule.verdict == "drop" && rule.unless.is_empty())
        {
            break;
        }
    }
    rules
}
