//! `follow` on the store in memory, with paused time.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "the lint's exception for tests does not reach helper functions"
)]

use std::time::Duration;

use flannel_store::memory::MemoryStore;
use flannel_store::{ErrorKind, Event, LeaseId, LostReason, NewLease, Store, StoreError, WatchEnd, follow};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout};

const PREFIX: &str = "/n/subnets/";

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

async fn next(events: &mut Receiver<Event>) -> Event {
    let event = timeout(Duration::from_secs(120), events.recv()).await;
    event.expect("no event within 120 s").expect("the follower ended")
}

/// Nothing may be said for this long.
async fn quiet(events: &mut Receiver<Event>, secs: u64) {
    if let Ok(event) = timeout(Duration::from_secs(secs), events.recv()).await {
        panic!("unexpected {event:?}");
    }
}

/// A short form to compare with.
fn short(event: &Event) -> String {
    match event {
        Event::Init => "init".to_owned(),
        Event::InitApply(kv) => format!(
            "init {} {}",
            &kv.key[PREFIX.len()..],
            String::from_utf8_lossy(&kv.value)
        ),
        Event::InitDone { .. } => "done".to_owned(),
        Event::Apply(kv) => format!(
            "{} {}",
            &kv.key[PREFIX.len()..],
            String::from_utf8_lossy(&kv.value)
        ),
        Event::Delete { key, .. } => format!("-{}", &key[PREFIX.len()..]),
        Event::Lost { .. } => "lost".to_owned(),
        Event::Resumed { .. } => "resumed".to_owned(),
    }
}

async fn expect(events: &mut Receiver<Event>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(short(&next(events).await), *expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_state_and_then_its_changes() {
    let store = MemoryStore::new();
    store.put(&key("a"), "1").await.unwrap();
    store.put("/n/subnets-old", "x").await.unwrap();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "init a 1", "done"]).await;
    store.put(&key("b"), "2").await.unwrap();
    store.put("/n/config", "x").await.unwrap();
    store.put(&key("a"), "3").await.unwrap();
    store.delete(&key("b")).await.unwrap();
    expect(&mut events, &["b 2", "a 3", "-b"]).await;
    // Signs of life in between are nobody's business.
    quiet(&mut events, 600).await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_lease_is_a_deletion() {
    let store = MemoryStore::new();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "done"]).await;
    let start = Instant::now();
    store
        .create(&key("a"), "1", NewLease::any(30), &[])
        .await
        .unwrap();
    expect(&mut events, &["a 1", "-a"]).await;
    assert_eq!(start.elapsed().as_secs(), 30);
    assert_eq!(store.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_and_the_watch_goes_on_where_it_ended() {
    let store = MemoryStore::new();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "done"]).await;
    store.fail_calls(Some(ErrorKind::Unreachable));
    store.end_watches(WatchEnd::Closed);
    expect(&mut events, &["lost"]).await;
    quiet(&mut events, 600).await;
    store.fail_calls(None);
    store.put(&key("a"), "1").await.unwrap();
    let back = Instant::now();
    expect(&mut events, &["resumed", "a 1"]).await;
    assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
    store.put(&key("a"), "2").await.unwrap();
    expect(&mut events, &["a 2"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_once_in_an_outage() {
    let store = MemoryStore::new();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "done"]).await;
    store.fail_calls(Some(ErrorKind::Unreachable));
    store.end_watches(WatchEnd::Closed);
    expect(&mut events, &["lost"]).await;
    quiet(&mut events, 60).await;
    store.fail_calls(Some(ErrorKind::Auth));
    expect(&mut events, &["lost"]).await;
    quiet(&mut events, 600).await;
    store.fail_calls(None);
    expect(&mut events, &["resumed"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_the_start_is_told_and_waited_for() {
    let store = MemoryStore::new();
    store.put_leased(&key("a"), "1", 10_000);
    store.fail_calls(Some(ErrorKind::Unreachable));
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    let lost = next(&mut events).await;
    let Event::Lost {
        reason: LostReason::Failed(error),
    } = lost
    else {
        panic!("{lost:?}");
    };
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    quiet(&mut events, 600).await;
    store.fail_calls(None);
    expect(&mut events, &["init", "init a 1", "done"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_watch_is_no_hot_loop() {
    let store = MemoryStore::new();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "done"]).await;
    // Each new watch starts well and is ended at once.
    let end = Instant::now() + Duration::from_secs(300);
    while Instant::now() < end {
        store.end_watches(WatchEnd::Cancelled("again".to_owned()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // 0.2, 0.4, … 3 s, each shortened by up to a half: about one in 1.5 to 3 s.
    let started = store.watches_started();
    assert!((90..=210).contains(&started), "{started}");
    expect(&mut events, &["lost", "resumed"]).await;
}

#[tokio::test(start_paused = true)]
async fn compaction_reads_everything_again() {
    let store = MemoryStore::new();
    store.put(&key("a"), "1").await.unwrap();
    store.put(&key("b"), "1").await.unwrap();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "init a 1", "init b 1", "done"]).await;
    store.fail_calls(Some(ErrorKind::Unreachable));
    store.end_watches(WatchEnd::Closed);
    expect(&mut events, &["lost"]).await;
    store.fail_calls(None);
    store.delete(&key("a")).await.unwrap();
    store.put(&key("b"), "2").await.unwrap();
    store.compact();
    expect(&mut events, &["init", "init b 2", "done"]).await;
    store.put(&key("b"), "3").await.unwrap();
    expect(&mut events, &["b 3"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_wiped_store_is_told_as_such_and_read_again() {
    let store = MemoryStore::new();
    for i in 0..5 {
        store.put(&key("a"), &i.to_string()).await.unwrap();
    }
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "init a 4", "done"]).await;
    store.wipe();
    store.put(&key("b"), "1").await.unwrap();
    let mut lost = Vec::new();
    loop {
        match next(&mut events).await {
            Event::Lost { reason } => lost.push(reason),
            Event::Init => break,
            other => panic!("{other:?}"),
        }
    }
    let [
        LostReason::Ended(WatchEnd::Closed),
        LostReason::WentBack { before, now },
    ] = lost.as_slice()
    else {
        panic!("{lost:?}");
    };
    assert!(now.revision < before.revision);
    expect(&mut events, &["init b 1", "done"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_lost_within_a_minute() {
    let store = MemoryStore::new();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "done"]).await;
    let start = Instant::now();
    store.freeze(true);
    let lost = next(&mut events).await;
    assert!(
        matches!(
            lost,
            Event::Lost {
                reason: LostReason::Silent(_)
            }
        ),
        "{lost:?}"
    );
    assert!(
        start.elapsed() <= Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
    store.freeze(false);
    expect(&mut events, &["resumed"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_receiver_ends_the_task() {
    let store = MemoryStore::new();
    let (task, events) = follow(store.clone(), PREFIX.to_owned());
    drop(events);
    timeout(Duration::from_secs(1), task)
        .await
        .expect("still running")
        .unwrap();
    // The same in the middle of an outage.
    store.fail_calls(Some(ErrorKind::Timeout));
    let (task, mut events) = follow(store, PREFIX.to_owned());
    expect(&mut events, &["lost"]).await;
    drop(events);
    timeout(Duration::from_secs(1), task)
        .await
        .expect("still running")
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_loses_nothing() {
    let store = MemoryStore::new();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    expect(&mut events, &["init", "done"]).await;
    for i in 0..5000 {
        store.put(&key("a"), &i.to_string()).await.unwrap();
        tokio::task::yield_now().await;
    }
    for i in 0..5000 {
        assert_eq!(short(&next(&mut events).await), format!("a {i}"));
    }
}

#[tokio::test(start_paused = true)]
async fn writes_of_the_memory_store_are_fenced() {
    let store = MemoryStore::new();
    let ttl = NewLease::any(60);
    assert!(matches!(
        store.create("k", "1", ttl, &[]).await.unwrap(),
        flannel_store::Created::Won { .. }
    ));
    assert_eq!(
        store.create("k", "2", ttl, &[]).await.unwrap(),
        flannel_store::Created::Lost
    );
    assert_eq!(store.leases(), 1);
    let (kv, _) = store.get("k").await.unwrap();
    let seen = kv.unwrap().mod_revision;
    let renewal = flannel_store::Renewal::Grant(NewLease::any(60));
    assert_eq!(
        store.replace("k", "3", seen - 1, renewal).await.unwrap(),
        flannel_store::Replaced::Lost
    );
    store.lose_answers(true);
    let lost: StoreError = store.replace("k", "3", seen, renewal).await.unwrap_err();
    assert!(lost.kind().is_ambiguous());
    store.lose_answers(false);
    let (kv, _) = store.get("k").await.unwrap();
    let kv = kv.unwrap();
    assert_eq!(
        (kv.value.as_slice(), kv.lease == LeaseId::NONE),
        (b"3".as_slice(), false)
    );
    assert!(!store.delete_if("k", seen).await.unwrap());
    assert!(store.delete_if("k", kv.mod_revision).await.unwrap());
}
