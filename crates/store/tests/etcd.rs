//! The store on a real etcd: one process for each test, on loopback.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "the lint's exception for tests does not reach helper functions"
)]

use std::time::{Duration, Instant};

use etcd_client::{Client, Permission};
use flannel_store::fixture::{BlackHole, EtcdProcess};
use flannel_store::{
    Created, ErrorKind, EtcdOptions, EtcdStore, Event, KeptAlive, LeaseId, LostReason, NewLease, Password,
    Renewal, Replaced, Secret, Store, TimeToLive, Watch, WatchEnd, WatchItem, follow,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PREFIX: &str = "/coreos.com/network/subnets/";

fn start() -> (EtcdProcess, EtcdStore) {
    let etcd = EtcdProcess::start().unwrap_or_else(|error| panic!("{error}"));
    let store = EtcdStore::connect(etcd.options()).unwrap();
    (etcd, store)
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

async fn next_within(events: &mut Receiver<Event>, secs: u64) -> Event {
    let event = timeout(Duration::from_secs(secs), events.recv()).await;
    event
        .unwrap_or_else(|_| panic!("no event within {secs} s"))
        .expect("the follower ended")
}

async fn next(events: &mut Receiver<Event>) -> Event {
    next_within(events, 30).await
}

/// Reads up to and with the end of a complete state: its keys.
async fn complete_state(events: &mut Receiver<Event>) -> Vec<String> {
    let mut keys = Vec::new();
    loop {
        match next(events).await {
            Event::Init => keys.clear(),
            Event::InitApply(kv) => keys.push(kv.key),
            Event::InitDone { .. } => return keys,
            Event::Lost { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn leases(etcd: &EtcdProcess) -> usize {
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    client.leases().await.unwrap().leases().len()
}

#[tokio::test]
async fn fifty_race_for_one_key_and_one_wins() {
    let (etcd, store) = start();
    let tasks: Vec<_> = (0..50)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                let value = format!("node {i}");
                store
                    .create(&key("10.5.1.0-24"), &value, NewLease::any(600), &[])
                    .await
                    .map(|created| (value, created))
            })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        if let (value, Created::Won { lease, revision }) = task.await.unwrap().unwrap() {
            winners.push((value, lease, revision));
        }
    }
    let [(value, lease, revision)] = winners.as_slice() else {
        panic!("{winners:?}");
    };
    let kv = store.get(&key("10.5.1.0-24")).await.unwrap().0.unwrap();
    assert_eq!(kv.value, value.as_bytes());
    assert_eq!(
        (kv.lease, kv.mod_revision, kv.create_revision),
        (*lease, *revision, *revision)
    );
    assert_eq!(leases(&etcd).await, 1, "the losers' leases are revoked");
}

#[tokio::test]
async fn a_replacement_is_fenced_by_the_revision() {
    let (etcd, store) = start();
    let name = key("10.5.1.0-24");
    let Created::Won { lease, revision } = store.create(&name, "1", NewLease::any(600), &[]).await.unwrap()
    else {
        panic!("lost without a rival");
    };
    let grant = Renewal::Grant(NewLease::any(600));
    assert_eq!(
        store.replace(&name, "2", revision - 1, grant).await.unwrap(),
        Replaced::Lost
    );
    assert_eq!(leases(&etcd).await, 1, "the loser's lease is revoked");
    let Replaced::Won {
        lease: kept,
        revision,
    } = store
        .replace(&name, "2", revision, Renewal::Keep(lease))
        .await
        .unwrap()
    else {
        panic!("lost without a rival");
    };
    assert_eq!(kept, lease);
    let Replaced::Won {
        lease: fresh,
        revision,
    } = store.replace(&name, "3", revision, grant).await.unwrap()
    else {
        panic!("lost without a rival");
    };
    assert_ne!(fresh, lease);
    let Replaced::Won { revision, .. } = store.replace(&name, "4", revision, Renewal::None).await.unwrap()
    else {
        panic!("lost without a rival");
    };
    let kv = store.get(&name).await.unwrap().0.unwrap();
    assert_eq!(
        (kv.value.as_slice(), kv.lease, kv.mod_revision),
        (b"4".as_slice(), LeaseId::NONE, revision)
    );
    assert!(!store.delete_if(&name, revision - 1).await.unwrap());
    assert!(store.delete_if(&name, revision).await.unwrap());
    assert_eq!(store.get(&name).await.unwrap().0, None);
}

#[tokio::test]
async fn leases_live_and_expire() {
    let (_etcd, store) = start();
    let Created::Won { lease, .. } = store
        .create(&key("a"), "1", NewLease::any(600), &[])
        .await
        .unwrap()
    else {
        panic!("lost without a rival");
    };
    assert_eq!(
        store.keep_alive(lease).await.unwrap(),
        KeptAlive::Alive { ttl_secs: 600 }
    );
    let TimeToLive::Remaining { secs, granted_secs } = store.time_to_live(lease).await.unwrap() else {
        panic!("expired at once");
    };
    assert!((590..=600).contains(&secs), "{secs}");
    assert_eq!(granted_secs, 600);
    let gone = LeaseId(4711);
    assert_eq!(store.keep_alive(gone).await.unwrap(), KeptAlive::Expired);
    assert_eq!(store.time_to_live(gone).await.unwrap(), TimeToLive::Expired);
    // One that did live: etcd takes 2 s at the least for an election timeout of 1 s.
    let Created::Won { lease, .. } = store.create(&key("b"), "1", NewLease::any(1), &[]).await.unwrap()
    else {
        panic!("lost without a rival");
    };
    let start = Instant::now();
    while store.get(&key("b")).await.unwrap().0.is_some() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the key outlives its lease"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(store.keep_alive(lease).await.unwrap(), KeptAlive::Expired);
}

#[tokio::test]
async fn many_keys_and_a_megabyte_of_junk_are_listed_at_one_revision() {
    let (_etcd, store) = start();
    let puts: Vec<_> = (0..2500)
        .map(|i| (key(&format!("{i:04}")), "x".to_owned()))
        .collect();
    for chunk in puts.chunks(128) {
        store.put_all(chunk).await.unwrap();
    }
    let junk = "j".repeat(1 << 20);
    store.put(&key("junk"), &junk).await.unwrap();
    store.put("/coreos.com/network/subnets-old", "x").await.unwrap();
    let listing = store.list(PREFIX).await.unwrap();
    assert_eq!(listing.kvs.len(), 2501);
    assert!(listing.kvs.windows(2).all(|pair| pair[0].key < pair[1].key));
    assert_eq!(listing.kvs.last().unwrap().value.len(), 1 << 20);
    assert_eq!(
        store.get("/coreos.com/network/config").await.unwrap(),
        (None, listing.revision)
    );
}

/// Writes keys, as many as a cluster of this size has.
async fn put_many(store: &EtcdStore, count: usize) {
    let puts: Vec<_> = (0..count)
        .map(|i| (key(&format!("{i:05}")), "x".repeat(250)))
        .collect();
    for chunk in puts.chunks(128) {
        store.put_all(chunk).await.unwrap();
    }
}

#[tokio::test]
async fn ten_thousand_keys_are_one_call() {
    let (etcd, store) = start();
    put_many(&store, 10_000).await;
    let before = etcd.asked("Range").unwrap();
    assert_eq!(store.list(PREFIX).await.unwrap().kvs.len(), 10_000);
    let after = etcd.asked("Range").unwrap();
    assert_eq!(after.calls - before.calls, 1);
}

/// Whoever follows several ranges and renews a lease has two streams open, however long he does.
#[tokio::test]
async fn all_watches_share_a_stream_and_renewals_another() {
    let (etcd, store) = start();
    let Created::Won { lease, .. } = store
        .create(&key("a"), "1", NewLease::any(600), &[])
        .await
        .unwrap()
    else {
        panic!("lost without a rival");
    };
    let (_one, mut leases) = follow(store.clone(), PREFIX.to_owned());
    let (_two, mut config) = follow(store.clone(), "/coreos.com/network/config".to_owned());
    let (three, mut services) = follow(store.clone(), "/coreos.com/network/services/".to_owned());
    assert_eq!(complete_state(&mut leases).await, [key("a")]);
    assert!(complete_state(&mut config).await.is_empty());
    assert!(complete_state(&mut services).await.is_empty());
    for n in 0..20 {
        assert_eq!(
            store.keep_alive(lease).await.unwrap(),
            KeptAlive::Alive { ttl_secs: 600 }
        );
        // Each range has its own changes and no others.
        store.put(&key("b"), &n.to_string()).await.unwrap();
        store.put("/coreos.com/network/config", "{}").await.unwrap();
        store.put("/coreos.com/network/services/x", "{}").await.unwrap();
        assert!(matches!(next(&mut leases).await, Event::Apply(kv) if kv.key == key("b")));
        assert!(matches!(next(&mut config).await, Event::Apply(kv) if kv.key.ends_with("/config")));
        assert!(matches!(next(&mut services).await, Event::Apply(kv) if kv.key.ends_with("/x")));
    }
    let watches = etcd.asked("Watch").unwrap();
    assert_eq!((watches.calls, watches.messages), (1, 3));
    let renewals = etcd.asked("LeaseKeepAlive").unwrap();
    // The client library keeps the first answer of a stream to itself.
    assert_eq!((renewals.calls, renewals.messages), (1, 21));
    assert_eq!(etcd.asked("LeaseTimeToLive").unwrap().calls, 0);

    // One that ends leaves the stream to the others.
    three.abort();
    drop(services);
    let (_four, mut services) = follow(store.clone(), "/coreos.com/network/services/".to_owned());
    assert_eq!(complete_state(&mut services).await.len(), 1);
    store.put(&key("c"), "1").await.unwrap();
    assert!(matches!(next(&mut leases).await, Event::Apply(kv) if kv.key == key("c")));
    assert_eq!(etcd.asked("Watch").unwrap().calls, 1);
}

/// A stream of renewals that broke is opened again within the same call; an answer is never taken for that to another question.
#[tokio::test]
async fn renewals_go_on_after_a_restart_and_a_freeze() {
    let (mut etcd, store) = start();
    let ttl = NewLease::any(600);
    let Created::Won { lease, .. } = store.create(&key("a"), "1", ttl, &[]).await.unwrap() else {
        panic!("lost without a rival");
    };
    let alive = KeptAlive::Alive { ttl_secs: 600 };
    assert_eq!(store.keep_alive(lease).await.unwrap(), alive);
    etcd.kill();
    etcd.restart().unwrap();
    assert_eq!(store.keep_alive(lease).await.unwrap(), alive);
    etcd.freeze();
    let asked = Instant::now();
    let error = store.keep_alive(lease).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
    etcd.thaw();
    assert_eq!(store.keep_alive(lease).await.unwrap(), alive);
    assert_eq!(store.keep_alive(LeaseId(4711)).await.unwrap(), KeptAlive::Expired);
}

/// Many ask for a sign of life at once: one question is sent, and after fresh news none.
#[tokio::test]
async fn a_sign_of_life_serves_all_watches() {
    let (etcd, store) = start();
    let from = store.list(PREFIX).await.unwrap().revision + 1;
    let mut watches = Vec::new();
    for prefix in [PREFIX, "/a/", "/b/"] {
        let mut watch = store.watch(prefix, from).await.unwrap();
        assert!(matches!(watch.next().await.unwrap(), WatchItem::Started(_)));
        watches.push(watch);
    }
    for watch in &mut watches {
        watch.request_progress().await.unwrap();
    }
    for watch in &mut watches {
        assert!(matches!(watch.next().await.unwrap(), WatchItem::Alive(_)));
    }
    let asked = etcd.asked("Watch").unwrap();
    assert_eq!(
        (asked.calls, asked.messages),
        (1, 3),
        "nothing to ask: etcd was heard just now"
    );
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    for watch in &mut watches {
        watch.request_progress().await.unwrap();
    }
    for watch in &mut watches {
        let item = timeout(Duration::from_secs(30), watch.next()).await;
        assert!(matches!(item, Ok(Ok(WatchItem::Alive(_)))), "{item:?}");
    }
    let asked = etcd.asked("Watch").unwrap();
    assert_eq!((asked.calls, asked.messages), (1, 4), "one question for all");
}

/// A watcher that etcd ends or refuses takes none of the others with it.
#[tokio::test]
async fn one_watch_that_ends_leaves_the_others() {
    let (etcd, plain) = start();
    let mut admin = Client::connect([etcd.endpoint()], None).await.unwrap();
    plain.put(&key("a"), "1").await.unwrap();
    let late = plain.put("/other/a", "1").await.unwrap();
    admin.compact(late, None).await.unwrap();
    for user in ["root", "node"] {
        admin.user_add(user, "secret", None).await.unwrap();
        admin.role_add(user).await.unwrap();
        admin.user_grant_role(user, user).await.unwrap();
    }
    let permission = Permission::read_write("/coreos.com/network/").with_prefix();
    admin.role_grant_permission("node", permission).await.unwrap();
    admin.auth_enable().await.unwrap();
    let store = EtcdStore::connect(EtcdOptions {
        username: Some("node".to_owned()),
        password: Some(Password::Text(Secret::new("secret"))),
        ..etcd.options()
    })
    .unwrap();
    let mut good = store.watch(PREFIX, late + 1).await.unwrap();
    assert!(matches!(good.next().await, Ok(WatchItem::Started(_))));
    let mut compacted = store.watch(PREFIX, 1).await.unwrap();
    assert!(matches!(compacted.next().await, Ok(WatchItem::Started(_))));
    assert_eq!(compacted.next().await.unwrap_err(), WatchEnd::Compacted);
    let mut refused = store.watch("/other/", late + 1).await.unwrap();
    let end = refused.next().await.unwrap_err();
    assert!(
        matches!(&end, WatchEnd::Cancelled(why) if why.contains("permission denied")),
        "{end:?}"
    );
    let mut another = store.watch(PREFIX, late + 1).await.unwrap();
    assert!(matches!(another.next().await, Ok(WatchItem::Started(_))));
    store.put(&key("b"), "1").await.unwrap();
    for watch in [&mut good, &mut another] {
        assert!(matches!(watch.next().await, Ok(WatchItem::Changes(changes)) if changes.len() == 1));
    }
    // The refused one may have been refused for a token that is over, so what came behind it has a stream with a fresh one.
    assert_eq!(etcd.asked("Watch").unwrap().calls, 2);
}

#[tokio::test]
async fn more_junk_than_one_message_holds_is_listed_all_the_same() {
    let (_etcd, store) = start();
    let junk = "j".repeat(1_400_000);
    // 60 × 1.4 MB is more than the decode limit of 64 MiB.
    for i in 0..60 {
        store.put(&key(&format!("{i:02}")), &junk).await.unwrap();
    }
    assert_eq!(store.list(PREFIX).await.unwrap().kvs.len(), 60);
}

#[tokio::test]
async fn a_transaction_that_is_too_long_says_what_to_do() {
    let (_etcd, store) = start();
    let puts: Vec<_> = (0..129).map(|i| (format!("k{i}"), "x".to_owned())).collect();
    let error = store.put_all(&puts).await.unwrap_err();
    assert!(error.to_string().contains("--max-txn-ops"), "{error}");
}

#[tokio::test]
async fn changes_are_followed() {
    let (_etcd, store) = start();
    store.put(&key("a"), "1").await.unwrap();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    assert_eq!(complete_state(&mut events).await, [key("a")]);
    store.put(&key("b"), "2").await.unwrap();
    let Event::Apply(kv) = next(&mut events).await else {
        panic!("no Apply");
    };
    assert_eq!((kv.key, kv.value), (key("b"), b"2".to_vec()));
    let revision = store.delete(&key("a")).await.unwrap();
    assert_eq!(
        next(&mut events).await,
        Event::Delete {
            key: key("a"),
            mod_revision: revision
        }
    );
}

#[tokio::test]
async fn kill_and_restart_lose_nothing() {
    let (mut etcd, store) = start();
    store.put(&key("a"), "1").await.unwrap();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    complete_state(&mut events).await;
    etcd.kill();
    let lost = next_within(&mut events, 10).await;
    assert!(matches!(lost, Event::Lost { .. }), "{lost:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    etcd.restart().unwrap();
    store.put(&key("b"), "2").await.unwrap();
    let resumed = next(&mut events).await;
    assert!(matches!(resumed, Event::Resumed { .. }), "{resumed:?}");
    let Event::Apply(kv) = next(&mut events).await else {
        panic!("no Apply");
    };
    assert_eq!(kv.key, key("b"));
}

#[tokio::test]
async fn a_frozen_server_is_noticed_and_calls_do_not_hang() {
    let (etcd, store) = start();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    complete_state(&mut events).await;
    let frozen = Instant::now();
    etcd.freeze();
    let error = store.get("/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(
        frozen.elapsed() < Duration::from_secs(7),
        "{:?}",
        frozen.elapsed()
    );
    let lost = next_within(&mut events, 25).await;
    assert!(matches!(lost, Event::Lost { .. }), "{lost:?}");
    assert!(
        frozen.elapsed() < Duration::from_secs(21),
        "{:?}",
        frozen.elapsed()
    );
    etcd.thaw();
    let resumed = next(&mut events).await;
    assert!(matches!(resumed, Event::Resumed { .. }), "{resumed:?}");
    store.put(&key("a"), "1").await.unwrap();
    assert!(matches!(next(&mut events).await, Event::Apply(_)));
}

/// A road to etcd that can be closed.
struct Proxy {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn open(port: u16, target: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            // Dropped with the task, which closes every connection.
            let mut connections = JoinSet::new();
            loop {
                let (mut inner, _) = listener.accept().await.unwrap();
                let target = target.clone();
                connections.spawn(async move {
                    let mut outer = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
                });
            }
        });
        Self { port, task }
    }

    async fn close(self) -> u16 {
        self.task.abort();
        let _ = self.task.await;
        self.port
    }
}

#[tokio::test]
async fn compaction_while_the_connection_is_away_reads_everything_again() {
    let (etcd, direct) = start();
    let target = etcd.endpoint().replace("http://", "");
    let proxy = Proxy::open(0, target.clone()).await;
    for name in ["a", "b"] {
        direct.put(&key(name), "1").await.unwrap();
    }
    let distant = EtcdStore::connect(EtcdOptions {
        endpoints: vec![format!("http://127.0.0.1:{}", proxy.port)],
        ..EtcdOptions::default()
    });
    let (_task, mut events) = follow(distant.unwrap(), PREFIX.to_owned());
    assert_eq!(complete_state(&mut events).await, [key("a"), key("b")]);
    let port = proxy.close().await;
    assert!(matches!(next(&mut events).await, Event::Lost { .. }));
    direct.delete(&key("a")).await.unwrap();
    let revision = direct.put(&key("c"), "1").await.unwrap();
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    client.compact(revision, None).await.unwrap();
    let _proxy = Proxy::open(port, target).await;
    assert_eq!(complete_state(&mut events).await, [key("b"), key("c")]);
    direct.put(&key("d"), "1").await.unwrap();
    assert!(matches!(next(&mut events).await, Event::Apply(kv) if kv.key == key("d")));
}

#[tokio::test]
async fn a_wiped_etcd_is_read_again() {
    let (mut etcd, store) = start();
    for i in 0..20 {
        store.put(&key("a"), &i.to_string()).await.unwrap();
    }
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    assert_eq!(complete_state(&mut events).await, [key("a")]);
    etcd.kill();
    etcd.wipe().unwrap();
    etcd.restart().unwrap();
    let mut went_back = false;
    loop {
        match next(&mut events).await {
            Event::Lost { reason } => went_back |= matches!(reason, LostReason::WentBack { .. }),
            Event::Init => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(went_back);
    let done = next(&mut events).await;
    assert!(matches!(done, Event::InitDone { .. }), "{done:?}");
}

#[tokio::test]
async fn an_etcd_that_is_away_is_told_with_its_address() {
    let (mut etcd, store) = start();
    etcd.kill();
    let start = Instant::now();
    let error = store.get("/coreos.com/network/config").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read /coreos.com/network/config from etcd at {}: connection refused; \
             is etcd running and reachable from this node?",
            etcd.endpoint()
        )
    );
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_dead_endpoint_beside_a_living_one_is_passed_over() {
    let (mut dead, _) = start();
    dead.kill();
    let (etcd, _) = start();
    let hole = BlackHole::open().unwrap();
    let endpoints = vec![dead.endpoint(), hole.endpoint().unwrap(), etcd.endpoint()];
    let store = EtcdStore::connect(EtcdOptions {
        endpoints,
        ..EtcdOptions::default()
    })
    .unwrap();
    let start = Instant::now();
    store.put("/k", "1").await.unwrap();
    // A third of four seconds for the black hole, then the living one.
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..20 {
        store.put("/k", "2").await.unwrap();
    }
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "the living one is preferred: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_user_is_authenticated_and_a_wrong_password_is_told() {
    let (etcd, plain) = start();
    let with = |password: &str| {
        EtcdStore::connect(EtcdOptions {
            username: Some("root".to_owned()),
            password: Some(Password::Text(Secret::new(password))),
            ..etcd.options()
        })
        .unwrap()
    };
    // Not switched on yet: a user name is no obstacle.
    with("secret").put("/k", "1").await.unwrap();
    let mut admin = Client::connect([etcd.endpoint()], None).await.unwrap();
    admin.user_add("root", "secret", None).await.unwrap();
    admin.role_add("root").await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.auth_enable().await.unwrap();
    let store = with("secret");
    store.put("/k", "2").await.unwrap();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    complete_state(&mut events).await;
    for refused in [
        with("wrong").get("/k").await.unwrap_err(),
        plain.get("/k").await.unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::Auth, "{refused}");
        assert!(!refused.to_string().contains("wrong"), "{refused}");
    }
}

#[tokio::test]
async fn tls_with_a_ca_alone_and_with_a_client_certificate() {
    let etcd = EtcdProcess::start_with_tls(false).unwrap_or_else(|error| panic!("{error}"));
    let ca_only = EtcdOptions {
        cert_file: None,
        key_file: None,
        ..etcd.options()
    };
    let store = EtcdStore::connect(ca_only.clone()).unwrap();
    store.put("/k", "1").await.unwrap();
    let untrusted = EtcdStore::connect(EtcdOptions {
        ca_file: None,
        ..ca_only
    })
    .unwrap();
    let error = untrusted.get("/k").await.unwrap_err();
    assert!(error.to_string().contains("--etcd-cafile"), "{error}");

    let etcd = EtcdProcess::start_with_tls(true).unwrap_or_else(|error| panic!("{error}"));
    EtcdStore::connect(etcd.options())
        .unwrap()
        .put("/k", "1")
        .await
        .unwrap();
    let without = EtcdOptions {
        cert_file: None,
        key_file: None,
        ..etcd.options()
    };
    let error = EtcdStore::connect(without).unwrap().get("/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn an_outage_of_the_store_is_a_reason_that_can_be_read() {
    let (mut etcd, store) = start();
    etcd.kill();
    let (_task, mut events) = follow(store, PREFIX.to_owned());
    let lost = next(&mut events).await;
    let Event::Lost { reason } = lost else {
        panic!("{lost:?}");
    };
    assert!(matches!(&reason, LostReason::Failed(_)), "{reason}");
    assert!(
        reason
            .to_string()
            .contains("is etcd running and reachable from this node?"),
        "{reason}"
    );
    etcd.restart().unwrap();
    assert!(complete_state(&mut events).await.is_empty());
}
