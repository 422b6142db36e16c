//! `flannelctl subnets map`: a picture of the network.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use flannel_lease::HOLD_DOWN;
use flannel_model::{
    EtcdPrefix, Ipv4Pool, Ipv4Subnet, Ipv6Pool, Ipv6Subnet, LeaseKey, Pool, Subnet, UsedNote,
};
use flannel_store::Store;
use serde::Serialize;

use super::record::{Listing, Record, read};
use crate::failure::Failure;
use crate::output::{Output, wall_seconds};

/// Cells in a line.
const WIDTH: u128 = 64;
/// Most cells of a picture; in a larger network a cell stands for several subnets.
const CELLS: u128 = WIDTH * 32;
/// Most subnets that are walked through to find the address of each line.
const WALKED: u128 = 1 << 20;

/// What a subnet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    HoldDown,
    Reserved,
    Used,
}

/// How full one family of the network is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The address space.
    pub network: String,
    /// Length of each subnet.
    pub subnet_len: u8,
    /// How many there are to hand out.
    pub subnets: u128,
    /// Held by nodes.
    pub used: u128,
    /// Kept for a node.
    pub reserved: u128,
    /// Free, but in use not long ago.
    pub hold_down: u128,
    /// Free for good.
    pub free: u128,
    /// Held or reserved, in thousandths of all.
    pub per_mille: u128,
    /// One character a cell: `#` used, `R` reserved, `h` hold-down, `.` free.
    #[serde(skip)]
    picture: Vec<(String, String)>,
    #[serde(skip)]
    per_cell: u128,
}

#[derive(Debug, Serialize)]
struct View {
    networks: Vec<Usage>,
}

/// Shows the picture of each family.
pub async fn show<S: Store>(store: &S, prefix: &EtcdPrefix, output: &mut Output) -> Result<(), Failure> {
    let networks = usage(&read(store, prefix).await?);
    if networks.is_empty() {
        return Err(Failure::NotFound(format!(
            "there is no network config at {} that can be used; see flannelctl check-config --etcd",
            prefix.config()
        )));
    }
    output.show(&View { networks }, table)
}

/// How full each family is; empty when the config cannot be used.
pub fn usage(listing: &Listing) -> Vec<Usage> {
    let Some(pools) = &listing.pools else {
        return Vec::new();
    };
    let now = wall_seconds();
    let rests = |(key, note): (&LeaseKey, &UsedNote)| (note.idle(now) < HOLD_DOWN).then_some(*key);
    let resting: Vec<LeaseKey> = listing.notes.iter().filter_map(rests).collect();
    let ipv4 = pools.ipv4().map(|pool| of_ipv4(pool, &listing.records, &resting));
    let ipv6 = pools.ipv6().map(|pool| of_ipv6(pool, &listing.records, &resting));
    [ipv4, ipv6].into_iter().flatten().collect()
}

fn of_ipv4(pool: &Ipv4Pool, records: &[Record], resting: &[LeaseKey]) -> Usage {
    let taken = records
        .iter()
        .filter_map(|record| Some((record.key.ipv4()?, mark(record))));
    let rest = resting
        .iter()
        .filter_map(LeaseKey::ipv4)
        .map(|subnet| (subnet, Mark::HoldDown));
    picture::<Ipv4Subnet>(pool, taken.chain(rest))
}

fn of_ipv6(pool: &Ipv6Pool, records: &[Record], resting: &[LeaseKey]) -> Usage {
    let taken = records
        .iter()
        .filter_map(|record| Some((record.key.ipv6()?, mark(record))));
    let rest = resting
        .iter()
        .filter_map(LeaseKey::ipv6)
        .map(|subnet| (subnet, Mark::HoldDown));
    picture::<Ipv6Subnet>(pool, taken.chain(rest))
}

fn mark(record: &Record) -> Mark {
    match record.is_in_use() {
        true => Mark::Used,
        false => Mark::Reserved,
    }
}

fn picture<S: Subnet>(pool: &Pool<S>, marks: impl Iterator<Item = (S, Mark)>) -> Usage {
    let count = pool.count();
    let per_cell = count.div_ceil(CELLS);
    // What counts most shows, also where several subnets share a cell.
    let mut subnets: BTreeMap<S, Mark> = BTreeMap::new();
    for (subnet, mark) in marks.filter(|(subnet, _)| pool.offers(subnet)) {
        let known = subnets.entry(subnet).or_insert(mark);
        *known = mark.max(*known);
    }
    let mut cells: BTreeMap<u128, Mark> = BTreeMap::new();
    for (subnet, mark) in &subnets {
        let known = cells
            .entry(pool.subnet_min.steps_to(subnet) / per_cell)
            .or_insert(*mark);
        *known = (*mark).max(*known);
    }
    let number = |mark: Mark| subnets.values().filter(|found| **found == mark).count() as u128;
    let (used, reserved, hold_down) = (number(Mark::Used), number(Mark::Reserved), number(Mark::HoldDown));
    Usage {
        network: pool.network.to_string(),
        subnet_len: pool.subnet_len(),
        subnets: count,
        used,
        reserved,
        hold_down,
        free: count - used - reserved - hold_down,
        per_mille: (used + reserved) * 1000 / count,
        picture: lines(pool, count.div_ceil(per_cell), per_cell, &cells),
        per_cell,
    }
}

/// Each line with the address that it begins at, which is left out in networks that are too large to walk through.
fn lines<S: Subnet>(
    pool: &Pool<S>,
    count: u128,
    per_cell: u128,
    cells: &BTreeMap<u128, Mark>,
) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for cell in 0..count {
        if cell % WIDTH == 0 {
            lines.push((String::new(), String::new()));
        }
        let letter = match cells.get(&cell) {
            Some(Mark::Used) => '#',
            Some(Mark::Reserved) => 'R',
            Some(Mark::HoldDown) => 'h',
            None => '.',
        };
        if let Some((_, line)) = lines.last_mut() {
            line.push(letter);
        }
    }
    let step = usize::try_from(per_cell * WIDTH).unwrap_or(usize::MAX);
    if pool.count() <= WALKED {
        for ((address, _), first) in lines.iter_mut().zip(pool.subnets().step_by(step)) {
            *address = first.network().to_string();
        }
    }
    lines
}

fn table(view: &View) -> String {
    let mut text = String::new();
    for usage in &view.networks {
        let _ = writeln!(
            text,
            "{} in subnets of /{}: {} used, {} reserved, {} in hold-down, {} free of {}; {} ‰ full",
            usage.network,
            usage.subnet_len,
            usage.used,
            usage.reserved,
            usage.hold_down,
            usage.free,
            usage.subnets,
            usage.per_mille
        );
        let width = usage
            .picture
            .iter()
            .map(|(address, _)| address.len())
            .max()
            .unwrap_or(0);
        for (address, line) in &usage.picture {
            let _ = writeln!(text, "  {address:<width$}  {line}");
        }
        if usage.per_cell > 1 {
            let _ = writeln!(text, "  each character stands for {} subnets", usage.per_cell);
        }
    }
    text += "# used   R reserved   h hold-down (in use within the last day)   . free\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::NetworkConfig;

    fn pool(text: &str) -> Ipv4Pool {
        *NetworkConfig::parse(text.as_bytes())
            .unwrap()
            .pools
            .ipv4()
            .unwrap()
    }

    fn marks(list: &[(&str, Mark)]) -> impl Iterator<Item = (Ipv4Subnet, Mark)> {
        list.iter().map(|(text, mark)| (text.parse().unwrap(), *mark))
    }

    #[test]
    fn every_subnet_is_one_character() {
        let pool = pool(r#"{"Network":"10.5.0.0/16"}"#);
        let usage = picture(
            &pool,
            marks(&[
                ("10.5.1.0/24", Mark::Used),
                ("10.5.1.0/24", Mark::HoldDown),
                ("10.5.3.0/24", Mark::HoldDown),
                ("10.5.65.0/24", Mark::Reserved),
                ("10.6.1.0/24", Mark::Used),
                ("10.5.9.0/25", Mark::Used),
            ]),
        );
        assert_eq!(
            (usage.used, usage.reserved, usage.hold_down, usage.free),
            (1, 1, 1, 252)
        );
        assert_eq!(usage.per_mille, 7);
        assert_eq!(usage.picture.len(), 4);
        assert_eq!(usage.picture[0].0, "10.5.1.0");
        assert!(usage.picture[0].1.starts_with("#.h."), "{:?}", usage.picture[0]);
        assert_eq!(usage.picture[1].0, "10.5.65.0");
        assert!(usage.picture[1].1.starts_with('R'));
        assert_eq!(usage.picture[3].1.len(), 63);
        let text = table(&View {
            networks: vec![usage],
        });
        assert!(text.starts_with("10.5.0.0/16 in subnets of /24: 1 used, 1 reserved, 1 in hold-down, 252 free of 255; 7 ‰ full\n"), "{text}");
    }

    #[test]
    fn a_large_network_shares_its_cells() {
        let pool = pool(r#"{"Network":"10.0.0.0/8"}"#);
        let usage = picture(
            &pool,
            marks(&[("10.0.1.0/24", Mark::Used), ("10.255.255.0/24", Mark::Reserved)]),
        );
        assert_eq!((usage.subnets, usage.per_cell), (65_535, 32));
        assert!(usage.picture[0].1.starts_with("#.") && usage.picture[31].1.ends_with('R'));
        assert_eq!(usage.picture[1].0, "10.8.1.0");
    }

    #[test]
    fn an_ipv6_network_of_any_size_is_drawn() {
        let text = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/8"}"#;
        let pools = NetworkConfig::parse(text.as_bytes()).unwrap().pools;
        let usage = picture::<Ipv6Subnet>(pools.ipv6().unwrap(), std::iter::empty());
        assert_eq!(usage.free, (1 << 56) - 1);
        assert!(usage.picture.len() <= 32 && usage.picture[0].0.is_empty());
    }
}
