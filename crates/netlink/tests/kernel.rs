//! What the builder functions do to a real kernel, told by iproute2. Needs root.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flannel_model::{Ipv4Subnet, Mac};
use flannel_netlink::address::{self, AddressSpec};
use flannel_netlink::link::{self, BridgeSpec, VethSpec, VxlanSpec};
use flannel_netlink::neighbour;
use flannel_netlink::route::{self, Filter, Route, RouteKind};
use flannel_netlink::{Failure, IpFamily, Netns, OUR_PROTOCOL, RouteConn, fdb};
use support::{enter_fresh_netns, ifindex, in_fresh_netns, json, run, underlay};

const MAC: Mac = Mac::new([0x8a, 0x55, 0x6f, 1, 2, 3]);

/// A second namespace, kept alive by the handle.
fn fresh_netns() -> Netns {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            enter_fresh_netns();
            Netns::own().unwrap()
        });
        made.join().unwrap()
    })
}

fn subnet(text: &str) -> Ipv4Subnet {
    text.parse().unwrap()
}

fn vxlan(underlay: u32) -> VxlanSpec<'static> {
    VxlanSpec {
        name: "flannel.1",
        id: 1,
        underlay,
        local: Ipv4Addr::new(192, 0, 2, 1).into(),
        port: 8472,
        mtu: 1450,
        mac: MAC,
        learning: false,
        gbp: false,
        udp_checksum: true,
    }
}

fn make_vxlan(conn: &mut RouteConn) -> u32 {
    let underlay = underlay();
    conn.run(&link::create_vxlan(&vxlan(underlay))).unwrap();
    conn.run(&link::set_up("flannel.1")).unwrap();
    ifindex("flannel.1")
}

#[test]
fn a_vxlan_link_is_what_was_asked_for_and_reads_back_so() {
    in_fresh_netns(|conn| {
        let underlay = underlay();
        conn.run(&link::create_vxlan(&VxlanSpec {
            gbp: true,
            ..vxlan(underlay)
        }))
        .unwrap();
        let shown = &json("ip -d -j link show flannel.1")[0];
        let data = &shown["linkinfo"]["info_data"];
        assert_eq!(shown["mtu"], 1450);
        assert_eq!(shown["address"], MAC.to_string());
        assert_eq!(data["id"], 1);
        assert_eq!(data["port"], 8472);
        assert_eq!(data["local"], "192.0.2.1");
        assert_eq!(data["link"], "u0");
        assert_eq!(data["learning"], false);
        assert_eq!(data["gbp"], true);

        let read = link::by_name(conn, "flannel.1").unwrap().unwrap();
        assert_eq!(
            (read.mtu, read.mac, read.up, read.kind.as_str()),
            (1450, Some(MAC), false, "vxlan")
        );
        let details = read.vxlan.unwrap();
        assert_eq!(
            (details.id, details.underlay, details.port),
            (1, Some(underlay), 8472)
        );
        assert_eq!(details.local, Some(Ipv4Addr::new(192, 0, 2, 1).into()));
        assert!(details.gbp && !details.learning && !details.l2miss);
        assert_eq!(link::by_index(conn, read.ifindex).unwrap(), Some(read));
    });
}

#[test]
fn a_vxlan_link_is_corrected_in_place() {
    in_fresh_netns(|conn| {
        let index = make_vxlan(conn);
        run("ip addr add 192.0.2.9/24 dev u0");
        let other = Mac::new([0x8a, 0, 0, 0, 0, 9]);
        let local = Ipv4Addr::new(192, 0, 2, 9).into();
        let requests = [
            link::set_mac(index, other),
            link::set_mtu(index, 1400),
            link::set_vxlan_learning(index, true),
            link::set_vxlan_local(index, local),
        ];
        for outcome in conn.batch(&requests) {
            outcome.unwrap();
        }
        let read = link::by_name(conn, "flannel.1").unwrap().unwrap();
        assert_eq!(
            (read.ifindex, read.mac, read.mtu, read.up),
            (index, Some(other), 1400, true)
        );
        let details = read.vxlan.unwrap();
        assert_eq!(
            (details.learning, details.local, details.port),
            (true, Some(local), 8472)
        );
        conn.run(&link::delete(index)).unwrap();
        assert_eq!(link::by_name(conn, "flannel.1").unwrap(), None);
        assert!(conn.run(&link::delete("flannel.1")).unwrap_err().is_missing());
    });
}

#[test]
fn a_pod_is_wired_in_one_batch() {
    in_fresh_netns(|conn| {
        let pod = fresh_netns();
        let bridge = BridgeSpec {
            name: "cni0",
            mtu: Some(1450),
            mac: Some(MAC),
        };
        conn.run(&link::create_bridge(&bridge)).unwrap();
        let bridge = ifindex("cni0");
        let veth = VethSpec {
            name: "veth1",
            master: Some(bridge),
            alias: None,
            mtu: 1450,
            mac: None,
            peer_name: "eth0",
            peer_mac: Some(MAC),
            peer_namespace: pod.as_fd(),
        };
        let outcomes = conn.batch(&[
            link::create_veth(&veth),
            link::set_alias("veth1", "flannel:pod"),
            link::set_hairpin("veth1", true),
        ]);
        for outcome in &outcomes {
            outcome.as_ref().unwrap();
        }
        let host = link::by_name(conn, "veth1").unwrap().unwrap();
        assert_eq!(host.alias.as_deref(), Some("flannel:pod"));
        assert_eq!(
            (host.master, host.hairpin, host.up, host.mtu),
            (Some(bridge), Some(true), true, 1450)
        );
        let shown = &json("bridge -d -j link show dev veth1")[0];
        assert_eq!(
            (&shown["master"], &shown["hairpin"]),
            (&"cni0".into(), &true.into())
        );
        assert_eq!(
            json("ip -j link show cni0")[0]["flags"]
                .to_string()
                .matches("\"UP\"")
                .count(),
            1
        );

        let mut inside = pod.connect().unwrap();
        let end = link::by_name(&mut inside, "eth0").unwrap().unwrap();
        assert_eq!((end.mac, end.mtu, end.up), (Some(MAC), 1450, false));
        inside.run(&link::set_up("eth0")).unwrap();
        let end = link::by_name(&mut inside, "eth0").unwrap().unwrap();
        assert!(end.up && end.carrier);
        let listed = pod.run(|| json("ip -d -j link show eth0")).unwrap();
        assert_eq!(listed.len(), 1, "the command sees the namespace of the thread");
        for end in [&listed[0], &json("ip -d -j link show veth1")[0]] {
            // More than the one that is used are cut off, which takes longer than all the rest.
            let queues = (&end["num_tx_queues"], &end["num_rx_queues"]);
            assert_eq!(queues, (&1.into(), &1.into()), "{end}");
        }

        conn.run(&link::set_master("veth1", None)).unwrap();
        conn.run(&link::set_down("veth1")).unwrap();
        let host = link::by_name(conn, "veth1").unwrap().unwrap();
        assert_eq!((host.master, host.hairpin, host.up), (None, None, false));
        assert_eq!(link::dump(conn).unwrap().len(), 3, "lo, cni0, veth1");
    });
}

#[test]
fn addresses_come_and_go() {
    in_fresh_netns(|conn| {
        let index = underlay();
        let spec = AddressSpec {
            ifindex: index,
            local: Ipv4Addr::new(10, 5, 1, 1).into(),
            length: 24,
            no_prefix_route: false,
        };
        conn.run(&address::add(&spec)).unwrap();
        assert!(conn.run(&address::add(&spec)).unwrap_err().is_exists());
        conn.run(&address::replace(&spec)).unwrap();
        let quiet = AddressSpec {
            local: Ipv4Addr::new(10, 6, 1, 0).into(),
            no_prefix_route: true,
            ..spec
        };
        conn.run(&address::add(&quiet)).unwrap();

        let shown = json("ip -j -4 addr show u0");
        let first = &shown[0]["addr_info"][1];
        assert_eq!(
            (&first["local"], &first["prefixlen"]),
            (&"10.5.1.1".into(), &24.into())
        );
        assert_eq!(
            (&first["broadcast"], &first["scope"]),
            (&"10.5.1.255".into(), &"global".into())
        );
        assert_eq!(json("ip -j route show 10.5.1.0/24").len(), 1);
        assert_eq!(json("ip -j route show 10.6.1.0/24").len(), 0);

        let read = address::dump(conn, IpFamily::V4, Some(index)).unwrap();
        assert_eq!(read.len(), 3);
        assert!(
            read.iter()
                .all(|a| a.permanent && !a.deprecated && a.scope == address::Scope::Global)
        );
        assert_eq!(
            address::dump(conn, IpFamily::V4, None).unwrap().len(),
            4,
            "127.0.0.1 as well"
        );
        assert_eq!(
            address::dump(conn, IpFamily::V4, Some(4711)).unwrap(),
            [],
            "no such link"
        );

        conn.run(&address::delete(&spec)).unwrap();
        assert!(conn.run(&address::delete(&spec)).unwrap_err().is_missing());
    });
}

#[test]
fn an_overlay_route_has_flannels_shape_and_our_mark() {
    in_fresh_netns(|conn| {
        let index = make_vxlan(conn);
        let overlay = Route::via_onlink(subnet("10.5.2.0/24"), Ipv4Addr::new(10, 5, 2, 0), index);
        run("ip route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink");
        assert!(conn.run(&route::add(&overlay)).unwrap_err().is_exists());
        conn.run(&route::replace(&overlay)).unwrap();
        let shown = json("ip -j -N route show 10.5.2.0/24");
        assert_eq!(shown.len(), 1, "replaced and not added");
        assert_eq!(
            (&shown[0]["gateway"], &shown[0]["dev"]),
            (&"10.5.2.0".into(), &"flannel.1".into())
        );
        assert_eq!(
            (&shown[0]["protocol"], &shown[0]["flags"][0]),
            (&"70".into(), &"onlink".into())
        );

        run("ip route add 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink");
        run("ip route add 10.9.0.0/16 dev u0");
        let filter = Filter {
            ifindex: Some(index),
            ..Filter::default()
        };
        assert_eq!(route::dump(conn, &filter).unwrap().len(), 2);
        let ours = route::dump(
            conn,
            &Filter {
                protocol: Some(OUR_PROTOCOL),
                ..Filter::default()
            },
        )
        .unwrap();
        assert_eq!(ours, std::slice::from_ref(&overlay));
        let missing = Filter {
            ifindex: Some(4711),
            ..Filter::default()
        };
        assert_eq!(route::dump(conn, &missing).unwrap(), []);

        let foreign = Route {
            protocol: route::PROTOCOL_BOOT,
            ..overlay.clone()
        };
        assert!(
            conn.run(&route::delete(&foreign)).unwrap_err().is_missing(),
            "the protocol has to agree"
        );
        conn.run(&route::delete(&overlay)).unwrap();
        assert_eq!(json("ip -j route show 10.5.2.0/24").len(), 0);
    });
}

/// The kernel shows such a route with the loopback device, and deletes it without.
fn last_resort_of_ipv6(conn: &mut RouteConn) {
    let hole = Route {
        metric: 4_000_000_000,
        ..Route::blackhole("fd00:5::/48".parse::<flannel_model::Ipv6Subnet>().unwrap())
    };
    conn.run(&route::add(&hole)).unwrap();
    let holes = Filter {
        family: IpFamily::V6,
        kind: Some(RouteKind::Blackhole),
        protocol: Some(OUR_PROTOCOL),
        ..Filter::default()
    };
    let listed = route::dump(conn, &holes).unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|r| (r.destination, r.metric))
            .collect::<Vec<_>>(),
        [(hole.destination, hole.metric)]
    );
    conn.run(&route::delete(&hole)).unwrap();
    assert_eq!(route::dump(conn, &holes).unwrap(), []);
}

#[test]
fn local_and_blackhole_routes_and_lookups() {
    in_fresh_netns(|conn| {
        underlay();
        let services = Route::local(
            subnet("10.96.0.0/16"),
            1,
            Some(Ipv4Addr::new(192, 0, 2, 1).into()),
        );
        let hole = Route::blackhole(subnet("10.5.1.0/24"));
        for outcome in conn.batch(&[route::add(&services), route::add(&hole)]) {
            outcome.unwrap();
        }
        let shown = json("ip -j -N route show table local 10.96.0.0/16");
        assert_eq!((&shown[0]["type"], &shown[0]["dev"]), (&"2".into(), &"lo".into()));
        assert_eq!(
            (&shown[0]["prefsrc"], &shown[0]["protocol"]),
            (&"192.0.2.1".into(), &"70".into())
        );
        assert_eq!(json("ip -j route show type blackhole 10.5.1.0/24").len(), 1);
        let local = Filter {
            table: route::TABLE_LOCAL,
            protocol: Some(OUR_PROTOCOL),
            ..Filter::default()
        };
        assert_eq!(
            route::dump(conn, &local).unwrap(),
            std::slice::from_ref(&services)
        );
        let holes = Filter {
            kind: Some(RouteKind::Blackhole),
            ..Filter::default()
        };
        assert_eq!(route::dump(conn, &holes).unwrap(), std::slice::from_ref(&hole));
        last_resort_of_ipv6(conn);

        assert_eq!(route::lookup(conn, Ipv4Addr::new(203, 0, 113, 1)).unwrap(), None);
        assert_eq!(
            route::lookup(conn, Ipv4Addr::new(10, 5, 1, 7)).unwrap(),
            None,
            "blackhole"
        );
        run("ip route add default via 192.0.2.254");
        let found = route::lookup(conn, Ipv4Addr::new(203, 0, 113, 1))
            .unwrap()
            .unwrap();
        assert_eq!(found.ifindex, ifindex("u0"));
        assert_eq!(found.source, Some(Ipv4Addr::new(192, 0, 2, 1).into()));
        assert_eq!(found.gateway, Some(Ipv4Addr::new(192, 0, 2, 254).into()));
        let listed = route::dump(conn, &Filter::default()).unwrap();
        let default = listed
            .iter()
            .find(|r| r.destination == subnet("0.0.0.0/0").into())
            .unwrap();
        assert_eq!(
            (default.gateway, default.kind),
            (found.gateway, RouteKind::Unicast)
        );

        for outcome in conn.batch(&[route::delete(&services), route::delete(&hole)]) {
            outcome.unwrap();
        }
        assert_eq!(json("ip -j route show type blackhole").len(), 0);
    });
}

#[test]
fn neighbours_and_fdb_are_those_of_flannel() {
    in_fresh_netns(|conn| {
        let index = make_vxlan(conn);
        let address = Ipv4Addr::new(10, 5, 2, 0);
        let (first, second) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 8));
        let peer = Mac::new([0x8a, 0, 0, 0, 0, 7]);
        let requests = [
            neighbour::replace(index, address, MAC),
            neighbour::replace(index, address, peer),
            fdb::replace(index, peer, first),
            fdb::replace(index, peer, second),
        ];
        for outcome in conn.batch(&requests) {
            outcome.unwrap();
        }
        let shown = json("ip -j neigh show dev flannel.1 nud permanent");
        assert_eq!(shown.len(), 1);
        assert_eq!(
            (&shown[0]["dst"], &shown[0]["lladdr"]),
            (&"10.5.2.0".into(), &peer.to_string().into())
        );
        let shown = json("bridge -j fdb show dev flannel.1");
        assert_eq!(
            shown.len(),
            1,
            "the second destination replaced the first: {shown:?}"
        );
        assert_eq!(
            (&shown[0]["dst"], &shown[0]["state"]),
            (&"192.0.2.8".into(), &"permanent".into())
        );
        assert_eq!(shown[0]["flags"][0], "self");

        run("bridge fdb add 8a:00:00:00:00:09 dev flannel.1 dst 192.0.2.9 port 4789 self permanent");
        run("ip neigh add 10.5.9.0 lladdr 8a:00:00:00:00:09 dev flannel.1 nud reachable");
        let mut entries = fdb::dump(conn, index).unwrap();
        entries.sort_by_key(|e| e.mac);
        let told: Vec<_> = entries
            .iter()
            .map(|e| (e.mac.bytes()[5], e.dst, e.permanent, e.plain))
            .collect();
        assert_eq!(
            told,
            [
                (7, second.into(), true, true),
                (9, Ipv4Addr::new(192, 0, 2, 9).into(), true, false)
            ]
        );
        let mut listed = neighbour::dump(conn, IpFamily::V4, index).unwrap();
        listed.sort_by_key(|n| n.address);
        let told: Vec<_> = listed.iter().map(|n| (n.address, n.mac, n.permanent)).collect();
        assert_eq!(told[0], (address.into(), Some(peer), true));
        assert!(!told[1].2);

        let _ = conn.run(&fdb::delete(index, peer, first));
        assert_eq!(
            fdb::dump(conn, index).unwrap().len(),
            2,
            "another destination is another entry"
        );
        assert!(
            conn.run(&fdb::delete(index, MAC, first))
                .unwrap_err()
                .is_missing()
        );
        conn.run(&fdb::delete(index, peer, second)).unwrap();
        conn.run(&neighbour::delete(index, address)).unwrap();
        let never = neighbour::delete(index, Ipv4Addr::new(10, 5, 77, 0));
        assert!(conn.run(&never).unwrap_err().is_missing());
        assert_eq!(json("ip -j neigh show dev flannel.1 nud permanent").len(), 0);
        assert_eq!(
            fdb::dump(conn, index).unwrap().len(),
            1,
            "the foreign one is left"
        );
    });
}

#[test]
fn a_large_batch_keeps_order_and_goes_on_after_failures() {
    in_fresh_netns(|conn| {
        let index = make_vxlan(conn);
        // Every tenth has a gateway that is on no link.
        let requests: Vec<_> = (0..5000u32)
            .map(|i| {
                let network = Ipv4Addr::from(0x0a00_0000 + (i << 8));
                let destination = Ipv4Subnet::new(network, 24).unwrap();
                let good = Route::via_onlink(destination, network, index);
                route::add(&if i % 10 == 0 {
                    Route {
                        onlink: false,
                        ..good
                    }
                } else {
                    good
                })
            })
            .collect();
        let outcomes = conn.batch(&requests);
        assert_eq!(outcomes.len(), 5000);
        for (i, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.is_err(), i % 10 == 0, "{i}: {outcome:?}");
        }
        let error = outcomes[10].as_ref().unwrap_err();
        assert!(matches!(&error.failure, Failure::Refused { explanation, .. } if !explanation.is_empty()));
        let text = error.to_string();
        assert!(text.starts_with("add route 10.0.10.0/24 via 10.0.10.0"), "{text}");
        assert!(text.contains("Nexthop has invalid gateway"), "{text}");
        let filter = Filter {
            ifindex: Some(index),
            ..Filter::default()
        };
        assert_eq!(route::dump(conn, &filter).unwrap().len(), 4500);
        assert_eq!(json("ip -j route show dev flannel.1").len(), 4500);
    });
}

#[test]
fn a_connection_keeps_to_its_namespace_and_to_its_deadline() {
    in_fresh_netns(|conn| {
        underlay();
        let other = fresh_netns();
        let mut there = other.connect().unwrap();
        assert_eq!(link::dump(&mut there).unwrap().len(), 1);
        assert_eq!(link::dump(conn).unwrap().len(), 3);
        assert!(!other.is_same(&Netns::own().unwrap()));
        assert!(conn.set_deadline(Duration::ZERO).is_err());
        // A time that is over before any answer can be read.
        conn.set_deadline(Duration::from_nanos(1)).unwrap();
        let error = link::dump(conn).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        // The late answer is not taken for that of the next call.
        conn.set_deadline(Duration::from_secs(5)).unwrap();
        assert_eq!(link::by_name(conn, "lo").unwrap().unwrap().ifindex, 1);
    });
}

#[test]
fn a_listing_is_whole_while_others_change_the_table() {
    in_fresh_netns(|conn| {
        let index = underlay();
        // Enough for several datagrams, between which the table can change.
        let spec = |n: u32| AddressSpec {
            ifindex: index,
            local: Ipv4Addr::from(0x0a00_0001 + (n << 8)).into(),
            length: 24,
            no_prefix_route: true,
        };
        let stable: Vec<_> = (0..2000).map(|n| address::add(&spec(n))).collect();
        assert!(conn.batch(&stable).iter().all(Result::is_ok));
        let here = Netns::own().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut conn = here.connect().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    conn.batch(&[address::add(&spec(5000)), address::delete(&spec(5000))]);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            let mut whole = 0;
            for _ in 0..100 {
                match address::dump(conn, IpFamily::V4, None) {
                    Ok(listed) => {
                        let last = spec(1999).local;
                        let stable = listed.iter().filter(|a| a.local <= last).count();
                        assert_eq!(stable, 2000);
                        whole += 1;
                    }
                    Err(error) => assert!(matches!(error.failure, Failure::Inconsistent { .. }), "{error}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert!(whole > 0, "none of 100 listings found a still moment");
        });
    });
}
