//! Which subnet a node takes, given everybody's records.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;

use flannel_model::{Families, Ipv4Pool, Ipv4Subnet, LeaseKey, LeaseValue};

use crate::{Record, Revisions};

/// flannel picks at random among the first hundred free subnets, which makes two nodes that start together rarely meet.
const WINDOW: usize = 100;

/// What to do about an own subnet.
#[derive(Debug, Clone)]
pub enum Choice {
    /// A lease of ours is there and fits: go on with it.
    Adopt {
        /// Its key.
        key: LeaseKey,
        /// What we published.
        value: LeaseValue,
        /// Its revisions, to fence the next write.
        revisions: Revisions,
        /// The etcd lease below it; 0 for a reservation.
        lease: i64,
    },
    /// A lease of ours is there that the config does not offer any more: delete it, then choose again.
    Drop {
        /// Its key.
        key: LeaseKey,
        /// Revision of its last write.
        modified: i64,
    },
    /// Create a lease for this free subnet.
    Create(Ipv4Subnet),
    /// Every subnet of the pool is taken.
    Exhausted,
}

/// Chooses as flannel does: the lease with our PublicIP, else the previous subnet if it is free, else a free one near the
/// beginning of the pool. `random` picks among the free ones.
///
/// A node is known by its IPv4 PublicIP alone, and of several leases with it the first in key order counts, unless one of
/// them is `previous`.
pub fn choose(
    records: &[Record],
    pool: &Ipv4Pool,
    public_ip: Ipv4Addr,
    previous: Option<Ipv4Subnet>,
    random: u64,
) -> Choice {
    let mut mine = own_leases(records, public_ip);
    mine.sort_by_key(|own| (own.key.ipv4() != previous, own.key.to_string()));
    let fits = |own: &Own| matches!(own.key.subnets(), Families::Ipv4(subnet) if pool.offers(subnet));
    if let Some(unfit) = mine.iter().find(|own| !fits(own)) {
        return Choice::Drop {
            key: unfit.key,
            modified: unfit.revisions.modified,
        };
    }
    if let Some(own) = mine.into_iter().next() {
        return Choice::Adopt {
            key: own.key,
            value: own.value,
            revisions: own.revisions,
            lease: own.lease,
        };
    }
    let taken = Taken::new(records, pool);
    if let Some(previous) = previous.filter(|p| pool.offers(p) && taken.is_free(p)) {
        return Choice::Create(previous);
    }
    let free: Vec<Ipv4Subnet> = pool.subnets().filter(|s| taken.is_free(s)).take(WINDOW).collect();
    let pick = usize::try_from(random % free.len().max(1) as u64).unwrap_or(0);
    free.get(pick)
        .map_or(Choice::Exhausted, |subnet| Choice::Create(*subnet))
}

struct Own {
    key: LeaseKey,
    value: LeaseValue,
    revisions: Revisions,
    lease: i64,
}

fn own_leases(records: &[Record], public_ip: Ipv4Addr) -> Vec<Own> {
    let own = |record: &Record| {
        let key = record.key.parse().ok()?;
        let value = LeaseValue::parse(&record.value)
            .ok()
            .filter(|value| value.public_ip == public_ip)?;
        Some(Own {
            key,
            value,
            revisions: record.revisions,
            lease: record.lease,
        })
    };
    records.iter().filter_map(own).collect()
}

/// What is not free any more. A record counts by its key, whatever its value: a lease that we cannot read is still
/// somebody's. Keys that reach beyond the Network are nobody's: else one of them would take the whole pool away.
struct Taken {
    same_length: HashSet<Ipv4Subnet>,
    other_lengths: BTreeSet<Ipv4Subnet>,
}

impl Taken {
    fn new(records: &[Record], pool: &Ipv4Pool) -> Self {
        let keys = records
            .iter()
            .filter_map(|record| record.key.parse::<LeaseKey>().ok())
            .filter_map(|key| key.ipv4());
        let inside =
            keys.filter(|subnet| pool.network.contains(subnet) && subnet.length() > pool.network.length());
        let (same_length, other_lengths): (Vec<_>, Vec<_>) =
            inside.partition(|s| s.length() == pool.subnet_len());
        Self {
            same_length: same_length.into_iter().collect(),
            other_lengths: other_lengths.into_iter().collect(),
        }
    }

    fn is_free(&self, subnet: &Ipv4Subnet) -> bool {
        !self.same_length.contains(subnet) && !self.other_lengths.iter().any(|other| other.overlaps(subnet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::NetworkConfig;
    use proptest::prelude::*;

    const ME: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 11);

    fn pool(text: &str) -> Ipv4Pool {
        *NetworkConfig::parse(text.as_bytes())
            .unwrap()
            .pools
            .ipv4()
            .unwrap()
    }

    fn roomy() -> Ipv4Pool {
        pool(r#"{"Network":"10.5.0.0/16"}"#)
    }

    fn record(key: &str, public_ip: &str) -> Record {
        let value = format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null}}"#).into_bytes();
        Record {
            key: key.into(),
            value,
            revisions: Revisions {
                created: 5,
                modified: 7,
            },
            lease: 1,
        }
    }

    fn subnet(text: &str) -> Ipv4Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn our_lease_is_adopted() {
        let records = [
            record("10.5.9.0-24", "192.168.50.12"),
            record("10.5.3.0-24", "192.168.50.11"),
        ];
        match choose(&records, &roomy(), ME, Some(subnet("10.5.77.0/24")), 0) {
            Choice::Adopt { key, revisions, .. } => {
                assert_eq!(key.to_string(), "10.5.3.0-24");
                assert_eq!(revisions.modified, 7);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn of_two_leases_the_previous_one_counts_then_the_first() {
        let records = [
            record("10.5.9.0-24", "192.168.50.11"),
            record("10.5.30.0-24", "192.168.50.11"),
        ];
        let key = |previous| match choose(&records, &roomy(), ME, previous, 0) {
            Choice::Adopt { key, .. } => key.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(key(Some(subnet("10.5.9.0/24"))), "10.5.9.0-24");
        assert_eq!(key(None), "10.5.30.0-24");
    }

    #[test]
    fn a_lease_that_does_not_fit_any_more_is_dropped() {
        for key in [
            "10.6.1.0-24",
            "10.5.1.0-25",
            "10.5.0.0-24",
            "10.5.1.0-24&fd00:5::-64",
        ] {
            let choice = choose(&[record(key, "192.168.50.11")], &roomy(), ME, None, 0);
            assert!(
                matches!(choice, Choice::Drop { modified: 7, .. }),
                "{key}: {choice:?}"
            );
        }
    }

    #[test]
    fn the_previous_subnet_is_taken_only_if_free_and_offered() {
        let previous = subnet("10.5.9.0/24");
        let create = |records: &[Record], previous| match choose(records, &roomy(), ME, Some(previous), 0) {
            Choice::Create(subnet) => subnet.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(create(&[], previous), "10.5.9.0/24");
        assert_eq!(
            create(&[record("10.5.9.0-24", "10.0.0.9")], previous),
            "10.5.1.0/24"
        );
        assert_eq!(
            create(&[record("10.5.9.128-25", "10.0.0.9")], previous),
            "10.5.1.0/24"
        );
        assert_eq!(create(&[], subnet("10.6.9.0/24")), "10.5.1.0/24");
    }

    #[test]
    fn hostile_keys_do_not_take_the_pool_away() {
        let junk = [
            "0.0.0.0-0",
            "10.0.0.0-8",
            "10.5.0.0-16",
            "10.5.1.0-32",
            "foo",
            "../config",
        ];
        let records: Vec<Record> = junk.iter().map(|key| record(key, "10.0.0.9")).collect();
        assert!(
            matches!(choose(&records, &roomy(), ME, None, 0), Choice::Create(s) if s == subnet("10.5.1.0/24"))
        );
    }

    #[test]
    fn an_unreadable_value_still_holds_its_subnet() {
        let mut unreadable = record("10.5.0.4-30", "x");
        unreadable.value = b"junk".to_vec();
        let small = pool(r#"{"Network":"10.5.0.0/28"}"#);
        let records = [
            unreadable,
            record("10.5.0.8-30", "10.0.0.9"),
            record("10.5.0.12-30", "10.0.0.8"),
        ];
        assert!(matches!(choose(&records, &small, ME, None, 3), Choice::Exhausted));
    }

    proptest! {
        #[test]
        fn a_created_subnet_is_offered_and_free(taken in proptest::collection::vec(0u8..=255, 0..300), random: u64) {
            let records: Vec<Record> =
                taken.iter().map(|third| record(&format!("10.5.{third}.0-24"), "10.0.0.9")).collect();
            match choose(&records, &roomy(), ME, None, random) {
                Choice::Create(subnet) => {
                    prop_assert!(roomy().offers(&subnet));
                    prop_assert!(records.iter().all(|r| r.key != LeaseKey::ipv4_only(subnet).to_string()));
                }
                Choice::Exhausted => prop_assert!((1..=255).all(|third| taken.contains(&third))),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
