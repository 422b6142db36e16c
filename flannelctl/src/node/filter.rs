//! The filter of encapsulated packets: what stands in its table beside what flanneld writes into it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Context;
use flannel_model::{IpFamily, IpSubnet};
use flannel_netlink::nftables::{
    EncapFilter, EncapKey, EncapSet, NftConn, encap_counters, encap_rules, encap_sets, has_table,
};
use flannel_netlink::overlay::encap::{self, elements_there, without};
use flannel_netlink::{NetlinkError, Netns};
use flannel_nft::{Nft, TableName};
use flannel_plan::DesiredOverlay;

use super::rules::{RuleDifference, differences, lines};

/// How the table of a family differs.
#[derive(Debug, Default)]
pub struct FilterDifference {
    /// The backend of this network needs none.
    pub unwanted: bool,
    /// Rules, and where their chains stand.
    pub rules: Vec<RuleDifference>,
    /// Who should be let through and is not.
    pub missing: Vec<Sender>,
    /// Who is let through and should not be.
    pub extra: Vec<Sender>,
}

/// An element of a set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The set.
    pub set: EncapSet,
    key: EncapKey,
}

impl fmt::Display for Sender {
    /// As nft(8) has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EncapKey {
            outer,
            inner,
            destination,
        } = self.key;
        write!(f, "{outer} . {inner}")?;
        match destination {
            Some(destination) => write!(f, " . {destination}"),
            None => Ok(()),
        }
    }
}

/// The table of a family.
pub fn name(family: IpFamily) -> TableName {
    match family {
        IpFamily::V4 => TableName::ENCAP,
        IpFamily::V6 => TableName::ENCAP_V6,
    }
}

/// How the table differs; `None` where there is none.
pub fn compare(overlay: &DesiredOverlay) -> anyhow::Result<Option<FilterDifference>> {
    let family = overlay.family();
    let table = name(family);
    if !has_table(family.into(), table.name)? {
        return Ok(None);
    }
    let Some(filter) = encap::filter(overlay) else {
        return Ok(Some(FilterDifference {
            unwanted: true,
            ..FilterDifference::default()
        }));
    };
    let there = elements_there(&mut NftConn::open()?, family.into(), table.name)?;
    let wanted = encap::elements(overlay, &filter);
    let Some(found) = Nft::default().rules_listing(table)? else {
        return Ok(None);
    };
    Ok(Some(FilterDifference {
        unwanted: false,
        rules: differences(&lines(&written(table, &filter)?), &lines(&found)),
        missing: senders(without(&wanted, &there)),
        extra: senders(without(&there, &wanted)),
    }))
}

/// What of a table lets in what comes from one subnet of a peer.
#[derive(Debug)]
pub struct Admission {
    /// The elements that should be there and are.
    pub present: Vec<Sender>,
    /// Those that are not.
    pub missing: Vec<Sender>,
    /// Packets that were dropped, of whomever, by the reasons for which some were.
    pub dropped: BTreeMap<String, u64>,
}

/// How the table lets in what comes from a subnet; `None` where there is no table, or nobody who sends for the subnet.
pub fn admission(overlay: &DesiredOverlay, subnet: &IpSubnet) -> Result<Option<Admission>, NetlinkError> {
    let family = overlay.family();
    let table = name(family);
    let Some(filter) = encap::filter(overlay) else {
        return Ok(None);
    };
    if !has_table(family.into(), table.name)? {
        return Ok(None);
    }
    let mut wanted = encap::elements(overlay, &filter);
    wanted
        .values_mut()
        .for_each(|keys| keys.retain(|key| key.inner == subnet.network()));
    if wanted.values().all(BTreeSet::is_empty) {
        return Ok(None);
    }
    let mut conn = NftConn::open()?;
    let there = elements_there(&mut conn, family.into(), table.name)?;
    let missing = without(&wanted, &there);
    let present = without(
        &wanted,
        &missing
            .iter()
            .map(|(set, keys)| (*set, keys.iter().copied().collect()))
            .collect(),
    );
    let mut dropped = conn.counters(family.into(), table.name)?;
    dropped.retain(|_, packets| *packets > 0);
    Ok(Some(Admission {
        present: senders(present),
        missing: senders(missing),
        dropped,
    }))
}

fn senders(keys: Vec<(EncapSet, Vec<EncapKey>)>) -> Vec<Sender> {
    let of_set =
        |(set, keys): (EncapSet, Vec<EncapKey>)| keys.into_iter().map(move |key| Sender { set, key });
    keys.into_iter().flat_map(of_set).collect()
}

/// The rules as nft lists them right after flanneld wrote them: written for that into a network namespace of its own, which nothing else
/// is in.
fn written(table: TableName, filter: &EncapFilter) -> anyhow::Result<String> {
    let family = filter.family();
    let messages = [
        encap_counters(table.name),
        encap_sets(family, table.name, &filter.sets()),
        encap_rules(table.name, filter),
    ];
    let what = format!("write table {table} where nobody sees it");
    let listed = Netns::fresh()?.run(|| -> anyhow::Result<_> {
        NftConn::open()?.commit(family, &messages.concat(), &what)?;
        Ok(Nft::default().rules_listing(table)?)
    })?;
    listed?.with_context(|| format!("{what}: it is not there afterwards"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_reads_as_nft_has_it() {
        let mut sender = Sender {
            set: EncapSet::Nodes,
            key: EncapKey {
                outer: [192, 0, 2, 2].into(),
                inner: [10, 5, 2, 0].into(),
                destination: None,
            },
        };
        assert_eq!(sender.to_string(), "192.0.2.2 . 10.5.2.0");
        sender.key.destination = Some([10, 5, 1, 0].into());
        assert_eq!(sender.to_string(), "192.0.2.2 . 10.5.2.0 . 10.5.1.0");
    }
}
