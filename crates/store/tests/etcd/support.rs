//! What the tests share.

use std::time::Duration;

use etcd_client::Client;
use flannel_store::fixture::EtcdProcess;
use flannel_store::{Created, EtcdStore, Event, LeaseId, NewLease, Revision, Store};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

pub const PREFIX: &str = "/coreos.com/network/subnets/";

pub fn start() -> (EtcdProcess, EtcdStore) {
    let etcd = EtcdProcess::start().unwrap_or_else(|error| panic!("{error}"));
    let store = EtcdStore::connect(etcd.options()).unwrap();
    (etcd, store)
}

pub fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

pub async fn next_within(events: &mut Receiver<Event>, secs: u64) -> Event {
    let event = timeout(Duration::from_secs(secs), events.recv()).await;
    event
        .unwrap_or_else(|_| panic!("no event within {secs} s"))
        .expect("the follower ended")
}

pub async fn next(events: &mut Receiver<Event>) -> Event {
    next_within(events, 30).await
}

/// Reads up to and with the end of a complete state: its keys.
pub async fn complete_state(events: &mut Receiver<Event>) -> Vec<String> {
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

pub async fn leases(etcd: &EtcdProcess) -> usize {
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    client.leases().await.unwrap().leases().len()
}

/// Creates a key that nobody else wants, on a lease of its own.
pub async fn created(store: &EtcdStore, name: &str, ttl_secs: u32) -> (LeaseId, Revision) {
    let created = store.create(name, "1", NewLease::any(ttl_secs), &[]).await;
    let Created::Won { lease, revision } = created.unwrap() else {
        panic!("lost without a rival");
    };
    (lease, revision)
}
