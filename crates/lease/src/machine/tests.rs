mod moved;

use super::*;
use crate::{Revisions, Useless};
use flannel_model::{NetworkConfig, NodeId};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);
const GRACE: Duration = Duration::from_secs(300);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn node(last: u8, id: u128) -> Identity {
    Identity {
        public_ip: std::net::Ipv4Addr::new(192, 168, 50, last),
        public_ipv6: None,
        node: Some(NodeId::new(id)),
    }
}

fn machine(config: &str) -> LeaseMachine {
    let pools = NetworkConfig::parse(config.as_bytes()).unwrap().pools;
    let settings = Settings {
        ttl: DAY,
        renew_margin: HOUR,
        grace: GRACE,
    };
    LeaseMachine::new(settings, pools, node(11, 1), None)
}

fn roomy() -> LeaseMachine {
    machine(r#"{"Network":"10.5.0.0/16"}"#)
}

fn record(key: &str, owner: Identity, lease: i64) -> Record {
    let id = owner
        .node
        .map(|id| format!(r#","NodeID":"{id}""#))
        .unwrap_or_default();
    Record {
        key: key.into(),
        value: format!(r#"{{"PublicIP":"{}","PublicIPv6":null{id}}}"#, owner.public_ip).into_bytes(),
        revisions: Revisions {
            created: 3,
            modified: 4,
        },
        lease,
    }
}

fn others(key: &str) -> Record {
    record(key, node(12, 2), 9)
}

fn mine(key: &str, lease: i64) -> Record {
    record(key, node(11, 1), lease)
}

fn won(lease: i64, modified: i64) -> Event {
    Event::Claimed(ClaimOutcome::Won { lease, modified })
}

/// Lists `records` and reads that nothing was used before, as far as it asks.
fn listed(m: &mut LeaseMachine, records: Vec<Record>, now: Duration) -> Option<Op> {
    match m.handle(Event::Listed(records), now, 0) {
        Some(Op::ReadUsed) => m.handle(Event::UsedRead(vec![]), now, 0),
        other => other,
    }
}

fn claims(op: &Option<Op>) -> (String, Expected, LeaseTerms) {
    match op {
        Some(Op::Claim {
            key, expected, terms, ..
        }) => (key.to_string(), *expected, *terms),
        other => panic!("{other:?}"),
    }
}

fn drops(op: &Option<Op>, expected: Useless) {
    assert!(
        matches!(op, Some(Op::Drop { why, .. }) if *why == expected),
        "{op:?}"
    );
}

/// A machine that holds 10.5.1.0/24 by etcd lease 77 at revision 10, renewed at second 2.
fn held() -> LeaseMachine {
    let mut m = roomy();
    assert!(matches!(m.handle(Event::Start, secs(0), 0), Some(Op::List)));
    let (key, expected, terms) = claims(&listed(&mut m, vec![], secs(0)));
    assert_eq!((key.as_str(), expected), ("10.5.1.0-24", Expected::Absent));
    assert!(matches!(terms, LeaseTerms::Grant { ttl: DAY, .. }));
    assert!(m.handle(won(77, 10), secs(1), 0).is_none());
    assert_eq!(
        (m.situation(), m.standing(secs(1))),
        (Situation::Held, Standing::Adopted)
    );
    assert!(matches!(
        m.handle(Event::Timer, secs(1), 0),
        Some(Op::KeepAlive(77))
    ));
    assert!(m.handle(Event::KeptAlive(DAY), secs(2), 0).is_none());
    assert_eq!(m.standing(secs(2)), Standing::Confirmed);
    m
}

#[test]
fn a_lease_is_renewed_every_five_minutes_and_counts_from_the_question() {
    let mut m = held();
    assert_eq!(m.wake_at(secs(2)), Some(secs(302)));
    assert!(m.handle(Event::Timer, secs(301), 0).is_none());
    assert!(matches!(
        m.handle(Event::Timer, secs(302), 0),
        Some(Op::KeepAlive(77))
    ));
    m.handle(Event::KeptAlive(DAY), secs(306), 0);
    assert_eq!(m.holding().unwrap().valid_until, Some(secs(302) + DAY));
}

#[test]
fn the_loser_of_a_race_lists_again() {
    let mut m = roomy();
    m.handle(Event::Start, secs(0), 0);
    listed(&mut m, vec![], secs(0));
    assert!(m.handle(Event::Claimed(ClaimOutcome::Lost), secs(0), 0).is_none());
    let at = m.wake_at(secs(0)).unwrap();
    assert!(at <= secs(1));
    assert!(matches!(m.handle(Event::Timer, at, 0), Some(Op::List)));
    assert_eq!(
        claims(&listed(&mut m, vec![others("10.5.1.0-24")], at)).0,
        "10.5.2.0-24"
    );
}

#[test]
fn a_claim_whose_answer_was_lost_is_found_or_repeated_under_the_same_etcd_lease() {
    let mut m = roomy();
    m.handle(Event::Start, secs(0), 0);
    let first = claims(&listed(&mut m, vec![], secs(0)));
    m.handle(Event::Failed, secs(5), 9);
    let at = m.wake_at(secs(5)).unwrap();
    m.handle(Event::Timer, at, 9);
    let again = claims(&listed(&mut m.clone(), vec![], at));
    assert_eq!(first.2, again.2);
    let found = claims(&listed(&mut m, vec![mine("10.5.1.0-24", 5)], at));
    assert_eq!((found.1, found.2), (Expected::Modified(4), LeaseTerms::Keep(5)));
}

#[test]
fn an_exhausted_pool_is_tried_for_ever_and_at_once_when_a_subnet_is_free() {
    let mut m = machine(r#"{"Network":"10.5.0.0/28"}"#);
    m.handle(Event::Start, secs(0), 0);
    let full: Vec<Record> = ["10.5.0.4-30", "10.5.0.8-30", "10.5.0.12-30"]
        .map(others)
        .to_vec();
    let mut now = secs(0);
    for _ in 0..50 {
        assert!(listed(&mut m, full.clone(), now).is_none());
        assert_eq!(m.situation(), Situation::Exhausted);
        let next = m.wake_at(now).unwrap();
        assert!(next > now && next - now <= timing::EXHAUSTED.1);
        now = next;
        assert!(matches!(m.handle(Event::Timer, now, 0), Some(Op::List)));
    }
    listed(&mut m, full.clone(), now);
    m.handle(Event::Freed, now, 7);
    assert!(m.wake_at(now).unwrap() <= now + secs(1));
    now = m.wake_at(now).unwrap();
    m.handle(Event::Timer, now, 0);
    assert_eq!(claims(&listed(&mut m, full[..2].to_vec(), now)).0, "10.5.0.12-30");
}

#[test]
fn an_existing_lease_is_adopted_and_renewed_at_once() {
    let mut m = roomy();
    m.handle(Event::Start, secs(0), 0);
    let flannels = record(
        "10.5.7.0-24",
        Identity {
            node: None,
            ..node(11, 1)
        },
        42,
    );
    let (key, expected, terms) = claims(&listed(&mut m, vec![flannels], secs(0)));
    assert_eq!(key, "10.5.7.0-24");
    assert_eq!((expected, terms), (Expected::Modified(4), LeaseTerms::Keep(42)));
    m.handle(won(42, 5), secs(1), 0);
    assert!(!m.standing(secs(1)).may_add_pods(), "it may end any moment");
    assert!(matches!(
        m.handle(Event::Timer, secs(1), 0),
        Some(Op::KeepAlive(42))
    ));
}

#[test]
fn a_lease_with_another_lifetime_is_exchanged_once() {
    let mut m = roomy();
    m.handle(Event::Start, secs(0), 0);
    listed(&mut m, vec![mine("10.5.7.0-24", 42)], secs(0));
    m.handle(won(42, 4), secs(1), 0);
    m.handle(Event::Timer, secs(1), 0);
    let (key, expected, terms) = claims(&m.handle(Event::KeptAlive(HOUR), secs(1), 1234));
    assert_eq!((key.as_str(), expected), ("10.5.7.0-24", Expected::Modified(4)));
    assert!(matches!(terms, LeaseTerms::Grant { ttl: DAY, lease } if lease != 42));
    m.handle(won(55, 6), secs(2), 0);
    assert!(matches!(
        m.handle(Event::Timer, secs(2), 0),
        Some(Op::KeepAlive(55))
    ));
    assert!(
        m.handle(Event::KeptAlive(DAY + secs(1)), secs(2), 0).is_none(),
        "etcd rounds"
    );
}

#[test]
fn a_reservation_stays_one_and_never_ends() {
    let mut m = roomy();
    m.handle(Event::Start, secs(0), 0);
    let (_, _, terms) = claims(&listed(&mut m, vec![mine("10.5.7.0-24", 0)], secs(0)));
    assert_eq!(terms, LeaseTerms::Keep(0));
    m.handle(won(0, 4), secs(0), 0);
    assert_eq!(m.wake_at(secs(0)), None);
    assert_eq!(m.standing(secs(1_000_000)), Standing::Confirmed);
}

#[test]
fn an_outage_keeps_the_holding_and_is_over_within_five_seconds() {
    let mut m = held();
    let mut now = secs(302);
    for _ in 0..200 {
        assert!(matches!(m.handle(Event::Timer, now, 7), Some(Op::KeepAlive(77))));
        m.handle(Event::Failed, now, 7);
        assert_eq!(m.standing(now), Standing::Confirmed);
        let next = m.wake_at(now).unwrap();
        assert!(next > now && next - now <= secs(3));
        now = next;
    }
    assert_eq!(m.holding().unwrap().valid_until, Some(secs(1) + DAY));
}

#[test]
fn after_a_whole_ttl_without_the_store_no_pod_is_added_until_a_list_confirmed_it() {
    let mut m = held();
    let end = secs(1) + DAY;
    assert_eq!(m.standing(end - secs(1)), Standing::Confirmed);
    m.handle(Event::Timer, secs(302), 0);
    assert_eq!(m.wake_at(secs(302)), Some(end), "the end is news");
    assert_eq!(m.standing(end), Standing::Unconfirmed);
    // etcd was down itself, so the lease lives
    assert!(matches!(
        m.handle(Event::KeptAlive(DAY), end + secs(9), 0),
        Some(Op::List)
    ));
    assert_eq!(m.standing(end + secs(9)), Standing::Unconfirmed);
    let (_, expected, terms) = claims(&listed(&mut m, vec![mine("10.5.1.0-24", 77)], end + secs(9)));
    assert_eq!((expected, terms), (Expected::Modified(4), LeaseTerms::Keep(77)));
    m.handle(won(77, 4), end + secs(9), 0);
    m.handle(Event::Timer, end + secs(9), 0);
    m.handle(Event::KeptAlive(DAY), end + secs(9), 0);
    assert_eq!(m.standing(end + secs(9)), Standing::Confirmed);
}

#[test]
fn an_expired_and_free_subnet_is_created_again() {
    let mut m = held();
    m.handle(Event::Timer, secs(302), 0);
    assert!(matches!(m.handle(Event::Expired, secs(303), 0), Some(Op::List)));
    let (key, expected, terms) = claims(&listed(&mut m, vec![others("10.5.2.0-24")], secs(303)));
    assert_eq!((key.as_str(), expected), ("10.5.1.0-24", Expected::Absent));
    assert!(
        matches!(terms, LeaseTerms::Grant { lease: 77, .. }),
        "one etcd lease a node"
    );
}

fn put(owner: Identity, lease: i64, modified: i64) -> Event {
    Event::OwnPut(OwnPut {
        owner: Some(owner),
        lease,
        modified,
    })
}

#[test]
fn an_expired_and_taken_subnet_belongs_to_its_new_holder() {
    for owner in [node(12, 2), node(11, 2)] {
        let mut m = held();
        assert!(matches!(m.handle(put(owner, 9, 11), secs(3), 0), Some(Op::List)));
        let taken = record("10.5.1.0-24", owner, 9);
        let (key, expected, _) = claims(&listed(&mut m, vec![taken], secs(3)));
        assert_eq!((key.as_str(), expected), ("10.5.2.0-24", Expected::Absent));
        assert_eq!(m.standing(secs(3)), Standing::Taken(owner));
        assert_eq!(m.lost(), ["10.5.1.0-24".parse().unwrap()]);
        assert_eq!(
            m.holding().unwrap().key.to_string(),
            "10.5.1.0-24",
            "pods live there still"
        );
        m.handle(won(78, 20), secs(4), 0);
        assert_eq!(m.holding().unwrap().key.to_string(), "10.5.2.0-24");
        m.handle(Event::Timer, secs(4), 0);
        m.handle(Event::KeptAlive(DAY), secs(4), 0);
        assert_eq!(m.standing(secs(4)), Standing::Confirmed);
        assert_eq!(m.lost().len(), 1);
    }
}

#[test]
fn a_node_of_flannel_that_renews_for_us_is_followed() {
    let mut m = held();
    let flannel = Identity {
        node: None,
        ..node(11, 1)
    };
    assert!(m.handle(put(flannel, 99, 11), secs(3), 0).is_none());
    assert!(matches!(
        m.handle(Event::Timer, secs(3), 0),
        Some(Op::KeepAlive(99))
    ));
}

/// Our identity with an address that we do not have.
fn forged() -> Identity {
    node(66, 1)
}

/// The record is read again and found to be `owner`'s: the claim that follows, and whether it tells of a foreign hand.
fn checked(m: &mut LeaseMachine, owner: Identity, now: Duration) -> (Expected, bool) {
    let stands = record("10.5.1.0-24", owner, 77);
    match m.handle(Event::Listed(vec![stands]), now, 0) {
        Some(Op::Claim {
            expected,
            terms: LeaseTerms::Keep(77),
            published: Some(published),
            ..
        }) => (expected, published.foreign),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_stands_in_our_name_is_put_right_and_no_fight_follows() {
    let mut m = held();
    assert!(matches!(
        m.handle(put(forged(), 77, 11), secs(10), 0),
        Some(Op::List)
    ));
    assert_eq!(checked(&mut m, forged(), secs(10)), (Expected::Modified(4), true));
    m.handle(won(77, 12), secs(10), 0);
    assert_eq!(m.standing(secs(11)), Standing::Confirmed);
    m.handle(Event::Timer, secs(11), 0);
    m.handle(Event::KeptAlive(DAY), secs(11), 0);

    // Again within a minute: it is left there for a while, and no pod is added meanwhile.
    assert!(m.handle(put(forged(), 77, 13), secs(20), 0).is_none());
    assert_eq!(
        (m.situation(), m.standing(secs(20))),
        (Situation::Held, Standing::Taken(forged()))
    );
    assert_eq!(m.wake_at(secs(20)), Some(secs(70)));
    assert!(m.handle(Event::Timer, secs(69), 0).is_none());
    assert!(matches!(m.handle(Event::Timer, secs(70), 0), Some(Op::List)));
    assert_eq!(checked(&mut m, forged(), secs(70)), (Expected::Modified(4), true));
    m.handle(won(77, 14), secs(70), 0);
    assert_eq!(m.standing(secs(70)), Standing::Confirmed);
    m.handle(Event::Timer, secs(70), 0);
    m.handle(Event::KeptAlive(DAY), secs(70), 0);

    // The next time it takes two minutes; whoever puts it right himself ends it.
    assert!(m.handle(put(forged(), 77, 15), secs(80), 0).is_none());
    assert_eq!(m.wake_at(secs(80)), Some(secs(190)));
    assert!(m.handle(put(node(11, 1), 77, 16), secs(90), 0).is_none());
    assert_eq!(m.standing(secs(90)), Standing::Confirmed);
}

#[test]
fn a_record_that_only_was_written_again_is_left_alone() {
    let mut m = held();
    let mine = node(11, 1);
    assert!(matches!(m.handle(put(mine, 77, 11), secs(10), 0), Some(Op::List)));
    let (expected, foreign) = checked(&mut m, mine, secs(10));
    assert_eq!((expected, foreign), (Expected::Modified(4), true));
    // It says what we would write, so the driver writes nothing.
    m.handle(won(77, 4), secs(10), 0);
    assert!(
        matches!(m.handle(put(mine, 77, 12), secs(11), 0), Some(Op::List)),
        "nothing was put right, so the next is looked at as the first was"
    );
}

#[test]
fn one_deletion_is_made_good_and_a_second_within_a_minute_revokes() {
    let mut m = held();
    assert!(matches!(
        m.handle(Event::OwnDeleted(12), secs(10), 0),
        Some(Op::KeepAlive(77))
    ));
    assert!(matches!(
        m.handle(Event::KeptAlive(DAY), secs(10), 0),
        Some(Op::List)
    ));
    assert_eq!(claims(&listed(&mut m, vec![], secs(10))).0, "10.5.1.0-24");
    m.handle(won(77, 13), secs(11), 0);
    m.handle(Event::Timer, secs(11), 0);
    m.handle(Event::KeptAlive(DAY), secs(11), 0);
    let mut later = m.clone();
    m.handle(Event::OwnDeleted(14), secs(60), 0);
    assert!(m.handle(Event::KeptAlive(DAY), secs(60), 0).is_none());
    assert_eq!(
        (m.situation(), m.standing(secs(60))),
        (Situation::Revoked, Standing::Revoked)
    );
    assert!(m.handle(Event::Timer, secs(100_000), 0).is_none());
    assert!(m.holding().is_some(), "pods stay");
    let mut back = m.clone();
    assert!(matches!(m.handle(Event::Resume, secs(61), 0), Some(Op::List)));
    assert!(matches!(
        back.handle(put(node(11, 1), 0, 15), secs(61), 0),
        Some(Op::List)
    ));
    later.handle(Event::OwnDeleted(14), secs(72), 0);
    assert!(matches!(
        later.handle(Event::KeptAlive(DAY), secs(72), 0),
        Some(Op::List)
    ));
}

#[test]
fn expiries_in_a_row_are_no_revocation() {
    let mut m = held();
    for modified in [12, 14, 16] {
        m.handle(Event::OwnDeleted(modified), secs(10), 0);
        assert!(matches!(m.handle(Event::Expired, secs(10), 0), Some(Op::List)));
        listed(&mut m, vec![], secs(10));
        m.handle(won(77, modified + 1), secs(11), 0);
        assert_eq!(m.situation(), Situation::Held);
    }
}

#[test]
fn a_wiped_store_gets_our_record_again() {
    let mut m = held();
    assert!(matches!(m.handle(Event::StoreReset, secs(10), 0), Some(Op::List)));
    assert_eq!(claims(&listed(&mut m, vec![], secs(10))).0, "10.5.1.0-24");
    assert_eq!(m.standing(secs(10)), Standing::Confirmed);
    m.handle(won(77, 2), secs(11), 0);
    assert_eq!(m.holding().unwrap().modified, 2);
}

#[test]
fn a_backup_that_gives_our_subnet_to_another_node_is_not_the_last_word() {
    let mut m = held();
    m.handle(Event::StoreReset, secs(10), 0);
    let mut now = secs(10);
    while now < secs(10) + GRACE {
        assert!(listed(&mut m, vec![others("10.5.1.0-24")], now).is_none());
        assert!(!m.standing(now).may_add_pods());
        assert_eq!(m.holding().unwrap().key.to_string(), "10.5.1.0-24");
        now = m.wake_at(now).unwrap();
        assert!(matches!(m.handle(Event::Timer, now, 0), Some(Op::List)));
    }
    let mut corrected = m.clone();
    assert_eq!(
        claims(&listed(&mut corrected, vec![], now)).0,
        "10.5.1.0-24",
        "its owner corrected it"
    );
    assert_eq!(
        claims(&listed(&mut m, vec![others("10.5.1.0-24")], now)).0,
        "10.5.2.0-24"
    );
    assert_eq!(m.lost().len(), 1);
}

#[test]
fn a_backup_that_gives_us_an_old_subnet_is_corrected() {
    let mut m = held();
    m.handle(Event::StoreReset, secs(10), 0);
    let op = listed(&mut m, vec![mine("10.5.9.0-24", 5)], secs(10));
    drops(&op, Useless::Surplus);
    assert!(matches!(m.handle(Event::Dropped, secs(10), 0), Some(Op::List)));
    assert_eq!(claims(&listed(&mut m, vec![], secs(10))).0, "10.5.1.0-24");
}

#[test]
fn a_run_goes_on_with_what_the_earlier_one_held() {
    let holding = *held().holding().unwrap();
    let mut m = roomy().resuming(holding);
    assert!(matches!(m.handle(Event::Start, secs(50), 0), Some(Op::List)));
    m.handle(Event::Failed, secs(55), 0);
    assert_eq!(m.standing(secs(55)), Standing::Confirmed);
    assert_eq!(m.standing(secs(1) + DAY), Standing::Unconfirmed);
}

#[test]
fn a_node_that_turns_to_dual_stack_keeps_its_ipv4_subnet() {
    let mut m = machine(DUAL);
    m.handle(Event::Start, secs(0), 0);
    let op = listed(&mut m, vec![mine("10.5.9.0-24", 5)], secs(0));
    drops(&op, Useless::NotOffered);
    m.handle(Event::Dropped, secs(0), 0);
    assert_eq!(
        claims(&listed(&mut m, vec![], secs(0))).0,
        "10.5.9.0-24&fd00:5:0:1::-64"
    );
}

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;

/// What our own claim wrote, and what somebody wrote a moment before.
fn race(elder: &str) -> (LeaseMachine, Vec<Record>) {
    let mut m = machine(DUAL);
    m.handle(Event::Start, secs(0), 0);
    let (key, ..) = claims(&listed(&mut m, vec![], secs(0)));
    let claim = m.handle(won(77, 10), secs(1), 0);
    assert!(
        matches!(claim, Some(Op::List)),
        "who was first is not known yet: {claim:?}"
    );
    assert_eq!(
        (m.situation(), m.standing(secs(1))),
        (Situation::Acquiring, Standing::None)
    );
    let mut own = mine(&key, 77);
    own.revisions.created = 10;
    (m, vec![own, others(elder)])
}

#[test]
fn of_two_that_claim_one_half_at_once_the_first_has_it() {
    let (mut m, records) = race("10.5.9.0-24&fd00:5:0:9::-64");
    let op = listed(&mut m, records, secs(2));
    assert_eq!(claims(&op).1, Expected::Modified(4), "nobody was before us");
    m.handle(won(77, 4), secs(3), 0);
    assert_eq!(m.situation(), Situation::Held);

    let (mut m, records) = race("10.5.9.0-24&fd00:5:0:1::-64");
    let elder = vec![records[1].clone()];
    let op = listed(&mut m, records, secs(2));
    drops(&op, Useless::Younger);
    assert!(matches!(m.handle(Event::Dropped, secs(3), 0), Some(Op::List)));
    let (key, _, terms) = claims(&listed(&mut m, elder, secs(3)));
    assert_eq!(
        key, "10.5.1.0-24&fd00:5:0:2::-64",
        "the half that is free is kept"
    );
    assert!(matches!(terms, LeaseTerms::Grant { .. }), "{terms:?}");
    assert!(m.lost().is_empty(), "no pod was ever there");
}

#[test]
fn a_holder_that_is_younger_gives_way_and_says_what_is_stranded() {
    let mut m = held();
    assert!(matches!(m.handle(Event::Clash, secs(3), 0), Some(Op::List)));
    let mut own = mine("10.5.1.0-24", 77);
    own.revisions.created = 10;
    let elder = others("10.5.1.128-25");
    let op = listed(&mut m, vec![own, elder.clone()], secs(3));
    drops(&op, Useless::Younger);
    assert!(matches!(m.standing(secs(3)), Standing::Taken(by) if by == node(12, 2)));
    m.handle(Event::Dropped, secs(4), 0);
    assert_eq!(claims(&listed(&mut m, vec![elder], secs(4))).0, "10.5.2.0-24");
    assert_eq!(m.lost().len(), 1);
}

#[test]
fn echoes_and_old_events_change_nothing() {
    let mut m = held();
    for event in [
        put(node(12, 2), 9, 9),
        put(node(11, 1), 77, 10),
        Event::OwnDeleted(9),
        Event::Claimed(ClaimOutcome::Lost),
        Event::Listed(vec![]),
        Event::UsedRead(vec![]),
        Event::Dropped,
        Event::Freed,
        Event::Resume,
        Event::Timer,
    ] {
        assert!(m.handle(event, secs(3), 0).is_none());
    }
    assert_eq!(m.situation(), Situation::Held);
}
