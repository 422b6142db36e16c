//! A node that gets other addresses.

use super::*;

#[test]
fn another_address_is_written_at_once_fenced_by_what_was_seen_last() {
    let mut m = held();
    assert!(
        m.handle(Event::Moved(node(11, 1)), secs(3), 0).is_none(),
        "no news"
    );
    let (key, expected, terms) = claims(&m.handle(Event::Moved(node(99, 1)), secs(3), 0));
    assert_eq!(
        (key.as_str(), expected, terms),
        ("10.5.1.0-24", Expected::Modified(10), LeaseTerms::Keep(77))
    );
    assert_eq!(
        m.standing(secs(3)),
        Standing::Confirmed,
        "pods are added meanwhile"
    );
    assert!(m.handle(won(77, 12), secs(3), 0).is_none());
    assert_eq!(m.situation(), Situation::Held);
    // What the watch says of our own write is no news, and the record is renewed as before.
    assert!(m.handle(put(node(99, 1), 77, 12), secs(3), 0).is_none());
    assert!(matches!(
        m.handle(Event::Timer, secs(3), 0),
        Some(Op::KeepAlive(77))
    ));
}

#[test]
fn who_was_faster_is_found_by_a_list() {
    let mut m = held();
    m.handle(Event::Moved(node(99, 1)), secs(3), 0);
    assert!(m.handle(Event::Claimed(ClaimOutcome::Lost), secs(3), 0).is_none());
    let at = m.wake_at(secs(3)).unwrap();
    assert!(matches!(m.handle(Event::Timer, at, 0), Some(Op::List)));
    // Our own record with the address of before, written by another hand: it is ours by its identity, and is written again.
    let op = m.handle(Event::Listed(vec![mine("10.5.1.0-24", 77)]), at, 0);
    let Some(Op::Claim {
        published: Some(published),
        ..
    }) = &op
    else {
        panic!("{op:?}")
    };
    assert_eq!(Identity::of(&published.value), node(11, 1));
    // Another node's is theirs.
    let mut m = held();
    m.handle(Event::Moved(node(99, 1)), secs(3), 0);
    m.handle(Event::Failed, secs(3), 0);
    let at = m.wake_at(secs(3)).unwrap();
    m.handle(Event::Timer, at, 0);
    let op = listed(&mut m, vec![others("10.5.1.0-24")], at);
    assert_eq!(claims(&op).0, "10.5.2.0-24");
}

#[test]
fn a_change_during_a_write_is_written_after_it() {
    let mut m = held();
    m.handle(Event::Moved(node(98, 1)), secs(3), 0);
    assert!(m.handle(Event::Moved(node(99, 1)), secs(3), 0).is_none());
    let again = m.handle(won(77, 12), secs(3), 0);
    assert_eq!(claims(&again).1, Expected::Modified(12));
    assert!(m.handle(won(77, 13), secs(3), 0).is_none());
}

#[test]
fn before_there_is_a_lease_it_only_is_another_node() {
    let mut m = roomy();
    m.handle(Event::Start, secs(0), 0);
    assert!(m.handle(Event::Moved(node(99, 1)), secs(0), 0).is_none());
    assert_eq!(claims(&listed(&mut m, vec![], secs(0))).0, "10.5.1.0-24");
}

#[test]
fn without_an_identity_of_its_own_a_node_knows_its_record_by_the_former_address() {
    let nameless = |last| Identity {
        node: None,
        ..node(last, 1)
    };
    let mut m = LeaseMachine {
        identity: nameless(11),
        ..held()
    };
    m.handle(Event::Moved(nameless(99)), secs(3), 0);
    // Whether it was written nobody knows.
    for (says, lease) in [(11, 77), (99, 77)] {
        m.handle(Event::Failed, secs(3), 0);
        let at = m.wake_at(secs(3)).unwrap();
        assert!(matches!(m.handle(Event::Timer, at, 0), Some(Op::List)));
        let op = listed(&mut m, vec![record("10.5.1.0-24", nameless(says), lease)], at);
        assert_eq!(claims(&op).0, "10.5.1.0-24", "the record with address {says}");
    }
    m.handle(won(77, 12), secs(9), 0);
    // From then on the former address is anybody's.
    m.handle(Event::Clash, secs(9), 0);
    let op = listed(&mut m, vec![record("10.5.1.0-24", nameless(11), 5)], secs(9));
    assert_eq!(claims(&op).0, "10.5.2.0-24");
}
