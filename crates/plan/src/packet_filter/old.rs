//! The iptables chains that flannel leaves on a host: found by their names, together with the rules that lead there.

use super::walk::{Fate, met};
use super::{Hook, Packet, Rule, Ruleset, Step, Verdict};

/// flannel's chains, each with the table that iptables-nft keeps it in.
const CHAINS: [(&str, &str); 2] = [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")];

/// A chain of flannel's iptables mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldChain {
    /// Its table with the family, as `ip nat`.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The rules that lead there, each by its chain and handle.
    pub jumps: Vec<(String, u64)>,
    /// Without it the rest of its table would drop packets of pods.
    pub needed: bool,
}

/// Those of them that are there. `packets` are some that pods send and get.
pub fn old_chains(ruleset: &Ruleset, packets: &[Packet]) -> Vec<OldChain> {
    let mut found = Vec::new();
    for chain in &ruleset.chains {
        let is_old = |(table, name): &(&str, &str)| {
            let family = chain.table.strip_suffix(table).unwrap_or_default();
            chain.name == *name && matches!(family, "ip " | "ip6 ")
        };
        if CHAINS.iter().any(is_old) {
            found.push(OldChain {
                table: chain.table.clone(),
                name: chain.name.clone(),
                jumps: jumps(ruleset, &chain.table, &chain.name),
                needed: is_needed(ruleset, &chain.table, &chain.name, packets),
            });
        }
    }
    found
}

fn jumps(ruleset: &Ruleset, table: &str, name: &str) -> Vec<(String, u64)> {
    let leads_there = |rule: &&Rule| {
        rule.steps
            .iter()
            .any(|step| matches!(step, Step::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) if to == name))
    };
    let chains = ruleset.chains.iter().filter(|chain| chain.table == table);
    chains
        .flat_map(|chain| {
            let rules = chain.rules.iter().filter(leads_there);
            rules.map(|rule| (chain.name.clone(), rule.handle))
        })
        .collect()
}

/// Whether a packet that passes its table would be dropped by it without the chain.
fn is_needed(ruleset: &Ruleset, table: &str, name: &str, packets: &[Packet]) -> bool {
    let mut without = ruleset.clone();
    without.chains.retain(|chain| chain.table == table);
    let with = without.clone();
    for chain in without.chains.iter_mut().filter(|chain| chain.name == name) {
        chain.rules.clear();
    }
    let drops = |ruleset: &Ruleset, packet: &Packet| {
        met(ruleset, Hook::Forward, packet)
            .iter()
            .any(|met| met.fate == Fate::Drops)
    };
    packets
        .iter()
        .any(|packet| !drops(&with, packet) && drops(&without, packet))
}
