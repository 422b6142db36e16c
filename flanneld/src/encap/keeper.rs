//! The tables in the kernel, and what is known of them.

use std::collections::{BTreeMap, BTreeSet};

use flannel_model::IpFamily;
use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{
    Element, EncapFilter, EncapKey, EncapSet, Family, Message, NftConn, TRANSACTION_BYTES, add_elements,
    base_chains, delete_chain, delete_elements, delete_table, encap_bases, encap_counters, encap_element,
    encap_rules, encap_sets, has_table,
};
use flannel_netlink::overlay::encap::{self, Elements, elements_there};
use flannel_plan::{DesiredOverlay, Exchange};

use super::TABLE;
use super::tally::{Totals, totals};
use crate::overlay::{Facts, Stand, Step};

const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
/// Room for what stands around the messages of a transaction.
const MOST: usize = TRANSACTION_BYTES - 64 * 1024;

/// How much is compared with the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Only what the facts changed: what was written is taken to stand.
    AtNews,
    /// Everything.
    AtEverything,
}

/// What stands in the table of a family.
#[derive(Debug)]
struct Standing {
    filter: EncapFilter,
    /// The rules as the kernel listed them after they were written.
    rules: BTreeMap<String, Vec<Vec<u8>>>,
    elements: Elements,
    /// The facts that it follows.
    facts: Stand,
}

/// Writes the tables.
#[derive(Debug)]
pub struct Keeper {
    enabled: bool,
    conn: Option<NftConn>,
    standing: BTreeMap<Family, Standing>,
    /// Families without the filter, where nothing of an earlier run is left.
    clean: BTreeSet<Family>,
}

impl Keeper {
    /// Without `enabled` it only removes.
    pub fn new(enabled: bool) -> Self {
        Self {
            enabled,
            conn: NftConn::open().ok(),
            standing: BTreeMap::new(),
            clean: BTreeSet::new(),
        }
    }

    /// The port number that notifications of its own changes carry.
    pub fn port(&self) -> u32 {
        self.conn.as_ref().map_or(0, NftConn::port)
    }

    /// What was dropped so far; `None` where there is no filter. Asked by the connection that writes: one that is closed right after
    /// elements were deleted waits for ten milliseconds (`nft_rcv_nl_event`), and the next peer with it.
    pub fn dropped(&mut self) -> Option<Totals> {
        totals(self.conn.as_mut()?)
    }

    /// Brings both families to the facts.
    ///
    /// # Errors
    /// The first refusal of the kernel; the other family is not held up by it.
    pub fn pass(&mut self, facts: &Facts, look: Look) -> Result<(), NetlinkError> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => NftConn::open()?,
        };
        let results = FAMILIES.map(|family| {
            if look == Look::AtNews
                && self.enabled
                && let Some(done) = self.follow(&mut conn, facts, family)
            {
                return done.inspect_err(|_| drop(self.standing.remove(&Family::from(family))));
            }
            let overlay = facts.overlay(family).filter(|_| self.enabled);
            let result = match overlay.and_then(|overlay| Some((overlay, encap::filter(overlay)?))) {
                Some((overlay, filter)) => self.settle(&mut conn, facts, overlay, filter, look),
                None => self.remove(&mut conn, family.into()),
            };
            if result.is_err() {
                self.standing.remove(&Family::from(family));
            }
            result
        });
        self.conn = Some(conn);
        results.into_iter().collect()
    }

    /// Writes what the steps since the last facts ask for, without a look at all senders; `None` where there is more to it.
    fn follow(
        &mut self,
        conn: &mut NftConn,
        facts: &Facts,
        family: IpFamily,
    ) -> Option<Result<(), NetlinkError>> {
        let place = facts.overlays().position(|overlay| overlay.family() == family)?;
        let overlay = facts.overlays().nth(place)?;
        let standing = self.standing.get_mut(&Family::from(family))?;
        let filter = encap::filter(overlay).filter(|filter| *filter == standing.filter)?;
        let steps: Vec<&Step> = facts.steps.since(standing.facts)?.collect();
        let exchanges = steps.iter().map(|step| step.exchanges.get(place));
        let exchanges: Vec<&Exchange> = exchanges.collect::<Option<_>>()?;
        let (touched, wanted) = encap::exchanged(overlay, &filter, exchanges.into_iter());
        let there = of_those(&standing.elements, &touched);
        let done = write(conn, &filter, &Difference::new(&there, &wanted), Rules::Stand);
        for (set, keys) in &mut standing.elements {
            for key in touched.get(set).into_iter().flatten() {
                keys.remove(key);
            }
            keys.extend(wanted.get(set).into_iter().flatten());
        }
        standing.facts = facts.steps.stand();
        Some(done)
    }

    fn remove(&mut self, conn: &mut NftConn, family: Family) -> Result<(), NetlinkError> {
        if self.clean.contains(&family) {
            return Ok(());
        }
        // A kernel without nf_tables has no table of ours.
        if has_table(family, TABLE).unwrap_or(false) {
            conn.commit(family, &delete_table(TABLE), &format!("remove table {TABLE}"))?;
            tracing::info!(table = TABLE, "what filtered encapsulated packets is removed");
        }
        self.standing.remove(&family);
        self.clean.insert(family);
        Ok(())
    }

    /// What stands is compared, and the difference written: what an earlier run left is adopted.
    fn settle(
        &mut self,
        conn: &mut NftConn,
        facts: &Facts,
        overlay: &DesiredOverlay,
        filter: EncapFilter,
        look: Look,
    ) -> Result<(), NetlinkError> {
        let family = filter.family();
        self.clean.remove(&family);
        let wanted = encap::elements(overlay, &filter);
        let mut misplaced = Vec::new();
        let (there, rules) = match self.standing.remove(&family) {
            Some(known) if look == Look::AtNews => {
                let rules = Some(known.rules).filter(|_| known.filter == filter);
                (known.elements, rules)
            }
            known => {
                let rules = conn.rules(family, TABLE)?;
                misplaced = misplaced_chains(&filter)?;
                let as_written = known.is_some_and(|known| known.filter == filter && known.rules == rules);
                let stand = as_written && misplaced.is_empty();
                (
                    elements_there(conn, family, TABLE)?,
                    Some(rules).filter(|_| stand),
                )
            }
        };
        let rules_before = match rules {
            Some(_) => Rules::Stand,
            None => Rules::Write(&misplaced),
        };
        write(conn, &filter, &Difference::new(&there, &wanted), rules_before)?;
        let rules = match rules {
            Some(rules) => rules,
            None => {
                tracing::info!(
                    table = TABLE,
                    ?family,
                    "what filters encapsulated packets is written"
                );
                conn.rules(family, TABLE)?
            }
        };
        let standing = Standing {
            filter,
            rules,
            elements: wanted,
            facts: facts.steps.stand(),
        };
        self.standing.insert(family, standing);
        Ok(())
    }
}

/// Base chains that stand elsewhere than ours, or drop what they do not decide about: the kernel lets nobody move one, so that they
/// are made anew.
fn misplaced_chains(filter: &EncapFilter) -> Result<Vec<String>, NetlinkError> {
    let wanted = encap_bases(filter);
    let there = base_chains(filter.family(), TABLE)?.into_iter();
    let misplaced = there.filter(|(name, base)| wanted.get(name) != Some(base));
    Ok(misplaced.map(|(name, _)| name).collect())
}

/// What becomes of the rules.
#[derive(Debug, Clone, Copy)]
enum Rules<'a> {
    /// They are as they should be.
    Stand,
    /// They are written, and these chains go before.
    Write(&'a [String]),
}

/// What of `touched` is among `elements`.
fn of_those(elements: &Elements, touched: &Elements) -> Elements {
    let of_set = |(set, keys): (&EncapSet, &BTreeSet<EncapKey>)| {
        let known = elements.get(set);
        let there = keys
            .iter()
            .filter(|key| known.is_some_and(|known| known.contains(key)));
        (*set, there.copied().collect())
    };
    touched.iter().map(of_set).collect()
}

/// What has to come and go.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    missing: Vec<(EncapSet, Vec<Element>)>,
    extra: Vec<(EncapSet, Vec<Element>)>,
}

impl Difference {
    fn new(there: &Elements, wanted: &Elements) -> Self {
        let each = |one: &Elements, other: &Elements| {
            let each = encap::without(one, other).into_iter();
            let elements = |keys: Vec<EncapKey>| keys.into_iter().map(encap_element).collect();
            each.map(|(set, keys)| (set, elements(keys))).collect()
        };
        Self {
            missing: each(wanted, there),
            extra: each(there, wanted),
        }
    }
}

/// Writes a difference: who may send comes before the rules that ask for it, and goes after them.
fn write(
    conn: &mut NftConn,
    filter: &EncapFilter,
    difference: &Difference,
    state: Rules<'_>,
) -> Result<(), NetlinkError> {
    let family = filter.family();
    let mut before = Vec::new();
    let mut rules = Vec::new();
    if let Rules::Write(misplaced) = state {
        before.extend(encap_counters(TABLE));
        before.extend(encap_sets(family, TABLE, &filter.sets()));
        rules.extend(misplaced.iter().flat_map(|name| delete_chain(TABLE, name, &[])));
        rules.extend(encap_rules(TABLE, filter));
    }
    for (set, elements) in &difference.missing {
        before.extend(add_elements(TABLE, set.name(), elements));
    }
    let mut after = Vec::new();
    for (set, elements) in &difference.extra {
        after.extend(delete_elements(TABLE, set.name(), elements));
    }
    let all = [&before[..], &rules[..], &after[..]];
    if all.iter().map(|part| size(part)).sum::<usize>() <= MOST {
        return commit(conn, family, &all.concat());
    }
    for part in transactions(&before) {
        commit(conn, family, part)?;
    }
    commit(conn, family, &rules)?;
    for part in transactions(&after) {
        commit(conn, family, part)?;
    }
    Ok(())
}

fn commit(conn: &mut NftConn, family: Family, messages: &[Message]) -> Result<(), NetlinkError> {
    conn.commit(family, messages, &format!("write table {TABLE}"))
}

fn size(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.attributes.len()).sum()
}

/// Messages in pieces that fit a transaction each.
fn transactions(messages: &[Message]) -> Vec<&[Message]> {
    let mut parts = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (index, message) in messages.iter().enumerate() {
        if bytes + message.attributes.len() > MOST {
            parts.extend(messages.get(begin..index));
            (begin, bytes) = (index, 0);
        }
        bytes += message.attributes.len();
    }
    parts.extend(messages.get(begin..));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(outer: std::net::IpAddr, inner: std::net::IpAddr) -> flannel_netlink::nftables::EncapKey {
        flannel_netlink::nftables::EncapKey {
            outer,
            inner,
            destination: None,
        }
    }

    fn elements(pairs: &[(&str, &str)]) -> Elements {
        let keys = pairs
            .iter()
            .map(|(outer, inner)| key(outer.parse().unwrap(), inner.parse().unwrap()));
        BTreeMap::from([(EncapSet::Subnets, keys.collect())])
    }

    #[test]
    fn only_what_changed_is_written() {
        let old = elements(&[("192.0.2.2", "10.5.2.0"), ("192.0.2.3", "10.5.3.0")]);
        let new = elements(&[("192.0.2.2", "10.5.2.0"), ("192.0.2.9", "10.5.3.0")]);
        let difference = Difference::new(&old, &new);
        let count = |side: &[(EncapSet, Vec<Element>)]| side.iter().map(|(_, all)| all.len()).sum::<usize>();
        assert_eq!((count(&difference.missing), count(&difference.extra)), (1, 1));
        assert_eq!(Difference::new(&new, &new), Difference::default());
        assert_eq!(count(&Difference::new(&Elements::new(), &new).missing), 2);
    }

    #[test]
    fn many_messages_take_several_transactions_in_their_order() {
        let all: Vec<Element> = (0..200_000_u32)
            .map(|n| encap_element(key(n.to_be_bytes().into(), n.to_be_bytes().into())))
            .collect();
        let messages = add_elements(TABLE, "subnets", &all);
        let parts = transactions(&messages);
        assert!(parts.len() > 1 && parts.iter().all(|part| size(part) <= MOST));
        assert_eq!(parts.concat(), messages);
        assert_eq!(transactions(&messages[..1]).len(), 1);
    }
}
