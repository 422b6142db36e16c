//! Watches and renewals, and the streams that they share.

use std::time::{Duration, Instant};

use etcd_client::{Client, Permission};
use flannel_store::{
    ErrorKind, EtcdOptions, EtcdStore, Event, KeptAlive, LeaseId, Password, Secret, Store, Watch, WatchEnd,
    WatchItem, follow,
};
use tokio::time::timeout;

use crate::support::{PREFIX, complete_state, created, key, next, start};

/// Whoever follows several ranges and renews a lease has two streams open, however long he does.
#[tokio::test]
async fn all_watches_share_a_stream_and_renewals_another() {
    let (etcd, store) = start();
    let (lease, _) = created(&store, &key("a"), 600).await;
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

/// A host whose address changed: every stream and every call goes over a new connection, and nothing is missed.
#[tokio::test]
async fn connections_that_are_given_up_are_made_anew() {
    let (etcd, store) = start();
    let (lease, _) = created(&store, &key("a"), 600).await;
    let (_one, mut leases) = follow(store.clone(), PREFIX.to_owned());
    complete_state(&mut leases).await;
    let alive = KeptAlive::Alive { ttl_secs: 600 };
    assert_eq!(store.keep_alive(lease).await.unwrap(), alive);
    store.reconnect().await;
    let lost = next(&mut leases).await;
    assert!(
        matches!(&lost, Event::Lost { reason } if reason.to_string().contains("address changed")),
        "{lost:?}"
    );
    store.put(&key("b"), "2").await.unwrap();
    assert_eq!(store.keep_alive(lease).await.unwrap(), alive);
    let resumed = next(&mut leases).await;
    assert!(matches!(resumed, Event::Resumed { .. }), "{resumed:?}");
    assert!(matches!(next(&mut leases).await, Event::Apply(kv) if kv.key == key("b")));
    assert_eq!(etcd.asked("Watch").unwrap().calls, 2);
    assert_eq!(etcd.asked("LeaseKeepAlive").unwrap().calls, 2);
}

/// A stream of renewals that broke is opened again within the same call; an answer is never taken for that to another question.
#[tokio::test]
async fn renewals_go_on_after_a_restart_and_a_freeze() {
    let (mut etcd, store) = start();
    let (lease, _) = created(&store, &key("a"), 600).await;
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
