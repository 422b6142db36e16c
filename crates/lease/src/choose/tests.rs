use super::*;
use crate::LastUse;
use flannel_model::{Ipv4Subnet, NetworkConfig, NodeId};
use proptest::prelude::*;
use std::time::Duration;

type Pools = Families<Ipv4Pool, Ipv6Pool>;

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;

fn pools(text: &str) -> Pools {
    NetworkConfig::parse(text.as_bytes()).unwrap().pools
}

fn roomy() -> Pools {
    pools(r#"{"Network":"10.5.0.0/16"}"#)
}

fn me() -> Identity {
    Identity {
        public_ip: "192.168.50.11".parse().unwrap(),
        public_ipv6: None,
        node: Some(NodeId::new(1)),
    }
}

fn key(text: &str) -> LeaseKey {
    text.parse().unwrap()
}

fn record(key: &str, public_ip: &str) -> Record {
    Record {
        key: key.into(),
        value: format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null}}"#).into_bytes(),
        revisions: Revisions {
            created: 5,
            modified: 7,
        },
        lease: 1,
    }
}

fn record_of(key: &str, public_ip: &str, node: u128) -> Record {
    let node = NodeId::new(node);
    Record {
        value: format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"NodeID":"{node}"}}"#).into_bytes(),
        ..record(key, public_ip)
    }
}

fn choose(records: &[Record], pools: &Pools, earlier: Earlier) -> Choice {
    choose_knowing(records, pools, earlier, &[], 0)
}

fn choose_knowing(
    records: &[Record],
    pools: &Pools,
    earlier: Earlier,
    used: &[LastUse],
    random: u64,
) -> Choice {
    let used = UsedBefore::new(used.iter().copied());
    let identity = me();
    let chooser = Chooser {
        pools,
        identity: &identity,
        earlier,
        used: Some(&used),
    };
    chooser.choose(records, random)
}

fn created(choice: Choice) -> String {
    match choice {
        Choice::Create { key, .. } => key.to_string(),
        other => panic!("{other:?}"),
    }
}

fn adopted(choice: Choice) -> (String, i64) {
    match choice {
        Choice::Adopt { key, lease, .. } => (key.to_string(), lease),
        other => panic!("{other:?}"),
    }
}

#[test]
fn our_lease_is_adopted_whoever_wrote_it() {
    for mine in [
        record("10.5.3.0-24", "192.168.50.11"),
        record_of("10.5.3.0-24", "192.168.50.11", 1),
        record_of("10.5.3.0-24", "192.168.50.99", 1),
    ] {
        let records = [record("10.5.9.0-24", "192.168.50.12"), mine];
        let previous = Earlier::Previous(key("10.5.77.0-24"));
        assert_eq!(adopted(choose(&records, &roomy(), previous)).0, "10.5.3.0-24");
    }
}

#[test]
fn a_second_node_with_our_address_keeps_its_lease() {
    let records = [record_of("10.5.3.0-24", "192.168.50.11", 2)];
    assert_eq!(created(choose(&records, &roomy(), Earlier::None)), "10.5.1.0-24");
}

#[test]
fn of_several_leases_the_earlier_one_counts_then_a_reservation_then_the_first() {
    let mut records = [
        record("10.5.9.0-24", "192.168.50.11"),
        record("10.5.30.0-24", "192.168.50.11"),
        record("10.5.40.0-24", "192.168.50.11"),
    ];
    let chosen = |records: &[Record], earlier| adopted(choose(records, &roomy(), earlier)).0;
    let previous = Earlier::Previous(key("10.5.9.0-24"));
    assert_eq!(chosen(&records, previous), "10.5.9.0-24");
    assert_eq!(chosen(&records, Earlier::None), "10.5.30.0-24");
    records[2].lease = 0;
    assert_eq!(chosen(&records, Earlier::None), "10.5.40.0-24");
}

#[test]
fn a_marked_reservation_is_one_also_on_a_lease() {
    let mut marked = record("10.5.9.0-24", "192.168.50.11");
    marked.value = br#"{"PublicIP":"192.168.50.11","Reserved":true}"#.to_vec();
    assert_eq!(
        adopted(choose(&[marked], &roomy(), Earlier::None)),
        ("10.5.9.0-24".into(), 0)
    );
}

#[test]
fn a_lease_that_does_not_fit_any_more_is_dropped_but_never_a_reservation() {
    for unfit in [
        "10.6.1.0-24",
        "10.5.1.0-25",
        "10.5.0.0-24",
        "10.5.1.0-24&fd00:5::-64",
    ] {
        let mut records = [record(unfit, "192.168.50.11")];
        let choice = choose(&records, &roomy(), Earlier::None);
        assert!(
            matches!(
                choice,
                Choice::Drop {
                    modified: 7,
                    why: Useless::NotOffered,
                    ..
                }
            ),
            "{unfit}: {choice:?}"
        );
        records[0].lease = 0;
        let choice = choose(&records, &roomy(), Earlier::None);
        assert!(matches!(choice, Choice::Create { .. }), "{unfit}: {choice:?}");
    }
}

#[test]
fn what_is_held_is_kept_created_again_or_given_up() {
    let held = Earlier::Holding(key("10.5.9.0-24"));
    assert_eq!(created(choose(&[], &roomy(), held)), "10.5.9.0-24");
    let mine = record_of("10.5.9.0-24", "192.168.50.11", 1);
    assert_eq!(adopted(choose(&[mine], &roomy(), held)).0, "10.5.9.0-24");
    for taken in ["10.5.9.0-24", "10.5.9.128-25"] {
        let choice = choose(&[record(taken, "192.168.50.12")], &roomy(), held);
        assert!(
            matches!(choice, Choice::Taken { by } if by.public_ip.octets()[3] == 12),
            "{taken}: {choice:?}"
        );
    }
}

#[test]
fn a_second_lease_that_surely_is_ours_is_dropped() {
    let held = Earlier::Holding(key("10.5.9.0-24"));
    let mine = record_of("10.5.9.0-24", "192.168.50.11", 1);
    let second = record_of("10.5.4.0-24", "192.168.50.11", 1);
    let choice = choose(&[second, mine.clone()], &roomy(), held);
    assert!(matches!(choice, Choice::Drop { key: k, why: Useless::Surplus, .. } if k == key("10.5.4.0-24")));
    // A node of flannel with our address may have written this one.
    let unsure = record("10.5.4.0-24", "192.168.50.11");
    assert_eq!(adopted(choose(&[unsure, mine], &roomy(), held)).0, "10.5.9.0-24");
}

#[test]
fn the_previous_subnet_is_taken_only_if_free_and_offered() {
    let previous = |text| Earlier::Previous(key(text));
    let with = |records: &[Record], earlier| created(choose(records, &roomy(), earlier));
    assert_eq!(with(&[], previous("10.5.9.0-24")), "10.5.9.0-24");
    for taken in ["10.5.9.0-24", "10.5.9.128-25"] {
        let others = [record(taken, "10.0.0.9")];
        assert_eq!(with(&others, previous("10.5.9.0-24")), "10.5.1.0-24");
    }
    assert_eq!(with(&[], previous("10.6.9.0-24")), "10.5.1.0-24");
}

#[test]
fn dual_stack_claims_both_families_in_one_key_and_keeps_what_it_can() {
    let both = created(choose(&[], &pools(DUAL), Earlier::None));
    assert_eq!(both, "10.5.1.0-24&fd00:5:0:1::-64");
    let kept = created(choose(&[], &pools(DUAL), Earlier::Previous(key("10.5.9.0-24"))));
    assert_eq!(kept, "10.5.9.0-24&fd00:5:0:1::-64");
    let others = [record("10.5.9.0-24&fd00:5:0:1::-64", "192.168.50.12")];
    let next = created(choose(
        &others,
        &pools(DUAL),
        Earlier::Previous(key("10.5.9.0-24&fd00:5:0:7::-64")),
    ));
    assert_eq!(next, "10.5.1.0-24&fd00:5:0:7::-64");
    let v6 = pools(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#);
    assert_eq!(created(choose(&[], &v6, Earlier::None)), "fd00:5:0:1::-64");
}

/// With another revision of creation than the 5 of [`record`].
fn created_at(revision: i64, record: Record) -> Record {
    Record {
        revisions: Revisions {
            created: revision,
            ..record.revisions
        },
        ..record
    }
}

#[test]
fn of_two_records_with_a_part_of_one_subnet_the_older_counts() {
    let mine = record("10.5.3.0-24&fd00:5:0:3::-64", "192.168.50.11");
    for part in [
        "10.5.3.0-24",
        "10.5.3.0-24&fd00:5:0:4::-64",
        "10.5.4.0-24&fd00:5:0:3::-64",
        "10.5.3.128-25",
    ] {
        let held = Earlier::Holding(key(&mine.key));
        let chosen = |created, earlier| {
            let theirs = created_at(created, record(part, "192.168.50.12"));
            choose(&[theirs, mine.clone()], &pools(DUAL), earlier)
        };
        for earlier in [held, Earlier::None] {
            assert_eq!(adopted(chosen(6, earlier)).0, mine.key, "{part}");
        }
        let choice = chosen(4, held);
        assert!(
            matches!(choice, Choice::Taken { by } if by.public_ip.octets()[3] == 12),
            "{part}: {choice:?}"
        );
        let choice = chosen(4, Earlier::None);
        assert!(
            matches!(
                choice,
                Choice::Drop {
                    modified: 7,
                    why: Useless::Younger,
                    ..
                }
            ),
            "{part}: {choice:?}"
        );
    }
}

#[test]
fn a_reservation_with_an_elder_is_neither_used_nor_deleted() {
    let mut mine = record("10.5.3.0-24", "192.168.50.11");
    mine.lease = 0;
    let elder = created_at(4, record("10.5.3.128-25", "192.168.50.12"));
    for earlier in [Earlier::None, Earlier::Previous(key("10.5.3.0-24"))] {
        assert_eq!(
            created(choose(&[mine.clone(), elder.clone()], &roomy(), earlier)),
            "10.5.1.0-24"
        );
    }
}

#[test]
fn what_others_can_have_a_part_of_is_told() {
    let alone = |records: &[Record], pools: &Pools| match choose(records, pools, Earlier::None) {
        Choice::Create { alone, .. } => alone,
        other => panic!("{other:?}"),
    };
    let other = |key| [record(key, "192.168.50.12")];
    assert!(alone(&[], &roomy()) && alone(&other("10.5.9.0-24"), &roomy()));
    assert!(alone(&other("10.0.0.0-8"), &roomy()), "counts for nothing");
    for shape in ["10.5.9.0-25", "10.5.9.0-24&fd00:5:0:9::-64"] {
        assert!(!alone(&other(shape), &roomy()), "{shape}");
    }
    assert!(!alone(&[], &pools(DUAL)));
    let v6 = pools(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#);
    assert!(alone(&[], &v6));
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
    assert_eq!(created(choose(&records, &roomy(), Earlier::None)), "10.5.1.0-24");
}

#[test]
fn an_unreadable_value_still_holds_its_subnet() {
    let mut unreadable = record("10.5.0.4-30", "x");
    unreadable.value = b"junk".to_vec();
    let small = pools(r#"{"Network":"10.5.0.0/28"}"#);
    let records = [
        unreadable,
        record("10.5.0.8-30", "10.0.0.9"),
        record("10.5.0.12-30", "10.0.0.8"),
    ];
    assert!(matches!(
        choose(&records, &small, Earlier::None),
        Choice::Exhausted
    ));
}

#[test]
fn a_fresh_subnet_is_preferred_then_the_longest_free() {
    let small = pools(r#"{"Network":"10.5.0.0/28"}"#);
    let hours = |text, hours: u64| LastUse {
        key: key(text),
        idle: Duration::from_secs(hours * 3600),
    };
    let pick = |used: &[LastUse], random| created(choose_knowing(&[], &small, Earlier::None, used, random));
    for random in 0..9 {
        let two = [hours("10.5.0.4-30", 900), hours("10.5.0.12-30", 900)];
        assert_eq!(pick(&two, random), "10.5.0.8-30", "never used");
        let all = [
            hours("10.5.0.4-30", 30),
            hours("10.5.0.8-30", 2),
            hours("10.5.0.12-30", 300),
        ];
        assert_eq!(pick(&all, random), "10.5.0.12-30", "free for the longest time");
        let recent = [
            hours("10.5.0.4-30", 1),
            hours("10.5.0.8-30", 3),
            hours("10.5.0.12-30", 2),
        ];
        assert_eq!(
            pick(&recent, random),
            "10.5.0.8-30",
            "all in hold-down: better than none"
        );
    }
}

#[test]
fn notes_are_asked_for_only_when_a_fresh_subnet_is_needed() {
    let (identity, pools) = (me(), roomy());
    let chooser = |earlier| Chooser {
        pools: &pools,
        identity: &identity,
        earlier,
        used: None,
    };
    assert!(matches!(chooser(Earlier::None).choose(&[], 0), Choice::ReadUsed));
    let previous = Earlier::Previous(key("10.5.9.0-24"));
    assert!(matches!(chooser(previous).choose(&[], 0), Choice::Create { .. }));
    let taken = [record("10.5.9.0-24", "10.0.0.9")];
    assert!(matches!(chooser(previous).choose(&taken, 0), Choice::ReadUsed));
}

proptest! {
    #[test]
    fn a_created_subnet_is_offered_and_free(
        taken in proptest::collection::vec(0u8..=255, 0..300),
        used in proptest::collection::vec((0u8..=255, 0u64..100), 0..300),
        random: u64,
    ) {
        let records: Vec<Record> =
            taken.iter().map(|third| record(&format!("10.5.{third}.0-24"), "10.0.0.9")).collect();
        let used: Vec<LastUse> = used
            .iter()
            .map(|(third, hours)| LastUse {
                key: key(&format!("10.5.{third}.0-24")),
                idle: Duration::from_secs(hours * 3600),
            })
            .collect();
        match choose_knowing(&records, &roomy(), Earlier::None, &used, random) {
            Choice::Create { key: created, .. } => {
                let subnet: Ipv4Subnet = created.ipv4().unwrap();
                prop_assert!(roomy().ipv4().unwrap().offers(&subnet));
                prop_assert!(records.iter().all(|r| r.key != created.to_string()));
                let was_used = used.iter().any(|last| last.key == created);
                let fresh = (1..=255u8).any(|third| {
                    let this = key(&format!("10.5.{third}.0-24"));
                    !taken.contains(&third) && used.iter().all(|last| last.key != this)
                });
                prop_assert!(!(was_used && fresh), "{created} was used although a fresh one is there");
            }
            Choice::Exhausted => prop_assert!((1..=255).all(|third| taken.contains(&third))),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
