//! Notifications from a real kernel. Needs root and the feature `monitor`.
#![cfg(feature = "monitor")]
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_netlink::monitor::{Change, watch_changes};
use flannel_netlink::route::RouteKind;
use flannel_netlink::sysctl;
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

/// Reads until a change arrives that fits.
async fn wait_for(changes: &mut Receiver<Change>, what: &str, fits: impl Fn(&Change) -> bool) {
    let seen = async {
        while let Some(change) = changes.recv().await {
            if fits(&change) {
                return true;
            }
        }
        false
    };
    let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
    assert_eq!(seen, Ok(true), "nobody told of {what}");
}

/// Each line is carried out, and then told as the change that fits.
#[test]
fn every_kind_of_change_is_told() {
    in_fresh_netns(|_| {
        let index = underlay();
        watched(|mut changes| async move {
            let changes = &mut changes;
            run("ip addr add 10.5.1.0/32 dev u0");
            let address = Change::Address {
                ifindex: index,
                deleted: false,
            };
            wait_for(changes, "an address", |change| *change == address).await;
            for gone in [false, true] {
                let verb = if gone { "del" } else { "add" };
                run(&format!(
                    "ip route {verb} 10.5.2.0/24 via 10.5.2.0 dev u0 onlink proto 70"
                ));
                wait_for(changes, "a route", |change| {
                    matches!(change, Change::Route { route, deleted } if *deleted == gone && route.ifindex == Some(index)
                        && route.protocol == 70 && route.destination.to_string() == "10.5.2.0/24")
                })
                .await;
                run(&format!("ip route {verb} blackhole 10.5.3.0/24"));
                wait_for(changes, "a blackhole", |change| {
                    matches!(change, Change::Route { route, deleted } if *deleted == gone && route.ifindex.is_none()
                        && route.kind == RouteKind::Blackhole)
                })
                .await;
                run(&format!(
                    "ip neigh {verb} 10.5.2.0 lladdr 8a:00:00:00:00:01 dev u0 nud permanent"
                ));
                wait_for(changes, "a neighbour", |change| {
                    matches!(change, Change::Neighbour { neighbour, deleted } if *deleted == gone
                        && neighbour.ifindex == index && neighbour.address.to_string() == "10.5.2.0"
                        && neighbour.permanent != gone)
                })
                .await;
            }
            entries_are_told(changes).await;
        });
    });
}

async fn entries_are_told(changes: &mut Receiver<Change>) {
    run("ip link add flannel.1 type vxlan id 1 dev u0 dstport 8472");
    let vxlan = ifindex("flannel.1");
    let link = |deleted| Change::Link {
        ifindex: vxlan,
        name: "flannel.1".to_owned(),
        deleted,
    };
    wait_for(changes, "a link", |change| *change == link(false)).await;
    for gone in [false, true] {
        let verb = if gone { "del" } else { "add" };
        run(&format!(
            "bridge fdb {verb} 8a:00:00:00:00:01 dev flannel.1 dst 192.0.2.7 self permanent"
        ));
        wait_for(changes, "an FDB entry", |change| {
            matches!(change, Change::Fdb { entry, deleted } if *deleted == gone && entry.ifindex == vxlan
                && entry.plain && entry.permanent && entry.dst.to_string() == "192.0.2.7")
        })
        .await;
    }
    run("ip link del flannel.1");
    wait_for(changes, "the end of a link", |change| *change == link(true)).await;
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
            wait_for(&mut changes, "the loss", |change| *change == Change::Overrun).await;
        });
    });
}

/// A write through the same mount of /proc is told, also after the device and its settings are others of the same name.
#[test]
fn writes_to_settings_are_told_and_followed_over_a_device_that_is_made_anew() {
    in_fresh_netns(|_| {
        let names = [
            "net/ipv4/conf/v0/accept_local",
            "net/ipv4/conf/v0/no_such_setting",
        ];
        let names: BTreeSet<String> = names.map(str::to_owned).into();
        let write = || std::fs::write("/proc/sys/net/ipv4/conf/v0/accept_local", "1").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut settings = sysctl::Follow::new().unwrap();
            // Nothing is there yet.
            settings.follow(&names);
            for _ in 0..2 {
                run("ip link add v0 type veth peer name v1");
                settings.follow(&names);
                write();
                let told = tokio::time::timeout(Duration::from_secs(20), settings.written()).await;
                assert!(matches!(told, Ok(Ok(()))), "{told:?}");
                run("ip link del v0");
            }
            run("ip link add v0 type veth peer name v1");
            settings.follow(&BTreeSet::new());
            write();
            let told = tokio::time::timeout(Duration::from_millis(200), settings.written()).await;
            assert!(told.is_err(), "nobody asked: {told:?}");
        });
    });
}
