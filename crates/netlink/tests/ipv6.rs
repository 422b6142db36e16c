//! The IPv6 side of what an overlay needs, told by iproute2. Needs root.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::net::{IpAddr, Ipv6Addr};

use flannel_model::{Ipv6Subnet, Mac};
use flannel_netlink::address::{self, AddressSpec};
use flannel_netlink::link::{self, VxlanSpec};
use flannel_netlink::route::{self, DEFAULT_METRIC_V6, Filter, Route};
use flannel_netlink::{IpFamily, OUR_PROTOCOL, RouteConn, fdb, neighbour};
use support::{ifindex, in_fresh_netns, json, run, underlay};

const MAC: Mac = Mac::new([0x8a, 0x55, 0x6f, 1, 2, 3]);

fn v6(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// flannel-v6.1 on an underlay that has an IPv6 address.
fn make_vxlan(conn: &mut RouteConn) -> u32 {
    let underlay = underlay();
    run("ip addr add 2001:db8::1/64 dev u0 nodad");
    conn.run(&link::create_vxlan(&VxlanSpec {
        name: "flannel-v6.1",
        id: 1,
        underlay,
        local: v6("2001:db8::1"),
        port: 8472,
        mtu: 1430,
        mac: MAC,
        learning: false,
        gbp: false,
        udp_checksum: true,
    }))
    .unwrap();
    conn.run(&link::set_up("flannel-v6.1")).unwrap();
    ifindex("flannel-v6.1")
}

#[test]
fn a_vxlan_link_over_ipv6_reads_back_as_it_was_asked_for() {
    in_fresh_netns(|conn| {
        make_vxlan(conn);
        let shown = &json("ip -d -j link show flannel-v6.1")[0];
        assert_eq!(shown["mtu"], 1430);
        assert_eq!(shown["linkinfo"]["info_data"]["local6"], "2001:db8::1");
        let read = link::by_name(conn, "flannel-v6.1")
            .unwrap()
            .unwrap()
            .vxlan
            .unwrap();
        assert_eq!((read.local, read.port), (Some(v6("2001:db8::1")), 8472));
        run("ip addr add 2001:db8::9/64 dev u0 nodad");
        conn.run(&link::set_vxlan_local("flannel-v6.1", v6("2001:db8::9")))
            .unwrap();
        let shown = &json("ip -d -j link show flannel-v6.1")[0];
        assert_eq!(shown["linkinfo"]["info_data"]["local6"], "2001:db8::9");
    });
}

#[test]
fn a_peer_is_an_address_a_route_a_neighbour_and_an_fdb_entry() {
    in_fresh_netns(|conn| {
        let index = make_vxlan(conn);
        let own = AddressSpec {
            ifindex: index,
            local: v6("fd00:5:0:1::"),
            length: 128,
            no_prefix_route: false,
        };
        let gateway: Ipv6Addr = "fd00:5:0:2::".parse().unwrap();
        let subnet: Ipv6Subnet = "fd00:5:0:2::/64".parse().unwrap();
        let overlay = Route::via_onlink(subnet, gateway, index);
        let peer = Mac::new([0x8a, 0, 0, 0, 0, 7]);
        let requests = [
            address::add(&own),
            fdb::replace(index, peer, v6("2001:db8::7")),
            neighbour::replace(index, gateway, peer),
            route::add(&overlay),
        ];
        for outcome in conn.batch(&requests) {
            outcome.unwrap();
        }
        let addresses = address::dump(conn, IpFamily::V6, Some(index)).unwrap();
        let ours = addresses.iter().find(|a| a.local == own.local).unwrap();
        assert_eq!((ours.length, ours.permanent, ours.deprecated), (128, true, false));
        let shown = json("ip -6 -j -N route show proto 70");
        assert_eq!(shown.len(), 1);
        assert_eq!(
            (&shown[0]["dst"], &shown[0]["gateway"]),
            (&"fd00:5:0:2::/64".into(), &"fd00:5:0:2::".into())
        );
        let shown = json("ip -6 -j neigh show dev flannel-v6.1 nud permanent");
        assert_eq!(shown[0]["lladdr"], peer.to_string());
        let shown = json("bridge -j fdb show dev flannel-v6.1");
        assert_eq!(shown[0]["dst"], "2001:db8::7");

        let filter = Filter {
            family: IpFamily::V6,
            protocol: Some(OUR_PROTOCOL),
            ..Filter::default()
        };
        let listed = route::dump(conn, &filter).unwrap();
        let shown = Route {
            metric: DEFAULT_METRIC_V6,
            ..overlay.clone()
        };
        assert_eq!(listed, std::slice::from_ref(&shown));
        assert!(conn.run(&route::add(&overlay)).unwrap_err().is_exists());
        conn.run(&route::replace(&overlay)).unwrap();
        assert_eq!(
            json("ip -6 -j -N route show proto 70").len(),
            1,
            "replaced and not added"
        );
        assert_eq!(fdb::dump(conn, index).unwrap()[0].dst, v6("2001:db8::7"));
        assert_eq!(
            neighbour::dump(conn, IpFamily::V6, index)
                .unwrap()
                .iter()
                .filter(|n| n.permanent)
                .count(),
            1
        );

        let found = route::lookup(conn, v6("2001:db8::7")).unwrap().unwrap();
        assert_eq!(
            (found.ifindex, found.source),
            (ifindex("u0"), Some(v6("2001:db8::1")))
        );
        assert_eq!(route::lookup(conn, v6("3fff::1")).unwrap(), None);

        for request in [
            route::delete(&shown),
            neighbour::delete(index, gateway),
            fdb::delete(index, peer, v6("2001:db8::7")),
            address::delete(&own),
        ] {
            conn.run(&request).unwrap();
            assert!(conn.run(&request).unwrap_err().is_missing(), "{}", request.what);
        }
        assert_eq!(json("ip -6 -j -N route show proto 70").len(), 0);
    });
}
