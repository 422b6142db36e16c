//! Fenced writes, and the leases below them.

use std::time::{Duration, Instant};

use flannel_store::{Created, KeptAlive, LeaseId, NewLease, Renewal, Replaced, Store, TimeToLive};

use crate::support::{created, key, leases, start};

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
    let (lease, revision) = created(&store, &name, 600).await;
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
    let (lease, _) = created(&store, &key("a"), 600).await;
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
    let (lease, _) = created(&store, &key("b"), 1).await;
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
async fn a_transaction_that_is_too_long_says_what_to_do() {
    let (_etcd, store) = start();
    let puts: Vec<_> = (0..129).map(|i| (format!("k{i}"), "x".to_owned())).collect();
    let error = store.put_all(&puts).await.unwrap_err();
    assert!(error.to_string().contains("--max-txn-ops"), "{error}");
}
