//! A packet's way through the chains of a hook.

use super::registers::{Applied, apply};
use super::{Chain, Hook, Packet, Rule, Ruleset, Verdict};

/// Chains that call each other are followed so deep (NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h).
const DEEPEST: usize = 16;
/// Rules that are looked at for one packet at the most, so that no set of chains holds us up.
const LONGEST: usize = 1_000_000;

/// What became of a packet in a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Passes,
    /// It gets this host's address, and goes on.
    Masquerades,
    /// It is gone.
    Drops,
}

/// What a base chain did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// The table of the chain, with its family.
    pub table: String,
    /// The base chain.
    pub chain: String,
    /// Its priority.
    pub priority: i32,
    /// What became of the packet.
    pub fate: Fate,
    /// What decided: `its policy`, or a rule by its chain and handle.
    pub by: String,
    /// What that rule has counted: packets and bytes.
    pub counter: Option<(u64, u64)>,
    /// Rules before it that may decide otherwise, because it cannot be told whether they apply.
    pub unless: Vec<String>,
}

impl Met {
    /// Whether nothing may have decided otherwise.
    pub fn is_certain(&self) -> bool {
        self.unless.is_empty()
    }
}

/// What every base chain of a hook does with the packet, in their order; behind a certain drop there is no other.
pub fn met(ruleset: &Ruleset, hook: Hook, packet: &Packet) -> Vec<Met> {
    let mut bases: Vec<(&Chain, i32, bool)> = ruleset
        .chains
        .iter()
        .filter_map(|chain| {
            let base = chain.base.as_ref().filter(|base| base.hook == hook)?;
            Some((chain, base.priority, base.drops))
        })
        .collect();
    bases.sort_by_key(|(chain, priority, _)| (*priority, &chain.table, &chain.name));
    let mut all = Vec::new();
    for (chain, priority, drops) in bases {
        let mut walk = Walk {
            ruleset,
            packet,
            unless: Vec::new(),
            left: LONGEST,
        };
        let decided = walk.chain(chain, 0);
        let (fate, by, counter) = decided.unwrap_or_else(|| {
            let fate = if drops { Fate::Drops } else { Fate::Passes };
            (fate, "its policy".to_owned(), None)
        });
        // Only what would decide otherwise is a reservation.
        let unless = walk.unless.into_iter().filter(|(other, _)| *other != fate);
        let met = Met {
            table: chain.table.clone(),
            chain: chain.name.clone(),
            priority,
            fate,
            by,
            counter,
            unless: unless.map(|(_, rule)| rule).collect(),
        };
        let over = met.fate == Fate::Drops && met.is_certain();
        all.push(met);
        if over {
            break;
        }
    }
    all
}

type Decision = (Fate, String, Option<(u64, u64)>);

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    /// What uncertain rules would decide.
    unless: Vec<(Fate, String)>,
    /// Rules that may still be looked at.
    left: usize,
}

impl Walk<'_> {
    /// What the chain decides; `None` when it comes to its end.
    fn chain(&mut self, chain: &Chain, depth: usize) -> Option<Decision> {
        for rule in &chain.rules {
            self.left = self.left.checked_sub(1)?;
            let (verdict, certain) = match apply(rule, self.packet) {
                Applied::Passes => continue,
                Applied::Decides(verdict) => (verdict, true),
                Applied::MayDecide(verdict) => (verdict, false),
            };
            let fate = match &verdict {
                Verdict::Accept | Verdict::Other(_) => Fate::Passes,
                Verdict::Masquerade => Fate::Masquerades,
                Verdict::Drop => Fate::Drops,
                Verdict::Return if certain => return None,
                Verdict::Return => continue,
                Verdict::Jump(to) | Verdict::Goto(to) => {
                    let decided = self.jump(chain, to, depth);
                    let ends = matches!(verdict, Verdict::Goto(_));
                    match (decided, certain) {
                        (Some(decided), true) => return Some(decided),
                        (None, true) if ends => return None,
                        (Some((fate, by, _)), false) => self.unless.push((fate, by)),
                        (None, _) => {}
                    }
                    continue;
                }
            };
            let by = told(chain, rule);
            match certain {
                true => return Some((fate, by, rule.counter)),
                false => self.unless.push((fate, by)),
            }
        }
        None
    }

    fn jump(&mut self, from: &Chain, to: &str, depth: usize) -> Option<Decision> {
        if depth >= DEEPEST {
            return None;
        }
        let ruleset = self.ruleset;
        let target = ruleset
            .chains
            .iter()
            .find(|chain| chain.table == from.table && chain.name == to)?;
        self.chain(target, depth + 1)
    }
}

fn told(chain: &Chain, rule: &Rule) -> String {
    format!("rule {} of chain {}", rule.handle, chain.name)
}
