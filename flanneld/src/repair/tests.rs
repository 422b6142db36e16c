use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{Families, Mac};
use flannel_netlink::route::Distance;
use flannel_plan::{LinkKind, Tunnel, TunnelLink, VxlanLink};

use super::*;

const DEVICE: Device = Device::Vxlan {
    vni: 1,
    family: flannel_model::IpFamily::V4,
};
const INDEX: u32 = 7;
const UNDERLAY: u32 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    Mac::new([0x8a, 0, 0, 0, 0, last])
}

/// A node with one peer, 10.5.2.0/24.
fn facts() -> Facts {
    let link = VxlanLink {
        id: 1,
        underlay: UNDERLAY,
        local: ip("192.0.2.1"),
        port: 8472,
        mac: mac(1),
        learning: false,
        gbp: false,
        udp_checksum: true,
    };
    let overlay = DesiredOverlay {
        network: "10.5.0.0/16".parse().unwrap(),
        own_subnet: "10.5.1.0/24".parse().unwrap(),
        mtu: 1450,
        tunnel: Some(Tunnel {
            link: TunnelLink {
                device: DEVICE,
                mtu: 1450,
                kind: LinkKind::Vxlan(link),
            },
            address: ip("10.5.1.0"),
            neighbours: BTreeMap::from([(ip("10.5.2.0"), mac(2))]),
            fdb: BTreeMap::from([(mac(2), ip("192.0.2.2"))]),
            wireguard: None,
            senders: BTreeSet::new(),
            vteps: BTreeMap::new(),
        }),
        routes: BTreeMap::from([("10.5.2.0/24".parse().unwrap(), Way::tunnel(ip("10.5.2.0")))]),
        blackholes: BTreeSet::from(["10.5.1.0/24".parse().unwrap()]),
        peers: 1,
    };
    Facts {
        own: "10.5.1.0-24".parse().unwrap(),
        addresses: vec![ip("192.0.2.1")],
        nodes: BTreeSet::from([ip("192.0.2.2")]),
        udp: None,
        carriers: BTreeSet::from([UNDERLAY]),
        overlays: Families::Ipv4(overlay),
        steps: crate::overlay::Steps::default(),
    }
}

fn verdict(change: &Change) -> Verdict {
    judge(change, &facts(), &[(DEVICE, INDEX)])
}

fn text(change: &Change) -> String {
    match verdict(change) {
        Verdict::Fine => "fine".into(),
        Verdict::Look => "look".into(),
        Verdict::Repair(op) => op.to_string(),
    }
}

fn route() -> Route {
    Route::via_onlink(
        "10.5.2.0/24".parse::<flannel_model::IpSubnet>().unwrap(),
        ip("10.5.2.0"),
        INDEX,
    )
}

fn told(route: Route, deleted: bool) -> String {
    text(&Change::Route { route, deleted })
}

#[test]
fn a_route_of_ours_that_goes_comes_back_and_one_that_comes_is_fine() {
    let repair = "route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink";
    assert_eq!(told(route(), true), repair);
    assert_eq!(told(route(), false), "fine");
    let theirs = Route {
        protocol: 3,
        gateway: Some(ip("192.0.2.9")),
        ifindex: Some(UNDERLAY),
        onlink: false,
        ..route()
    };
    assert_eq!(told(theirs.clone(), false), "look", "it took the place of ours");
    let other_metric = Route {
        metric: 5,
        ..theirs.clone()
    };
    assert_eq!(told(other_metric, false), "fine");
    let elsewhere = Route {
        table: 99,
        ..theirs.clone()
    };
    assert_eq!(told(elsewhere, false), "fine");
    let unwanted = Route {
        destination: "10.5.9.0/24".parse().unwrap(),
        ..route()
    };
    assert_eq!(told(unwanted.clone(), false), "look", "ours, and for nobody");
    assert_eq!(told(unwanted, true), "fine");
    let outside = Route {
        destination: "10.6.0.0/24".parse().unwrap(),
        ..route()
    };
    assert_eq!(told(outside, true), "fine");
}

#[test]
fn a_blackhole_that_goes_is_looked_at() {
    let blackhole = Route {
        scope: Distance::Universe,
        ..Route::blackhole("10.5.1.0/24".parse::<flannel_model::IpSubnet>().unwrap())
    };
    assert_eq!(told(blackhole.clone(), true), "look");
    assert_eq!(told(blackhole, false), "fine");
}

#[test]
fn neighbours_and_entries_are_made_what_they_were() {
    let neighbour = |mac: Option<Mac>, permanent, deleted, index| {
        text(&Change::Neighbour {
            neighbour: Neighbour {
                ifindex: index,
                address: ip("10.5.2.0"),
                mac,
                permanent,
            },
            deleted,
        })
    };
    let repair = "neighbour replace 10.5.2.0 lladdr 8a:00:00:00:00:02 dev flannel.1 permanent";
    assert_eq!(neighbour(Some(mac(2)), true, false, INDEX), "fine");
    assert_eq!(neighbour(Some(mac(2)), true, true, INDEX), repair);
    assert_eq!(neighbour(Some(mac(3)), true, false, INDEX), repair);
    assert_eq!(neighbour(None, false, false, INDEX), repair, "being deleted");
    assert_eq!(neighbour(None, false, true, UNDERLAY), "fine", "another device's");
    let entry = |dst: &str, permanent, deleted| {
        text(&Change::Fdb {
            entry: FdbEntry {
                ifindex: INDEX,
                mac: mac(2),
                dst: ip(dst),
                permanent,
                plain: true,
            },
            deleted,
        })
    };
    let repair = "fdb replace 8a:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent";
    assert_eq!(entry("192.0.2.2", true, false), "fine");
    assert_eq!(entry("192.0.2.2", true, true), repair);
    assert_eq!(entry("192.0.2.9", true, false), repair);
    assert_eq!(entry("192.0.2.9", true, true), "fine");
}

#[test]
fn links_and_addresses_count_where_they_are_ours_or_carry_ours() {
    let link = |ifindex, name: &str| {
        text(&Change::Link {
            ifindex,
            name: name.into(),
            deleted: false,
        })
    };
    assert_eq!(link(INDEX, "renamed"), "look");
    assert_eq!(link(99, "flannel.1"), "look");
    assert_eq!(link(UNDERLAY, "eth0"), "look");
    assert_eq!(link(99, "veth1"), "fine");
    let address = |ifindex| {
        text(&Change::Address {
            ifindex,
            deleted: true,
        })
    };
    assert_eq!((address(INDEX).as_str(), address(99).as_str()), ("look", "fine"));
    assert_eq!(verdict(&Change::Overrun), Verdict::Look);
}
