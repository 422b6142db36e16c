use super::*;
use crate::{Identity, Record};
use flannel_model::{Families, Ipv4Pool, Ipv6Pool, NetworkConfig, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Patience = Patience {
    hold: Duration::from_secs(30),
    grace: Duration::from_secs(300),
};
const NOW: Duration = Duration::from_secs(1000);

mod refresh;

struct World {
    pools: Families<Ipv4Pool, Ipv6Pool>,
    own: LeaseKey,
    identity: Identity,
    stranded: Vec<LeaseKey>,
}

fn world(config: &str, own: &str) -> World {
    World {
        pools: NetworkConfig::parse(config.as_bytes()).unwrap().pools,
        own: own.parse().unwrap(),
        identity: Identity {
            public_ip: "192.168.50.11".parse().unwrap(),
            public_ipv6: Some("fd00:50::11".parse().unwrap()),
            node: Some(NodeId::new(1)),
        },
        stranded: vec![],
    }
}

fn ipv4() -> World {
    world(
        r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.200.0"}"#,
        "10.5.1.0-24",
    )
}

fn dual() -> World {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
    world(config, "10.5.1.0-24&fd00:5:0:1::-64")
}

impl World {
    fn view(&self, table: &PeerTable) -> PeerView {
        self.limited(|limits| table.view(limits))
    }

    fn refresh(
        &self,
        table: &PeerTable,
        view: &mut PeerView,
        keys: &BTreeSet<String>,
    ) -> Option<Vec<PeerChange>> {
        self.limited(|limits| table.refresh(view, keys, limits))
    }

    fn limited<T>(&self, call: impl FnOnce(&Limits<'_>) -> T) -> T {
        let protected = [("10.5.66.6".parse().unwrap(), "an etcd endpoint")];
        call(&Limits {
            pools: &self.pools,
            own: &self.own,
            identity: &self.identity,
            stranded: &self.stranded,
            protected: &protected,
        })
    }

    fn clash(&self, table: &PeerTable) -> Option<i64> {
        table.clash(&self.identity, &self.own, &self.pools, &Touched::Everything)
    }
}

fn record(key: &str, value: &str, revision: i64) -> Record {
    Record {
        key: key.into(),
        value: value.into(),
        revisions: Revisions {
            created: revision,
            modified: revision,
        },
        lease: 1,
    }
}

fn value(ip: &str) -> String {
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#)
}

fn value6(ip: &str, ip6: &str) -> String {
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":"{ip6}","BackendType":"host-gw"}}"#)
}

fn good() -> Vec<Record> {
    vec![
        record("10.5.2.0-24", &value("192.168.50.12"), 2),
        record("10.5.3.0-24", &value("192.168.50.13"), 3),
    ]
}

fn table(records: impl IntoIterator<Item = Record>) -> PeerTable {
    let mut table = PeerTable::new(PATIENCE);
    table.reset(records, 100, NOW);
    table
}

fn addresses(view: &PeerView) -> Vec<String> {
    view.peers
        .values()
        .map(|p| p.value.public_ip.to_string())
        .collect()
}

#[test]
fn a_bad_record_is_named_and_moves_nobody_elses_route() {
    let fine = value("192.168.50.66");
    for (key, bad, part) in [
        ("fd00:5::-64", fine.clone(), "address family"),
        ("0.0.0.0-0", fine.clone(), "prefix length 0"),
        ("10.5.9.9-32", fine.clone(), "prefix length 32"),
        ("foo", fine.clone(), "not of the form"),
        ("10.5.9.0-24/meta", fine.clone(), "not of the form"),
        ("10.6.9.0-24", fine.clone(), "not inside Network 10.5.0.0/16"),
        ("10.0.0.0-8", fine.clone(), "not inside Network"),
        ("10.5.0.0-17", fine.clone(), "claims the subnet of this node"),
        (
            "10.5.1.0-24&fd00::-64",
            fine.clone(),
            "claims the subnet of this node",
        ),
        ("10.5.1.128-25", fine.clone(), "claims the subnet of this node"),
        ("10.5.8.0-23", fine.clone(), "not a /24"),
        ("10.5.201.0-24", fine.clone(), "10.5.1.0/24 to 10.5.200.0/24"),
        ("10.5.66.0-24", fine.clone(), "covers 10.5.66.6, an etcd endpoint"),
        (
            "10.5.9.0-24",
            value("192.168.50.11"),
            "earlier lease of this node",
        ),
        (
            "10.5.9.0-24",
            format!(r#"{{"PublicIP":"192.168.50.11","NodeID":"{}"}}"#, NodeId::new(2)),
            "another node publishes this node's own address",
        ),
        ("10.5.9.0-24", value("127.0.0.1"), "loopback"),
        ("10.5.9.0-24", value("224.0.0.1"), "multicast"),
        ("10.5.9.0-24", value("255.255.255.255"), "broadcast"),
        ("10.5.9.0-24", value("169.254.1.1"), "link-local"),
        ("10.5.9.0-24", value("10.5.2.7"), "inside the pod Network"),
        ("10.5.9.0-24", "{}".into(), "0.0.0.0 is unspecified"),
        ("10.5.9.0-24", "not json".into(), "not a JSON object"),
        ("10.5.9.0-24", "[".repeat(5000), "not a JSON object"),
        ("10.5.9.0-24", r#"{"PublicIP":1e999}"#.into(), "PublicIP"),
        ("10.5.9.0-24", "x".repeat(1 << 20), "1048576 bytes"),
    ] {
        let table = table(good().into_iter().chain([record(key, &bad, 9)]));
        let view = ipv4().view(&table);
        assert_eq!(view.peers.len(), 2, "{key}");
        assert_eq!(view.rejects.len(), 1, "{key}");
        assert_eq!(view.rejects[0].key, key);
        let reason = view.rejects[0].reason.to_string();
        assert!(reason.contains(part), "{key}: {reason}");
    }
}

#[test]
fn ipv6_is_checked_like_ipv4() {
    for (key, bad, part) in [
        (
            "10.5.9.0-24&fd00:6::-64",
            value6("192.168.50.66", "fd00:50::66"),
            "not inside IPv6Network",
        ),
        (
            "10.5.9.0-24&fd00:5:0:1::-64",
            value6("192.168.50.66", "fd00:50::66"),
            "claims the subnet",
        ),
        (
            "10.5.9.0-24&fd00:5:0:9::-65",
            value6("192.168.50.66", "fd00:50::66"),
            "IPv6SubnetLen",
        ),
        (
            "10.5.9.0-24&fd00:5::-64",
            value6("192.168.50.66", "fd00:50::66"),
            "IPv6SubnetMin",
        ),
        ("10.5.9.0-24&fd00:5:0:9::-64", value("192.168.50.66"), "missing"),
        (
            "10.5.9.0-24&fd00:5:0:9::-64",
            value6("192.168.50.66", "fe80::1"),
            "link-local",
        ),
        (
            "10.5.9.0-24&fd00:5:0:9::-64",
            value6("192.168.50.66", "::ffff:1.2.3.4"),
            "in disguise",
        ),
        (
            "10.5.9.0-24&fd00:5:0:9::-64",
            value6("192.168.50.66", "fd00:5::9"),
            "inside the pod IPv6Network",
        ),
    ] {
        let view = dual().view(&table(good().into_iter().chain([record(key, &bad, 9)])));
        assert_eq!((view.peers.len(), view.rejects.len()), (2, 1), "{key}");
        let reason = view.rejects[0].reason.to_string();
        assert!(reason.contains(part), "{key}: {reason}");
    }
    let both = record(
        "10.5.9.0-24&fd00:5:0:9::-64",
        &value6("192.168.50.66", "fd00:50::66"),
        9,
    );
    assert_eq!(
        dual().view(&table(good().into_iter().chain([both]))).peers.len(),
        3
    );
}

#[test]
fn a_good_record_that_turns_bad_keeps_its_last_good_value() {
    let mut table = table(good());
    table.put(&record("10.5.2.0-24", "junk", 109));
    let view = ipv4().view(&table);
    assert_eq!((view.peers.len(), view.rejects.len()), (2, 1));
    let listed = [good().remove(1), record("10.5.2.0-24", "junk", 109)];
    table.reset(listed, 110, NOW);
    assert_eq!(ipv4().view(&table).peers.len(), 2);
    table.delete("10.5.2.0-24", 111, NOW);
    table.settle(NOW + PATIENCE.hold);
    let view = ipv4().view(&table);
    assert_eq!((view.peers.len(), view.rejects.len()), (1, 0));
}

#[test]
fn a_changed_value_is_seen_on_a_new_list_and_a_changed_owner_is_told() {
    let mut table = table(good());
    let moved = table.reset(
        [
            record("10.5.2.0-24", &value("192.168.50.99"), 105),
            good().remove(1),
        ],
        106,
        NOW,
    );
    assert_eq!(
        addresses(&ipv4().view(&table)),
        ["192.168.50.99", "192.168.50.13"]
    );
    assert_eq!(moved.len(), 1);
    assert_eq!(
        (moved[0].from.to_string(), moved[0].to.to_string()),
        ("192.168.50.12".into(), "192.168.50.99".into())
    );
    assert!(
        table
            .put(&record("10.5.2.0-24", &value("192.168.50.99"), 107))
            .is_none()
    );
}

#[test]
fn of_two_records_for_one_subnet_the_older_wins_in_any_order() {
    let single = record("10.5.9.0-24", &value("192.168.50.20"), 20);
    let dual_key = record("10.5.9.0-24&fd00::-64", &value("192.168.50.10"), 10);
    for records in [vec![single.clone(), dual_key.clone()], vec![dual_key, single]] {
        let view = ipv4().view(&table(records));
        assert_eq!(addresses(&view), ["192.168.50.10"]);
        assert_eq!(view.rejects[0].key, "10.5.9.0-24");
    }
    let clash6 = [
        record(
            "10.5.9.0-24&fd00:5:0:9::-64",
            &value6("192.168.50.20", "fd00:50::20"),
            20,
        ),
        record(
            "10.5.8.0-24&fd00:5:0:9::-64",
            &value6("192.168.50.10", "fd00:50::10"),
            10,
        ),
    ];
    assert_eq!(addresses(&dual().view(&table(clash6))), ["192.168.50.10"]);
}

#[test]
fn our_own_record_is_no_peer_and_no_reject_and_neither_is_a_reservation() {
    let mut reserved = record("10.5.9.0-24", r#"{"PublicIP":"192.168.50.77"}"#, 2);
    reserved.lease = 0;
    let table = table([record("10.5.1.0-24", &value("192.168.50.11"), 1), reserved]);
    let view = ipv4().view(&table);
    assert!(view.peers.is_empty() && view.rejects.is_empty());
    assert_eq!(view.reserved, 1);
}

#[test]
fn a_peer_that_is_gone_stays_for_the_hold_and_comes_back_without_a_gap() {
    let mut table = table(good());
    table.delete("10.5.2.0-24", 101, NOW);
    assert_eq!(table.wake_at(), Some(NOW + PATIENCE.hold));
    assert!(!table.settle(NOW + PATIENCE.hold - Duration::from_secs(1)));
    assert_eq!(
        (ipv4().view(&table).peers.len(), ipv4().view(&table).leaving),
        (2, 1)
    );
    let mut back = table.clone();
    back.put(&record("10.5.2.0-24", &value("192.168.50.12"), 102));
    assert_eq!((back.wake_at(), ipv4().view(&back).peers.len()), (None, 2));
    assert!(table.settle(NOW + PATIENCE.hold));
    assert_eq!(ipv4().view(&table).peers.len(), 1);
    // the same when only a list shows it
    table.reset([], 103, NOW);
    assert_eq!(ipv4().view(&table).peers.len(), 1);
    assert_eq!(table.wake_at(), Some(NOW + PATIENCE.hold));
}

#[test]
fn a_peer_that_is_gone_is_not_waited_for_when_it_is_somewhere_else() {
    let mut table = table(good());
    table.delete("10.5.2.0-24", 101, NOW);
    table.put(&record("10.5.7.0-24", &value("192.168.50.12"), 102));
    assert_eq!(
        addresses(&ipv4().view(&table)),
        ["192.168.50.13", "192.168.50.12"]
    );
    table.put(&record("10.5.8.0-24", &value("192.168.50.12"), 103));
    table.delete("10.5.7.0-24", 104, NOW);
    let view = ipv4().view(&table);
    assert_eq!((view.peers.len(), view.leaving), (2, 0), "the other order");
    table.delete("10.5.3.0-24", 105, NOW);
    table.put(&record(
        "10.5.3.0-24&fd00:5:0:3::-64",
        &value("192.168.50.14"),
        106,
    ));
    let view = ipv4().view(&table);
    assert_eq!(
        (addresses(&view), view.leaving),
        (vec!["192.168.50.12".into(), "192.168.50.14".into()], 0)
    );
}

#[test]
fn a_wiped_store_takes_nobody_away_before_the_grace_is_over() {
    let mut table = table(good());
    table.distrust(NOW);
    assert!(!table.is_synced());
    table.reset([], 1, NOW);
    assert_eq!(ipv4().view(&table).peers.len(), 2);
    table.put(&record("10.5.2.0-24", &value("192.168.50.12"), 2));
    let end = NOW + PATIENCE.grace;
    table.settle(end - Duration::from_secs(1));
    assert_eq!(ipv4().view(&table).peers.len(), 2);
    table.settle(end);
    assert_eq!(addresses(&ipv4().view(&table)), ["192.168.50.12"]);
}

#[test]
fn a_restored_backup_moves_no_route_before_its_owner_speaks() {
    let mut table = table(good());
    table.distrust(NOW);
    // then, 10.5.3.0 was node 12's, and node 12's present subnet nobody's; node 14 is new to us
    table.reset(
        [
            record("10.5.3.0-24", &value("192.168.50.12"), 5),
            record("10.5.5.0-24", &value("192.168.50.13"), 6),
            record("10.5.6.0-24", &value("192.168.50.14"), 7),
        ],
        50,
        NOW,
    );
    let view = ipv4().view(&table);
    assert_eq!(
        addresses(&view),
        ["192.168.50.12", "192.168.50.13", "192.168.50.14"]
    );
    assert_eq!(view.rejects[0].reason, RejectReason::Unconfirmed);
    let mut silent = table.clone();
    table.delete("10.5.3.0-24", 51, NOW);
    table.put(&record("10.5.2.0-24", &value("192.168.50.12"), 52));
    table.put(&record("10.5.3.0-24", &value("192.168.50.13"), 53));
    table.delete("10.5.5.0-24", 54, NOW);
    let view = ipv4().view(&table);
    assert_eq!(
        addresses(&view),
        ["192.168.50.12", "192.168.50.13", "192.168.50.14"]
    );
    assert!(view.rejects.is_empty() && view.leaving == 0);
    silent.settle(NOW + PATIENCE.grace);
    let view = ipv4().view(&silent);
    assert_eq!(
        addresses(&view),
        ["192.168.50.12", "192.168.50.13", "192.168.50.14"]
    );
    let keys: Vec<String> = view.peers.keys().map(ToString::to_string).collect();
    assert_eq!(
        keys,
        ["10.5.3.0-24", "10.5.5.0-24", "10.5.6.0-24"],
        "the store's word counts in the end"
    );
}

#[test]
fn what_only_the_cache_knew_goes_with_the_first_list() {
    let cached: Vec<Peer> = table(good()).snapshot().cloned().collect();
    let mut fresh = PeerTable::new(PATIENCE);
    fresh.preload(cached.clone());
    assert!(!fresh.is_synced());
    assert_eq!(ipv4().view(&fresh).peers.len(), 2);
    let mut wiped = fresh.clone();
    fresh.reset(good().into_iter().take(1), 5, NOW);
    assert_eq!(ipv4().view(&fresh).peers.len(), 1);
    wiped.distrust(NOW);
    wiped.reset([], 1, NOW);
    assert_eq!(ipv4().view(&wiped).peers.len(), 2);
}

#[test]
fn a_lost_subnet_is_not_routed_away_from_the_pods_that_live_in_it() {
    let mut world = ipv4();
    world.stranded = vec!["10.5.2.0-24".parse().unwrap()];
    let view = world.view(&table(good()));
    assert_eq!(addresses(&view), ["192.168.50.13"]);
    assert_eq!(view.rejects[0].reason, RejectReason::Stranded);
}

#[test]
fn too_many_records_cost_no_memory_and_take_nobody_away() {
    let junk = (0..MAX_RECORDS + 10).map(|n| record(&format!("junk{n:06}"), "", 1));
    let table = table(good().into_iter().chain(junk));
    let view = ipv4().view(&table);
    assert_eq!((view.peers.len(), view.overflow), (2, 12));
}

#[test]
fn a_second_lease_of_ours_is_noticed() {
    let id = NodeId::new(1);
    let mine = format!(r#"{{"PublicIP":"192.168.50.11","NodeID":"{id}"}}"#);
    let world = ipv4();
    let table = table([record("10.5.1.0-24", &mine, 7), record("10.5.9.0-24", &mine, 8)]);
    assert_eq!(world.clash(&table), Some(8));
    let other = World {
        own: "10.5.9.0-24".parse().unwrap(),
        ..ipv4()
    };
    assert_eq!(other.clash(&table), Some(7));
}

#[test]
fn an_older_record_with_a_part_of_our_subnets_is_noticed() {
    let world = dual();
    let mine = |revision| {
        record(
            "10.5.1.0-24&fd00:5:0:1::-64",
            r#"{"PublicIP":"192.168.50.11"}"#,
            revision,
        )
    };
    let theirs = r#"{"PublicIP":"192.168.50.12"}"#;
    for part in [
        "10.5.1.0-24",
        "10.5.1.0-24&fd00:5:0:2::-64",
        "10.5.2.0-24&fd00:5:0:1::-64",
        "10.5.0.0-20",
        "10.5.1.128-25&fd00:5:0:2::-64",
    ] {
        for value in [theirs, "junk"] {
            assert_eq!(
                world.clash(&table([mine(7), record(part, value, 6)])),
                Some(6),
                "{part}"
            );
            assert_eq!(
                world.clash(&table([mine(7), record(part, value, 8)])),
                None,
                "{part}"
            );
        }
    }
    for harmless in ["10.5.2.0-24&fd00:5:0:2::-64", "10.0.0.0-8", "10.5.0.0-16", "junk"] {
        assert_eq!(
            world.clash(&table([mine(7), record(harmless, theirs, 6)])),
            None,
            "{harmless}"
        );
    }
}
