//! An etcd that is away, went back or lags.

use std::time::{Duration, Instant};

use etcd_client::Client;
use flannel_store::fixture::BlackHole;
use flannel_store::{ErrorKind, EtcdOptions, EtcdStore, Event, LostReason, Store, follow};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{PREFIX, complete_state, key, next, next_within, start};

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
