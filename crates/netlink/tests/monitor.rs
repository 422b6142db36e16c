//! Notifications from a real kernel. Needs root and the feature `monitor`.
#![cfg(feature = "monitor")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::time::Duration;

use flannel_netlink::monitor::{Change, watch_changes};
use support::{ifindex, in_fresh_netns, run, underlay};
use tokio::sync::mpsc::Receiver;

/// Runs `work` in a runtime on this thread, with the driver beside it.
fn watched<F: Future<Output = ()>>(work: impl FnOnce(Receiver<Change>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (driver, changes) = watch_changes().unwrap();
        let driver = tokio::spawn(driver);
        work(changes).await;
        tokio::time::timeout(Duration::from_secs(5), driver)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    });
}

/// Reads until the wanted change arrives.
async fn wait_for(changes: &mut Receiver<Change>, wanted: Change) {
    let seen = async {
        let mut change = changes.recv().await;
        while change.is_some_and(|c| c != wanted) {
            change = changes.recv().await;
        }
        assert_eq!(change, Some(wanted), "the watch ended");
    };
    tokio::time::timeout(Duration::from_secs(5), seen).await.unwrap();
}

#[test]
fn every_kind_of_change_is_told() {
    in_fresh_netns(|_| {
        let index = underlay();
        watched(|mut changes| async move {
            run("ip addr add 10.5.1.0/32 dev u0");
            wait_for(
                &mut changes,
                Change::Address {
                    ifindex: index,
                    deleted: false,
                },
            )
            .await;
            run("ip route add 10.5.2.0/24 via 10.5.2.0 dev u0 onlink proto 70");
            wait_for(
                &mut changes,
                Change::Route {
                    ifindex: Some(index),
                    deleted: false,
                    ours: true,
                },
            )
            .await;
            run("ip route del 10.5.2.0/24");
            wait_for(
                &mut changes,
                Change::Route {
                    ifindex: Some(index),
                    deleted: true,
                    ours: true,
                },
            )
            .await;
            run("ip route add blackhole 10.5.3.0/24");
            wait_for(
                &mut changes,
                Change::Route {
                    ifindex: None,
                    deleted: false,
                    ours: false,
                },
            )
            .await;
            run("ip neigh add 10.5.2.0 lladdr 8a:00:00:00:00:01 dev u0 nud permanent");
            wait_for(
                &mut changes,
                Change::Neighbour {
                    ifindex: index,
                    deleted: false,
                    fdb: false,
                },
            )
            .await;
            run("ip link add flannel.1 type vxlan id 1 dev u0 dstport 8472");
            let vxlan = ifindex("flannel.1");
            wait_for(
                &mut changes,
                Change::Link {
                    ifindex: vxlan,
                    deleted: false,
                },
            )
            .await;
            run("bridge fdb add 8a:00:00:00:00:01 dev flannel.1 dst 192.0.2.7 self permanent");
            wait_for(
                &mut changes,
                Change::Neighbour {
                    ifindex: vxlan,
                    deleted: false,
                    fdb: true,
                },
            )
            .await;
            run("ip link del flannel.1");
            wait_for(
                &mut changes,
                Change::Link {
                    ifindex: vxlan,
                    deleted: true,
                },
            )
            .await;
        });
    });
}

#[test]
fn a_reader_that_is_too_slow_is_told_of_the_loss() {
    in_fresh_netns(|_| {
        underlay();
        watched(|mut changes| async move {
            let requests: String = (0..3000)
                .map(|i| format!("route add 10.{}.{}.0/24 dev u0\n", i / 250, i % 250))
                .collect();
            let file = std::env::temp_dir().join(format!("flannel-monitor-{}", std::process::id()));
            std::fs::write(&file, requests).unwrap();
            run(&format!("ip -batch {}", file.display()));
            std::fs::remove_file(&file).unwrap();
            wait_for(&mut changes, Change::Overrun).await;
        });
    });
}
