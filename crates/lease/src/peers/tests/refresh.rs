use super::*;
use proptest::prelude::*;

const KEYS: [&str; 9] = [
    "10.5.1.0-24",
    "10.5.2.0-24",
    "10.5.3.0-24",
    "10.5.4.0-24",
    // The same IPv4 subnet under other keys.
    "10.5.2.0-24&fd00:5:0:2::-64",
    "10.5.3.0-24&fd00:5:0:2::-64",
    "10.5.66.0-24",
    "10.6.9.0-24",
    "junk",
];

const VALUES: [&str; 8] = [
    r#"{"PublicIP":"192.168.50.12","PublicIPv6":"fd00:50::12"}"#,
    r#"{"PublicIP":"192.168.50.13","PublicIPv6":"fd00:50::13","BackendType":"host-gw"}"#,
    r#"{"PublicIP":"192.168.50.14","PublicIPv6":"fd00:50::14","BackendType":"vxlan"}"#,
    r#"{"PublicIP":"192.168.50.12","PublicIPv6":"fd00:50::12","BackendType":"ipip"}"#,
    r#"{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11"}"#,
    r#"{"PublicIP":"127.0.0.1","PublicIPv6":"fd00:50::1"}"#,
    r#"{"PublicIP":"192.168.50.15","PublicIPv6":"fd00:50::15","Reserved":true}"#,
    "not json",
];

#[derive(Debug, Clone)]
enum Happening {
    Put { key: usize, value: usize, lease: i64 },
    Delete { key: usize },
    Settle,
    List { of: Vec<(usize, usize)> },
    Distrust,
}

fn happening() -> impl Strategy<Value = Happening> {
    let listed = (0..KEYS.len(), 0..VALUES.len());
    prop_oneof![
        8 => (0..KEYS.len(), 0..VALUES.len(), 0i64..3)
            .prop_map(|(key, value, lease)| Happening::Put { key, value, lease }),
        4 => (0..KEYS.len()).prop_map(|key| Happening::Delete { key }),
        2 => Just(Happening::Settle),
        1 => proptest::collection::vec(listed, 0..6).prop_map(|of| Happening::List { of }),
        1 => Just(Happening::Distrust),
    ]
}

fn any_record(key: usize, value: usize, lease: i64, revision: i64) -> Record {
    Record {
        lease,
        ..record(KEYS[key], VALUES[value], revision)
    }
}

fn happen(table: &mut PeerTable, happening: &Happening, revision: i64, now: Duration) {
    match happening {
        Happening::Put { key, value, lease } => {
            let mut record = any_record(*key, *value, *lease, revision);
            // Some are older than others that come later.
            record.revisions.created = revision - 7 * lease;
            table.put(&record);
        }
        Happening::Delete { key } => table.delete(KEYS[*key], revision, now),
        Happening::Settle => drop(table.settle(now)),
        Happening::List { of } => {
            let mut of = of.clone();
            of.sort_unstable();
            of.dedup_by_key(|(key, _)| *key);
            let records = of
                .iter()
                .map(|(key, value)| any_record(*key, *value, 1, revision));
            table.reset(records, revision, now);
        }
        Happening::Distrust => table.distrust(now),
    }
}

/// All of a view, in a form that can be compared.
fn whole(view: &PeerView) -> String {
    format!(
        "{:#?}",
        (
            &view.peers,
            &view.rejects,
            (view.reserved, view.leaving, view.overflow),
            &view.on_leave,
            &view.passed_over,
        )
    )
}

/// One view goes from touch to touch, the other is made anew each time. Answers how often a refresh was enough.
fn compare(world: &World, happenings: &[Happening]) -> Result<usize, TestCaseError> {
    let mut table = PeerTable::new(PATIENCE);
    let mut kept = world.view(&table);
    let mut refreshed = 0;
    for (n, happening) in happenings.iter().enumerate() {
        let n = i64::try_from(n).unwrap();
        happen(
            &mut table,
            happening,
            10 + n,
            NOW + PATIENCE.hold * u32::try_from(n).unwrap() / 3,
        );
        let anew = world.view(&table);
        let step = match table.take_touched() {
            Touched::Everything => None,
            Touched::Keys(keys) => {
                let before = kept.peers.clone();
                let changes = world.refresh(&table, &mut kept, &keys);
                for change in changes.iter().flatten() {
                    let key = change
                        .before
                        .as_ref()
                        .or(change.after.as_ref())
                        .map(|peer| peer.key);
                    let old = key.and_then(|key| before.get(&key));
                    prop_assert_eq!(format!("{old:?}"), format!("{:?}", change.before.as_ref()));
                }
                changes
            }
        };
        match step {
            Some(_) => {
                refreshed += 1;
                prop_assert_eq!(whole(&kept), whole(&anew), "after {:?}", happening);
            }
            None => kept = anew,
        }
    }
    Ok(refreshed)
}

proptest! {
    #[test]
    fn a_view_step_by_step_is_the_same_as_one_made_anew(
        happenings in proptest::collection::vec(happening(), 1..40), two in any::<bool>()
    ) {
        let world = if two { dual() } else { ipv4() };
        compare(&world, &happenings)?;
    }

    /// With keys that etcd keeps apart and values that are sound, no view is made anew but the first.
    #[test]
    fn sound_records_never_take_a_whole_view(
        steps in proptest::collection::vec((1usize..4, 0usize..3, any::<bool>()), 1..40)
    ) {
        let happenings: Vec<Happening> = steps
            .iter()
            .map(|(key, value, put)| match put {
                true => Happening::Put { key: *key, value: *value, lease: 1 },
                false => Happening::Delete { key: *key },
            })
            .collect();
        let refreshed = compare(&ipv4(), &happenings)?;
        prop_assert_eq!(refreshed, happenings.len() - 1);
    }
}

/// A rejected record that shares an address with each of two others names the one that a look at everything names.
#[test]
fn a_second_holder_of_a_rejected_record_comes_later() {
    let put = |key, lease| Happening::Put { key, value: 0, lease };
    let happenings = [
        Happening::List { of: vec![(5, 0)] },
        put(4, 1),
        put(0, 0),
        put(2, 1),
    ];
    compare(&ipv4(), &happenings).unwrap();
}

#[test]
fn many_at_once_are_everything() {
    let mut table = table(good());
    table.take_touched();
    for n in 0..64 {
        table.delete(&format!("10.5.{n}.0-24"), 200, NOW);
    }
    assert!(matches!(table.take_touched(), Touched::Keys(keys) if keys.len() == 64));
    for n in 0..65 {
        table.delete(&format!("10.5.{n}.0-24"), 200, NOW);
    }
    assert_eq!(table.take_touched(), Touched::Everything);
}
