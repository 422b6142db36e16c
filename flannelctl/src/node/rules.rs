//! The rules of `--ip-masq`: what stands in the table beside what flanneld writes into it.

use flannel_model::IpSubnet;
use flannel_nft::{MasqueradeTable, Nft, NftError, Table, TableName, masquerade_table};
use flannel_plan::{DesiredOverlay, DifferenceKind};

/// A line of a chain that differs: a rule, or the one that says where the chain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleDifference {
    /// How.
    pub kind: DifferenceKind,
    /// The chain; `None` for the table as a whole.
    pub chain: Option<String>,
    /// The rule that flanneld writes, as nft shows it.
    pub wanted: Option<String>,
    /// The rule that is there.
    pub found: Option<String>,
}

/// How the table of a family differs; `None` where there is none.
pub fn compare(name: TableName, overlay: &DesiredOverlay) -> Result<Option<Vec<RuleDifference>>, NftError> {
    let nft = Nft::default();
    let Some(found) = nft.listing(name)? else {
        return Ok(None);
    };
    let found = lines(&found);
    let hash = nft.current_hash(name)?;
    let (table, sure) = written(overlay, &found, hash.as_deref());
    let mut all = differences(&lines(&nft.shown(&table)?), &found);
    if all.is_empty() && !sure {
        // Rules of an option that cannot be told from here are missing, or another release wrote them.
        all.push(RuleDifference {
            kind: DifferenceKind::Wrong,
            chain: None,
            wanted: Some("the rules that its comment was made from".to_owned()),
            found: Some("other rules".to_owned()),
        });
    }
    Ok(Some(all))
}

/// The table that flanneld wrote, and whether that is sure. Which of its options are given is known to flanneld alone, but the hash in the
/// comment tells which text it was.
fn written(overlay: &DesiredOverlay, found: &[Line], hash: Option<&str>) -> (Table, bool) {
    let table = |fully_random, accept_forward| {
        masquerade_table(&MasqueradeTable {
            network: overlay.network,
            subnet: overlay.own_subnet,
            masquerade: true,
            exempt: exempt(overlay, found),
            fully_random,
            accept_forward,
        })
    };
    for (fully_random, forward) in [(true, true), (false, true), (true, false), (false, false)] {
        let table = table(fully_random, forward);
        if hash == Some(table.hash().as_str()) {
            return (table, true);
        }
    }
    let plain = found.iter().any(|line| line.text.ends_with(" masquerade"));
    (table(!plain, true), false)
}

/// The ranges of `--ip-masq-exempt` as the rules have them.
fn exempt(overlay: &DesiredOverlay, found: &[Line]) -> Vec<IpSubnet> {
    let ip = if overlay.network.is_ipv4() { "ip" } else { "ip6" };
    let begin = format!("{ip} saddr {} {ip} daddr ", overlay.network);
    let ranges = found.iter().filter_map(|line| {
        let range = line.text.strip_prefix(&begin)?.strip_suffix(" return")?;
        range.parse().ok()
    });
    ranges
        .filter(|range: &IpSubnet| *range != overlay.own_subnet)
        .collect()
}

/// A line within a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    chain: String,
    text: String,
}

/// The lines of a listing's chains, in their order.
pub(super) fn lines(listing: &str) -> Vec<Line> {
    let mut out = Vec::new();
    let mut within: Option<&str> = None;
    for line in listing.lines().map(str::trim) {
        match (within, line) {
            (None, line) => {
                within = line
                    .strip_prefix("chain ")
                    .and_then(|rest| rest.strip_suffix(" {"))
            }
            (Some(_), "}") => within = None,
            (Some(_), "") => {}
            (Some(chain), text) => out.push(Line {
                chain: chain.to_owned(),
                text: text.to_owned(),
            }),
        }
    }
    out
}

pub(super) fn differences(wanted: &[Line], found: &[Line]) -> Vec<RuleDifference> {
    let mut chains: Vec<&str> = Vec::new();
    for line in wanted.iter().chain(found) {
        if !chains.contains(&line.chain.as_str()) {
            chains.push(&line.chain);
        }
    }
    chains
        .into_iter()
        .flat_map(|chain| of_chain(chain, &texts(chain, wanted), &texts(chain, found)))
        .collect()
}

fn texts<'a>(chain: &str, lines: &'a [Line]) -> Vec<&'a str> {
    let of = lines.iter().filter(|line| line.chain == chain);
    of.map(|line| line.text.as_str()).collect()
}

fn of_chain(chain: &str, wanted: &[&str], found: &[&str]) -> Vec<RuleDifference> {
    let difference = |kind, wanted: Option<String>, found: Option<String>| RuleDifference {
        kind,
        chain: Some(chain.to_owned()),
        wanted,
        found,
    };
    let missing = beyond(wanted, found);
    let extra = beyond(found, wanted);
    if missing.is_empty() && extra.is_empty() && wanted != found {
        let all = |rules: &[&str]| Some(rules.join("; "));
        return vec![difference(DifferenceKind::Wrong, all(wanted), all(found))];
    }
    let missing = missing
        .into_iter()
        .map(|rule| difference(DifferenceKind::Missing, Some(rule), None));
    let extra = extra
        .into_iter()
        .map(|rule| difference(DifferenceKind::Extra, None, Some(rule)));
    missing.chain(extra).collect()
}

/// What of `all` is not in `others`; a rule that is there twice counts twice.
fn beyond(all: &[&str], others: &[&str]) -> Vec<String> {
    let mut others = others.to_vec();
    let mut out = Vec::new();
    for text in all {
        match others.iter().position(|other| other == text) {
            Some(at) => drop(others.swap_remove(at)),
            None => out.push((*text).to_owned()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "table ip flannel-ipv4 {\n\tcomment \"flannel-hash=0\"\n\tchain a {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\
                           \t\tone\n\t\ttwo\n\t}\n\n\tchain b {\n\t\tthree\n\t}\n}\n";

    fn told(found: &str) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let all = differences(&lines(LISTING), &lines(found));
        let told = all.iter().map(|one| {
            let chain = or_dash(&one.chain);
            format!(
                "{} {chain} {} {}",
                one.kind,
                or_dash(&one.wanted),
                or_dash(&one.found)
            )
        });
        told.collect()
    }

    #[test]
    fn each_line_that_differs_is_named_with_its_chain() {
        assert_eq!(told(LISTING), Vec::<String>::new());
        assert_eq!(told(&LISTING.replace("\t\tone\n", "")), ["missing a one -"]);
        assert_eq!(
            told(&LISTING.replace("three", "drop")),
            ["missing b three -", "extra b - drop"]
        );
        assert_eq!(
            told(&LISTING.replace("one", "two")),
            ["missing a one -", "extra a - two"]
        );
        let other_order = LISTING
            .replace("one", "x")
            .replace("two", "one")
            .replace('x', "two");
        assert_eq!(told(&other_order).len(), 1, "{:?}", told(&other_order));
        assert!(told(&LISTING.replace("accept", "drop"))[1].contains("policy drop"));
        assert_eq!(told("table ip flannel-ipv4 {\n}\n").len(), 4);
    }
}
