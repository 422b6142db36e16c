//! Observe, plan and apply against a real kernel, told by iproute2. Needs root; each test has a network namespace of its
//! own.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

#[path = "../src/kernel.rs"]
mod kernel;
#[path = "../src/wireguard.rs"]
mod wireguard;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Instant;

use flannel_lease::{Peer as LeasePeer, Revisions};
use flannel_model::{Families, IpFamily, LeaseValue, Mac, VxlanOptions};
use flannel_netlink::RouteConn;
use flannel_netlink::overlay::{Written, observe, observe_wireguard};
use flannel_plan::backend::{Backend, FamilyFacts, HostGw, Vxlan};
use flannel_plan::{DesiredOverlay, LinkKind, Op, Underlay, UnderlayOptions, choose_underlay, diff_overlay};
use serde_json::Value;

fn in_fresh_netns(work: impl FnOnce(&mut RouteConn) + Send) {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make network namespaces and need root; run them as root"
    );
    std::thread::scope(|scope| {
        let inside = || {
            // SAFETY: only the network namespace is unshared; descriptors stay common to all threads.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            for line in [
                "ip link set lo up",
                "ip link add u0 type veth peer name u1",
                "ip addr add 192.0.2.1/24 dev u0",
                "ip link set u1 up",
                "ip link set u0 up",
                "ip route add default via 192.0.2.254",
            ] {
                run(line);
            }
            work(&mut RouteConn::open().unwrap());
        };
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &str) -> Vec<Value> {
    let text = run(command);
    if text.trim().is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(&text).unwrap()
    }
}

fn underlay(conn: &mut RouteConn, families: Families<(), ()>) -> Underlay {
    let interfaces = kernel::interfaces(conn).unwrap();
    let defaults = kernel::default_routes(conn).unwrap();
    let underlay = choose_underlay(&interfaces, &defaults, &UnderlayOptions::for_families(families)).unwrap();
    assert_eq!((underlay.name.as_str(), underlay.mtu), ("u0", 1500));
    underlay
}

fn lease(key: &str, value: &str) -> LeasePeer {
    LeasePeer {
        key: key.parse().unwrap(),
        value: LeaseValue::parse(value.as_bytes()).unwrap(),
        revisions: Revisions {
            created: 1,
            modified: 1,
        },
    }
}

fn overlay(backend: &dyn Backend, facts: &FamilyFacts<'_>, peers: &[LeasePeer]) -> DesiredOverlay {
    let (overlay, useless) = backend.overlay(facts, &peers.iter().collect::<Vec<_>>());
    assert_eq!((overlay.peers, useless), (peers.len(), vec![]));
    overlay
}

fn vxlan() -> Vxlan {
    Vxlan {
        options: VxlanOptions::default(),
        macs: Families::Dual(Mac::new([0x8a, 1, 1, 1, 1, 1]), Mac::new([0x8a, 1, 1, 1, 1, 6])),
        udp_checksum: true,
    }
}

/// The VXLAN overlay of a node with `count` peers, on the interface of the default route.
fn wanted(conn: &mut RouteConn, count: u32) -> DesiredOverlay {
    let underlay = underlay(conn, Families::Ipv4(()));
    let peer = |n: u32| {
        let subnet = Ipv4Addr::from(0x0a00_0000 + ((n + 2) << 8));
        let address = Ipv4Addr::from(0xc633_0000 + n);
        let mac = Mac::local_unicast([0x8a, 0, 0, 0, (n >> 8) as u8, n as u8]);
        lease(
            &format!("{subnet}-24"),
            &format!(
                r#"{{"PublicIP":"{address}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            ),
        )
    };
    let facts = FamilyFacts {
        network: "10.0.0.0/8".parse().unwrap(),
        own_subnet: "10.0.1.0/24".parse().unwrap(),
        carrier: underlay.carrier(IpFamily::V4).unwrap(),
        connected: &underlay.connected,
    };
    overlay(&vxlan(), &facts, &(0..count).map(peer).collect::<Vec<_>>())
}

/// One pass; gives the operations, all of which have to succeed.
fn settle(conn: &mut RouteConn, desired: &DesiredOverlay) -> Vec<Op> {
    let mut written = Written::new();
    let mut observed = observe(conn, desired).unwrap();
    observed.wireguard = observe_wireguard(desired, &written).unwrap();
    let ops = diff_overlay(desired, &observed);
    let results = kernel::apply(conn, &ops);
    ops.iter().for_each(|op| wireguard::remember(&mut written, op));
    assert_eq!(
        results.iter().map(|(op, _)| op).collect::<Vec<_>>(),
        ops.iter().collect::<Vec<_>>()
    );
    for (op, result) in results {
        assert_eq!(result, Ok(()), "{op}");
    }
    ops
}

#[test]
fn an_overlay_is_made_adopted_repaired_and_thinned_out() {
    in_fresh_netns(|conn| {
        let desired = wanted(conn, 3);
        assert_eq!(settle(conn, &desired).len(), 3 + 3 * 3);
        let shown = &json("ip -d -j link show flannel.1")[0];
        assert_eq!(
            (&shown["mtu"], &shown["operstate"]),
            (&1450.into(), &"UNKNOWN".into())
        );
        assert_eq!(json("ip -j -N route show proto 70").len(), 3);
        assert_eq!(json("ip -j neigh show dev flannel.1 nud permanent").len(), 3);
        assert_eq!(json("bridge -j fdb show dev flannel.1").len(), 3);
        assert_eq!(settle(conn, &desired), [], "a second pass finds nothing to do");

        // What others do to it is undone, and what is theirs is left.
        run("ip route del 10.0.2.0/24");
        run("ip neigh del 10.0.3.0 dev flannel.1");
        run("ip link set flannel.1 mtu 1300");
        run("ip route add 10.99.0.0/24 via 10.0.2.0 dev flannel.1 onlink proto static");
        assert_eq!(settle(conn, &desired).len(), 3);
        run("ip link set flannel.1 down");
        let ops = settle(conn, &desired);
        assert_eq!(
            ops.len(),
            1 + 3 + 3,
            "up, neighbours and routes; the FDB stays: {ops:?}"
        );
        run("ip link set flannel.1 address 8a:09:09:09:09:09");
        assert_eq!(
            settle(conn, &desired).len(),
            1 + 3,
            "the kernel forgot the neighbours"
        );
        run("ip route add 10.99.0.0/24 via 10.0.2.0 dev flannel.1 onlink proto static");
        assert_eq!(settle(conn, &desired), []);
        run("ip link del flannel.1");
        assert_eq!(settle(conn, &desired).len(), 3 + 3 * 3);

        let fewer = wanted(conn, 1);
        assert_eq!(settle(conn, &fewer).len(), 2 * 3);
        assert_eq!(json("ip -j -N route show proto 70").len(), 1);
        assert_eq!(json("ip -j neigh show dev flannel.1 nud permanent").len(), 1);
        assert_eq!(json("bridge -j fdb show dev flannel.1").len(), 1);
    });
}

/// The IPv6 overlay of a node with `count` peers, on the interface of the IPv6 default route.
fn wanted_v6(conn: &mut RouteConn, count: u16) -> DesiredOverlay {
    let underlay = underlay(conn, Families::Dual((), ()));
    let peer = |n: u16| {
        let subnet = Ipv6Addr::new(0xfd00, 5, 0, n + 2, 0, 0, 0, 0);
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n + 2);
        let mac = Mac::local_unicast([0x8a, 0, 0, 0, 6, n as u8]);
        lease(
            &format!("10.5.{n}.0-24&{subnet}-64"),
            &format!(
                r#"{{"PublicIP":"192.0.2.2","PublicIPv6":"{address}","BackendType":"vxlan","BackendV6Data":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            ),
        )
    };
    let facts = FamilyFacts {
        network: "fd00:5::/48".parse().unwrap(),
        own_subnet: "fd00:5:0:1::/64".parse().unwrap(),
        carrier: underlay.carrier(IpFamily::V6).unwrap(),
        connected: &underlay.connected,
    };
    overlay(&vxlan(), &facts, &(0..count).map(peer).collect::<Vec<_>>())
}

#[test]
fn the_ipv6_overlay_is_made_adopted_and_repaired_beside_that_of_ipv4() {
    in_fresh_netns(|conn| {
        run("ip addr add 2001:db8::1/64 dev u0 nodad");
        run("ip -6 route add default via 2001:db8::fe dev u0");
        let (ipv4, ipv6) = (wanted(conn, 2), wanted_v6(conn, 3));
        assert_eq!(settle(conn, &ipv4).len(), 3 + 2 * 3);
        assert_eq!(settle(conn, &ipv6).len(), 3 + 3 * 3);
        let shown = &json("ip -d -j link show flannel-v6.1")[0];
        assert_eq!(shown["mtu"], 1430);
        assert_eq!(shown["linkinfo"]["info_data"]["local6"], "2001:db8::1");
        assert_eq!(json("ip -6 -j -N route show proto 70").len(), 3);
        assert_eq!(
            json("ip -6 -j neigh show dev flannel-v6.1 nud permanent").len(),
            3
        );
        assert_eq!((settle(conn, &ipv4), settle(conn, &ipv6)), (vec![], vec![]));

        run("ip -6 route del fd00:5:0:2::/64");
        run("ip -6 neigh del fd00:5:0:3:: dev flannel-v6.1");
        run("ip -6 route add 3fff::/64 via fd00:5:0:2:: dev flannel-v6.1 onlink proto static");
        assert_eq!(settle(conn, &ipv6).len(), 2);
        // IPv6 addresses go with the link's going down, and routes, neighbours and addresses come back.
        run("ip link set flannel-v6.1 down");
        assert_eq!(settle(conn, &ipv6).len(), 1 + 1 + 3 + 3);
        run("ip -6 route add 3fff::/64 via fd00:5:0:2:: dev flannel-v6.1 onlink proto static");
        let fewer = wanted_v6(conn, 1);
        assert_eq!(settle(conn, &fewer).len(), 2 * 3);
        assert_eq!(json("ip -6 -j -N route show proto 70").len(), 1);
        assert_eq!(
            json("ip -6 -j route show proto static dev flannel-v6.1").len(),
            1,
            "somebody else's stays"
        );
        assert_eq!(settle(conn, &ipv4), []);
    });
}

#[test]
fn the_ipv6_overlay_that_flannel_left_is_taken_over() {
    in_fresh_netns(|conn| {
        run("ip addr add 2001:db8::1/64 dev u0 nodad");
        run("ip -6 route add default via 2001:db8::fe dev u0");
        let desired = wanted_v6(conn, 1);
        for line in [
            "ip link add flannel-v6.1 type vxlan id 1 dev u0 local 2001:db8::1 dstport 8472 nolearning",
            "ip link set flannel-v6.1 address 8a:01:01:01:01:06 mtu 1430 up",
            "ip addr add fd00:5:0:1::/128 dev flannel-v6.1",
            "ip neigh add fd00:5:0:9:: lladdr 8a:00:00:00:06:09 dev flannel-v6.1 nud permanent",
            "bridge fdb add 8a:00:00:00:06:09 dev flannel-v6.1 dst 2001:db8::9 self permanent",
            "ip -6 route add fd00:5:0:2::/64 via fd00:5:0:2:: dev flannel-v6.1 onlink",
            "ip -6 route add fd00:5:0:9::/64 via fd00:5:0:9:: dev flannel-v6.1 onlink",
        ] {
            run(line);
        }
        let texts: Vec<String> = settle(conn, &desired).iter().map(ToString::to_string).collect();
        let expected = [
            "route delete fd00:5:0:9::/64 via fd00:5:0:9:: dev flannel-v6.1 proto 3",
            "fdb delete 8a:00:00:00:06:09 dev flannel-v6.1 dst 2001:db8::9 self",
            "neighbour delete fd00:5:0:9:: dev flannel-v6.1",
            "fdb replace 8a:00:00:00:06:00 dev flannel-v6.1 dst 2001:db8::2 self permanent",
            "neighbour replace fd00:5:0:2:: lladdr 8a:00:00:00:06:00 dev flannel-v6.1 permanent",
            "route replace fd00:5:0:2::/64 via fd00:5:0:2:: dev flannel-v6.1 onlink",
        ];
        assert_eq!(texts, expected);
        assert_eq!(settle(conn, &desired), []);
    });
}

#[test]
fn what_flannel_left_is_taken_over_without_a_new_device() {
    in_fresh_netns(|conn| {
        let desired = wanted(conn, 1);
        for line in [
            "ip link add flannel.1 type vxlan id 1 dev u0 local 192.0.2.1 dstport 8472 nolearning",
            "ip link set flannel.1 address 8a:01:01:01:01:01 mtu 1450 up",
            "ip addr add 10.0.1.0/32 dev flannel.1",
            "ip addr add 10.0.7.0/32 dev flannel.1",
            "ip neigh add 10.0.2.0 lladdr 8a:00:00:00:00:00 dev flannel.1 nud permanent",
            "ip neigh add 10.0.9.0 lladdr 8a:00:00:00:00:09 dev flannel.1 nud permanent",
            "bridge fdb add 8a:00:00:00:00:00 dev flannel.1 dst 198.51.0.0 self permanent",
            "bridge fdb add 8a:00:00:00:00:09 dev flannel.1 dst 198.51.0.9 self permanent",
            "ip route add 10.0.2.0/24 via 10.0.2.0 dev flannel.1 onlink",
            "ip route add 10.0.9.0/24 via 10.0.9.0 dev flannel.1 onlink",
        ] {
            run(line);
        }
        let index = json("ip -j link show flannel.1")[0]["ifindex"].clone();
        let texts: Vec<String> = settle(conn, &desired).iter().map(ToString::to_string).collect();
        let expected = [
            "address delete 10.0.7.0/32 dev flannel.1",
            "route delete 10.0.9.0/24 via 10.0.9.0 dev flannel.1 proto 3",
            "fdb delete 8a:00:00:00:00:09 dev flannel.1 dst 198.51.0.9 self",
            "neighbour delete 10.0.9.0 dev flannel.1",
            "route replace 10.0.2.0/24 via 10.0.2.0 dev flannel.1 onlink",
        ];
        assert_eq!(texts, expected);
        assert_eq!(
            json("ip -j link show flannel.1")[0]["ifindex"],
            index,
            "the same device"
        );
        assert_eq!(settle(conn, &desired), []);
    });
}

#[test]
fn a_device_that_cannot_be_changed_is_made_anew() {
    in_fresh_netns(|conn| {
        let desired = wanted(conn, 2);
        run("ip link add flannel.1 type vxlan id 1 dev u0 local 192.0.2.1 dstport 4789");
        let ops = settle(conn, &desired);
        assert_eq!(
            ops[0].to_string(),
            "link delete flannel.1 (port is 4789, not 8472)"
        );
        assert_eq!(settle(conn, &desired), []);
    });
}

#[test]
fn a_source_address_is_changed_without_a_new_device() {
    in_fresh_netns(|conn| {
        let mut desired = wanted(conn, 2);
        settle(conn, &desired);
        run("ip addr add 192.0.2.7/24 dev u0");
        let link = &mut desired.tunnel.as_mut().unwrap().link;
        if let LinkKind::Vxlan(vxlan) = &mut link.kind {
            vxlan.local = IpAddr::from([192, 0, 2, 7]);
        }
        let ops = settle(conn, &desired);
        assert_eq!(
            ops.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["link set flannel.1 type vxlan local 192.0.2.7"]
        );
        assert_eq!(settle(conn, &desired), []);
    });
}

#[test]
fn a_failure_is_told_and_does_not_stop_the_rest() {
    in_fresh_netns(|conn| {
        let desired = wanted(conn, 3);
        let ops = diff_overlay(&desired, &observe(conn, &desired).unwrap());
        // Somebody else's route to the second peer's subnet, of which nobody knew when it was decided what to do.
        run("ip route add 10.0.3.0/24 dev u0");
        let results = kernel::apply(conn, &ops);
        let failed: Vec<_> = results.iter().filter_map(|(_, r)| r.as_ref().err()).collect();
        assert_eq!(failed.len(), 1);
        let text = failed[0].to_string();
        let expected = "route add 10.0.3.0/24 via 10.0.3.0 dev flannel.1 onlink: File exists (EEXIST)";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(
            json("ip -j route show 10.0.3.0/24")[0]["dev"],
            "u0",
            "it is left alone"
        );
        assert_eq!(json("ip -j -N route show proto 70").len(), 2);

        // Without the device every operation on it fails, with its own name.
        run("ip link del flannel.1");
        let ops = [results
            .into_iter()
            .map(|(op, _)| op)
            .find(|op| !op.is_link())
            .unwrap()];
        let text = kernel::apply(conn, &ops)[0].1.as_ref().unwrap_err().to_string();
        assert!(
            text.starts_with("address add 10.0.1.0/32 dev flannel.1: No such device (ENODEV)"),
            "{text}"
        );
    });
}

#[test]
fn the_way_to_an_address_is_found() {
    in_fresh_netns(|conn| {
        let index = json("ip -j link show u0")[0]["ifindex"].as_u64().unwrap();
        let reach = kernel::can_reach(conn, IpAddr::from([203, 0, 113, 1])).unwrap();
        let way = Some((u32::try_from(index).unwrap(), Some(IpAddr::from([192, 0, 2, 1]))));
        assert_eq!(reach.way, way);
        run("ip route del default");
        assert_eq!(
            kernel::can_reach(conn, IpAddr::from([203, 0, 113, 1]))
                .unwrap()
                .way,
            None
        );
    });
}

#[test]
fn five_thousand_peers_are_programmed_in_seconds() {
    in_fresh_netns(|conn| {
        let desired = wanted(conn, 5000);
        let begin = Instant::now();
        assert_eq!(settle(conn, &desired).len(), 3 + 3 * 5000);
        let made = begin.elapsed();
        let begin = Instant::now();
        assert_eq!(settle(conn, &desired), []);
        println!(
            "5000 peers: made in {made:?}, found unchanged in {:?}",
            begin.elapsed()
        );
        assert!(made.as_secs() < 20, "{made:?}");
    });
}

/// The overlay of a backend whose leases carry no data, with two nodes on the link and one behind a router.
fn plain(conn: &mut RouteConn, backend: &dyn Backend, name: &str) -> (DesiredOverlay, usize) {
    let underlay = underlay(conn, Families::Ipv4(()));
    let value = |address: &str| format!(r#"{{"PublicIP":"{address}","BackendType":"{name}"}}"#);
    let peers = [
        lease("10.0.2.0-24", &value("192.0.2.2")),
        lease("10.0.3.0-24", &value("192.0.2.3")),
        lease("10.0.4.0-24", &value("198.51.100.4")),
    ];
    let facts = FamilyFacts {
        network: "10.0.0.0/8".parse().unwrap(),
        own_subnet: "10.0.1.0/24".parse().unwrap(),
        carrier: underlay.carrier(IpFamily::V4).unwrap(),
        connected: &underlay.connected,
    };
    let (overlay, useless) = backend.overlay(&facts, &peers.iter().collect::<Vec<_>>());
    (overlay, useless.len())
}

#[test]
fn host_gw_makes_adopts_and_repairs_plain_routes() {
    in_fresh_netns(|conn| {
        let (desired, useless) = plain(conn, &HostGw, "host-gw");
        assert_eq!(useless, 1, "the node behind the router");
        // As flannel leaves them: one that is right, one of a node that left.
        run("ip route add 10.0.2.0/24 via 192.0.2.2 dev u0");
        run("ip route add 10.0.9.0/24 via 192.0.2.9 dev u0");
        // An operator's.
        run("ip route add 10.0.7.0/24 via 192.0.2.9 dev u0 proto static");
        let index = &json("ip -j link show u0")[0]["ifindex"];
        let texts: Vec<String> = settle(conn, &desired).iter().map(ToString::to_string).collect();
        let expected = [
            format!("route delete 10.0.9.0/24 via 192.0.2.9 dev if{index} proto 3"),
            format!("route replace 10.0.2.0/24 via 192.0.2.2 dev if{index}"),
            format!("route add 10.0.3.0/24 via 192.0.2.3 dev if{index}"),
        ];
        assert_eq!(texts, expected);
        assert_eq!(json("ip -j -N route show proto 70").len(), 2);
        assert_eq!(settle(conn, &desired), []);
        run("ip route del 10.0.3.0/24");
        assert_eq!(settle(conn, &desired).len(), 1);
    });
}

#[test]
fn a_change_of_the_backend_moves_the_routes_in_place() {
    in_fresh_netns(|conn| {
        let (host_gw, _) = plain(conn, &HostGw, "host-gw");
        settle(conn, &host_gw);
        let mut vxlan = wanted(conn, 2);
        vxlan
            .routes
            .retain(|destination, _| host_gw.routes.contains_key(destination));
        let texts: Vec<String> = settle(conn, &vxlan).iter().map(ToString::to_string).collect();
        let replaced = texts.iter().filter(|text| text.starts_with("route replace"));
        assert_eq!(replaced.count(), 2, "no moment without a route: {texts:?}");
        assert_eq!(json("ip -j -N route show proto 70 dev flannel.1").len(), 2);
        assert_eq!(settle(conn, &vxlan), []);
        settle(conn, &host_gw);
        assert_eq!(json("ip -j -N route show proto 70 dev u0").len(), 2);
    });
}

/// A pass that makes very many routes makes them in a way in which the kernel finds room for them fast; that must not show in where
/// packets go, nor in what another pass makes of them.
#[test]
fn thousands_of_routes_serve_and_are_taken_for_what_they_are() {
    in_fresh_netns(|conn| {
        let scopes = || -> BTreeSet<String> {
            let routes = json("ip -j route show proto 70");
            routes.iter().map(|route| route["scope"].to_string()).collect()
        };
        let few = wanted(conn, 10);
        settle(conn, &few);
        assert_eq!(scopes(), BTreeSet::from(["null".to_owned()]), "as ip makes them");
        let many = wanted(conn, 1_500);
        settle(conn, &many);
        assert_eq!(scopes().len(), 253);
        assert_eq!(settle(conn, &many), []);
        for n in [0, 9, 10, 262, 263, 1_499] {
            let subnet = Ipv4Addr::from(0x0a00_0000 + ((n + 2) << 8));
            let way = json(&format!(
                "ip -j route get {}",
                Ipv4Addr::from(u32::from(subnet) + 7)
            ));
            assert_eq!(way[0]["gateway"], subnet.to_string(), "{way:?}");
            assert_eq!(way[0]["prefsrc"], "10.0.1.0", "{way:?}");
        }
        let nobody = wanted(conn, 0);
        settle(conn, &nobody);
        assert_eq!(run("ip route show proto 70"), "");
    });
}
