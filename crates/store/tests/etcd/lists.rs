//! Complete lists, whatever is in them.

use flannel_store::{EtcdStore, Store};

use crate::support::{PREFIX, key, start};

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
