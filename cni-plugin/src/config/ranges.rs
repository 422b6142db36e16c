//! Sets of ranges as host-local reads them.

use std::net::IpAddr;

use serde_json::Value;

use crate::address::{Range, RangeSet};
use crate::protocol::args::network;
use crate::protocol::keys::Keys;
use crate::protocol::{CniError, Code};

const EXPECTED: &str =
    "a list of lists of {\"subnet\": \"10.1.0.0/24\"}, with rangeStart, rangeEnd and gateway where wanted";

/// The sets under `name`; one address is taken from each.
///
/// # Errors
/// Code 7 for what is malformed, empty, of two families in one set, or outside of its subnet.
pub fn range_sets(keys: &Keys<'_>, name: &str) -> Result<Vec<RangeSet>, CniError> {
    let sets = keys.list(name)?.iter();
    sets.map(|set| range_set(keys, name, set)).collect()
}

fn range_set(keys: &Keys<'_>, name: &str, set: &Value) -> Result<RangeSet, CniError> {
    let items = set.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| keys.fault(name, set, EXPECTED))?;
    let ranges: Vec<Range> = items
        .iter()
        .map(|item| range(keys, name, item))
        .collect::<Result<_, _>>()?;
    let mixed = ranges.iter().any(|one| one.is_ipv4() != ranges[0].is_ipv4());
    match mixed {
        true => Err(keys.fault(name, set, "addresses of one family in a set")),
        false => Ok(RangeSet::new(ranges)),
    }
}

fn range(keys: &Keys<'_>, name: &str, item: &Value) -> Result<Range, CniError> {
    let fault = || keys.fault(name, item, EXPECTED);
    let object = item.as_object().ok_or_else(fault)?;
    let place = keys.full(name);
    let fields = Keys::new(&place, object);
    let text = fields.text("subnet")?.ok_or_else(fault)?;
    let (base, length) = network(text).ok_or_else(fault)?;
    let written: Option<IpAddr> = text.split('/').next().and_then(|ip| ip.parse().ok());
    if written != Some(base) {
        let expected = format!("the network's own address, which is {base}/{length}");
        return Err(fields.fault("subnet", &Value::from(text), &expected));
    }
    let address = |name: &str| -> Result<Option<IpAddr>, CniError> {
        let Some(text) = fields.text(name)?.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let parsed = text
            .parse()
            .ok()
            .filter(|ip: &IpAddr| ip.is_ipv4() == base.is_ipv4());
        let expected = "an address of the subnet's family";
        parsed
            .map(Some)
            .ok_or_else(|| fields.fault(name, &Value::from(text), expected))
    };
    let whole = Range::of_subnet(base, length)?;
    let narrowed = whole.narrowed(address("rangeStart")?, address("rangeEnd")?, address("gateway")?);
    narrowed.ok_or_else(|| {
        let expected = "rangeStart and rangeEnd in this order and within the subnet";
        keys.fault(name, item, expected)
    })
}

/// Two sets that share an address would give it twice to one container.
///
/// # Errors
/// Code 7 with both.
pub fn refuse_overlap(sets: &[RangeSet]) -> Result<(), CniError> {
    let all: Vec<(usize, &Range)> = sets
        .iter()
        .enumerate()
        .flat_map(|(index, set)| set.ranges().iter().map(move |range| (index, range)))
        .collect();
    for (place, (index, one)) in all.iter().enumerate() {
        if let Some((other_index, other)) = all[place + 1..].iter().find(|(_, other)| one.overlaps(other)) {
            let msg = format!("the ranges {one} (set {index}) and {other} (set {other_index}) overlap");
            let advice =
                "an address belongs to one range; look at runtimeConfig.ipRanges and the node's subnet";
            return Err(CniError::new(Code::BadConfig, msg).with(advice));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<RangeSet>, CniError> {
        let object = serde_json::from_str(&format!("{{\"ipRanges\":{text}}}")).unwrap();
        let sets = range_sets(&Keys::new("runtimeConfig", &object), "ipRanges")?;
        refuse_overlap(&sets).map(|()| sets)
    }

    #[test]
    fn what_host_local_reads() {
        let sets = read(
            r#"[[{"subnet":"10.9.0.0/24","RangeStart":"10.9.0.20","rangeEnd":"10.9.0.30","gateway":"10.9.0.254"},
                 {"subnet":"10.8.0.0/29"}],[{"subnet":"fd00:9::/64"}]]"#,
        )
        .unwrap();
        assert_eq!(sets.len(), 2);
        assert_eq!(sets[0].to_string(), "10.9.0.20-10.9.0.30,10.8.0.1-10.8.0.6");
        let first = sets[0].candidates(None).next().unwrap();
        assert_eq!(first.to_string(), "10.9.0.20");
        assert_eq!(
            sets[0].range_of(first).unwrap().gateway().to_string(),
            "10.9.0.254"
        );
        assert!(read("[]").unwrap().is_empty());
    }

    #[test]
    fn what_host_local_refuses() {
        for text in [
            "[[]]",
            "[{}]",
            r#"[[{"subnet":"10.9.0.1/24"}]]"#,
            r#"[[{"subnet":"10.9.0.0/31"}]]"#,
            r#"[[{"subnet":"10.9.0.0/24","rangeStart":"10.8.0.1"}]]"#,
            r#"[[{"subnet":"10.9.0.0/24","rangeEnd":"10.9.1.1"}]]"#,
            r#"[[{"subnet":"10.9.0.0/24","rangeStart":"10.9.0.9","rangeEnd":"10.9.0.8"}]]"#,
            r#"[[{"subnet":"10.9.0.0/24","gateway":"fd00::1"}]]"#,
            r#"[[{"subnet":"10.9.0.0/24"},{"subnet":"fd00:9::/64"}]]"#,
            r#"[[{"subnet":"10.9.0.0/24"},{"subnet":"10.9.0.128/25"}]]"#,
            r#"[[{"subnet":"10.9.0.0/24"}],[{"subnet":"10.9.0.0/25"}]]"#,
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{text}: {error}");
        }
    }
}
