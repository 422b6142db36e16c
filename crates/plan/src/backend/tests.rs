//! What each backend makes of the same leases.

use std::net::IpAddr;

use flannel_lease::{Peer as LeasePeer, Revisions};
use flannel_model::{Families, IpFamily, IpSubnet, LeaseValue, Mac, UdpOptions, VxlanOptions};

use super::{Alloc, Backend, FamilyFacts, HostGw, Ipip, Udp, Useless, Vxlan, overlay_mtu};
use crate::overlay::{Carrier, DesiredOverlay, LinkKind, Out, Way};

const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);

fn lease(key: &str, value: &str, created: i64) -> LeasePeer {
    LeasePeer {
        key: key.parse().unwrap(),
        value: LeaseValue::parse(value.as_bytes()).unwrap(),
        revisions: Revisions {
            created,
            modified: created,
        },
    }
}

/// The lease of node 192.168.50.`n`, or 192.168.60.`n` from 100 on, which is behind a router.
fn peer(n: u8, created: i64, backend: &str) -> LeasePeer {
    let link = if n < 100 { 50 } else { 60 };
    let value = format!(r#"{{"PublicIP":"192.168.{link}.{n}","PublicIPv6":null{backend}}}"#);
    lease(&format!("10.5.{n}.0-24"), &value, created)
}

fn vxlan(vni: u32, mac: &str) -> String {
    format!(r#","BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"{mac}"}}"#)
}

fn carrier() -> Carrier {
    Carrier {
        ifindex: 2,
        mtu: 1500,
        address: IpAddr::from([192, 168, 50, 1]),
    }
}

fn run(backend: &dyn Backend, peers: &[LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
    let facts = FamilyFacts {
        network: "10.5.0.0/16".parse().unwrap(),
        own_subnet: "10.5.1.0/24".parse().unwrap(),
        carrier: carrier(),
        connected: &["192.168.50.0/24".parse().unwrap()],
    };
    let peers: Vec<&LeasePeer> = peers.iter().collect();
    let (overlay, useless) = backend.overlay(&facts, &peers);
    assert_eq!(overlay.peers, overlay.routes.len());
    (overlay, useless)
}

fn vxlan_backend() -> Vxlan {
    Vxlan {
        options: VxlanOptions::default(),
        macs: Families::Ipv4(OWN),
        udp_checksum: true,
    }
}

fn subnet(n: u8) -> IpSubnet {
    format!("10.5.{n}.0/24").parse().unwrap()
}

#[test]
fn vxlan_gives_every_peer_its_three_entries() {
    let peers = [
        peer(2, 2, &vxlan(1, "02:00:00:00:00:02")),
        peer(103, 3, &vxlan(1, "02:00:00:00:00:03")),
    ];
    let (overlay, useless) = run(&vxlan_backend(), &peers);
    assert_eq!(useless, []);
    let tunnel = overlay.tunnel.unwrap();
    let LinkKind::Vxlan(link) = tunnel.link.kind else {
        panic!()
    };
    assert_eq!(tunnel.link.device.to_string(), "flannel.1");
    assert_eq!(
        (link.port, tunnel.link.mtu, overlay.mtu, link.underlay),
        (8472, 1450, 1450, 2)
    );
    assert_eq!(link.local.to_string(), "192.168.50.1");
    assert_eq!(tunnel.address.to_string(), "10.5.1.0");
    let gateway = IpAddr::from([10, 5, 2, 0]);
    let mac = Mac::new([2, 0, 0, 0, 0, 2]);
    assert_eq!(overlay.routes[&subnet(2)], Way::tunnel(gateway));
    assert_eq!(tunnel.neighbours[&gateway], mac);
    assert_eq!(tunnel.fdb[&mac].to_string(), "192.168.50.2");
    assert_eq!(
        (overlay.routes.len(), tunnel.neighbours.len(), tunnel.fdb.len()),
        (2, 2, 2)
    );
}

#[test]
fn a_node_with_two_subnets_has_one_fdb_entry() {
    let mut old = peer(2, 2, &vxlan(1, "02:00:00:00:00:02"));
    old.key = "10.5.77.0-24".parse().unwrap();
    let (overlay, useless) = run(
        &vxlan_backend(),
        &[old, peer(2, 3, &vxlan(1, "02:00:00:00:00:02"))],
    );
    assert_eq!(
        (overlay.peers, useless.len(), overlay.tunnel.unwrap().fdb.len()),
        (2, 0, 1)
    );
}

#[test]
fn direct_routing_leaves_out_the_tunnel_for_nodes_on_the_same_link() {
    let mut direct = vxlan_backend();
    direct.options.direct_routing = true;
    let peers = [
        peer(2, 2, &vxlan(1, "02:00:00:00:00:02")),
        peer(103, 3, &vxlan(1, "02:00:00:00:00:03")),
    ];
    let (overlay, _) = run(&direct, &peers);
    assert_eq!(
        overlay.routes[&subnet(2)],
        Way::direct(2, [192, 168, 50, 2].into())
    );
    assert_eq!(overlay.routes[&subnet(103)], Way::tunnel([10, 5, 103, 0].into()));
    let tunnel = overlay.tunnel.unwrap();
    assert_eq!((tunnel.fdb.len(), tunnel.neighbours.len()), (1, 1));
}

#[test]
fn each_useless_vxlan_record_is_named_and_the_others_stay() {
    for (backend, part) in [
        (String::new(), "names no backend"),
        (r#","BackendType":"host-gw""#.into(), "\"host-gw\""),
        (r#","BackendType":"vxlan""#.into(), "missing"),
        (
            r#","BackendType":"vxlan","BackendData":{"VNI":1}"#.into(),
            "VtepMAC",
        ),
        (
            r#","BackendType":"vxlan","BackendData":"x""#.into(),
            "BackendData",
        ),
        (vxlan(2, "02:00:00:00:00:09"), "VNI is 2"),
        (vxlan(1, "00:00:00:00:00:00"), "unicast"),
        (vxlan(1, "ff:ff:ff:ff:ff:ff"), "unicast"),
        (vxlan(1, "02:00:00:00:00:01"), "own"),
        (vxlan(1, "02:00:00:00:00:02"), "older record 10.5.2.0-24"),
    ] {
        let good = peer(2, 2, &vxlan(1, "02:00:00:00:00:02"));
        let (overlay, useless) = run(&vxlan_backend(), &[peer(9, 9, &backend), good]);
        assert_eq!(
            overlay.routes.keys().collect::<Vec<_>>(),
            [&subnet(2)],
            "{backend}"
        );
        assert_eq!(useless[0].0.to_string(), "10.5.9.0-24");
        let reason = useless[0].1.to_string();
        assert!(reason.contains(part), "{backend}: {reason}");
    }
}

#[test]
fn names_of_backend_data_are_read_in_any_case() {
    let odd = r#","BackendType":"vxlan","BackendData":{"vni":1,"VTEPMAC":"02-00-00-00-00-02"}"#;
    assert_eq!(run(&vxlan_backend(), &[peer(2, 2, odd)]).0.peers, 1);
}

#[test]
fn the_mtu_is_the_least_of_config_and_underlay_less_the_overhead() {
    let mut options = VxlanOptions::default();
    let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
    for (configured, mtu, address, expected) in [
        (None, 1500, carrier().address, 1450),
        (Some(1400), 1500, carrier().address, 1350),
        (Some(9000), 1500, carrier().address, 1450),
        (None, 9001, carrier().address, 8951),
        (None, 40, carrier().address, 0),
        (None, 1500, v6, 1430),
    ] {
        options.mtu = configured;
        let carrier = Carrier {
            mtu,
            address,
            ..carrier()
        };
        assert_eq!(overlay_mtu(&options, &carrier), expected);
    }
}

#[test]
fn ipv6_has_its_own_device_addresses_and_data() {
    let backend = Vxlan {
        options: VxlanOptions::default(),
        macs: Families::Dual(OWN, Mac::new([2, 0, 0, 0, 6, 1])),
        udp_checksum: true,
    };
    let value = |address: &str| {
        format!(
            r#"{{"PublicIP":"192.168.50.2","PublicIPv6":{address},"BackendType":"vxlan",
                "BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"02:00:00:00:06:02"}}}}"#
        )
    };
    let peers = [
        lease("10.5.2.0-24&fd00:5:0:2::-64", &value("\"fd00:50::2\""), 2),
        lease("10.5.3.0-24&fd00:5:0:3::-64", &value("null"), 3),
        // of IPv4 alone: no member of this family, and nothing wrong with it
        peer(4, 4, &vxlan(1, "02:00:00:00:00:04")),
    ];
    let facts = FamilyFacts {
        network: "fd00:5::/48".parse().unwrap(),
        own_subnet: "fd00:5:0:1::/64".parse().unwrap(),
        carrier: Carrier {
            address: "fd00:50::1".parse().unwrap(),
            ..carrier()
        },
        connected: &[],
    };
    assert_eq!(facts.family(), IpFamily::V6);
    let (overlay, useless) = backend.overlay(&facts, &peers.iter().collect::<Vec<_>>());
    assert_eq!(useless.len(), 1);
    assert!(useless[0].1.to_string().contains("no PublicIPv6"));
    let tunnel = overlay.tunnel.unwrap();
    assert_eq!(
        (tunnel.link.device.to_string().as_str(), overlay.mtu),
        ("flannel-v6.1", 1430)
    );
    let mac = Mac::new([2, 0, 0, 0, 6, 2]);
    assert_eq!(tunnel.fdb[&mac].to_string(), "fd00:50::2");
}

#[test]
fn host_gw_has_plain_routes_and_names_nodes_behind_routers() {
    let host_gw = r#","BackendType":"host-gw""#;
    let peers = [peer(2, 2, host_gw), peer(103, 3, host_gw), peer(4, 4, "")];
    let (overlay, useless) = run(&HostGw, &peers);
    assert_eq!((overlay.mtu, &overlay.tunnel), (1500, &None));
    assert_eq!(overlay.routes.len(), 1);
    assert_eq!(
        overlay.routes[&subnet(2)],
        Way::direct(2, [192, 168, 50, 2].into())
    );
    let texts: Vec<String> = useless.iter().map(|(key, why)| format!("{key} {why}")).collect();
    assert!(texts[0].contains("10.5.4.0-24 it names no backend"), "{texts:?}");
    assert!(
        texts[1].contains("10.5.103.0-24 its node 192.168.60.103 is behind a router"),
        "{texts:?}"
    );
}

#[test]
fn ipip_names_the_node_in_each_route() {
    let ipip = r#","BackendType":"ipip""#;
    let peers = [peer(2, 2, ipip), peer(103, 3, ipip)];
    let (overlay, _) = run(
        &Ipip {
            direct_routing: false,
        },
        &peers,
    );
    let tunnel = overlay.tunnel.unwrap();
    assert_eq!(
        (tunnel.link.device.to_string().as_str(), tunnel.link.mtu),
        ("flannel.ipip", 1480)
    );
    assert_eq!(overlay.routes[&subnet(2)], Way::tunnel([192, 168, 50, 2].into()));
    let (overlay, _) = run(&Ipip { direct_routing: true }, &peers);
    assert_eq!(overlay.routes[&subnet(2)].out, Out::Interface(2));
    assert_eq!(overlay.routes[&subnet(103)].out, Out::Tunnel);
}

#[test]
fn alloc_has_nothing_but_the_subnet() {
    let (overlay, useless) = run(&Alloc, &[peer(2, 2, "")]);
    assert_eq!(
        (overlay.peers, overlay.mtu, overlay.tunnel, useless.len()),
        (0, 1500, None, 0)
    );
}

#[test]
fn udp_hands_the_network_to_one_device_and_the_peers_to_the_data_path() {
    let backend = Udp {
        options: UdpOptions::default(),
        carried_by: IpFamily::V4,
    };
    let peers = [
        // As flannel writes it, as we do, behind a NAT, and one of another backend.
        peer(2, 2, ""),
        peer(3, 3, r#","BackendData":{"ECN":true}"#),
        peer(4, 4, r#","BackendType":"udp","BackendData":{"Port":9000}"#),
        peer(5, 5, r#","BackendType":"host-gw""#),
        peer(6, 6, r#","BackendData":{"Port":"x"}"#),
    ];
    let peers: Vec<&LeasePeer> = peers.iter().collect();
    let facts = FamilyFacts {
        network: "10.5.0.0/16".parse().unwrap(),
        own_subnet: "10.5.1.0/24".parse().unwrap(),
        carrier: carrier(),
        connected: &[],
    };
    let (overlay, useless) = backend.overlay(&facts, &peers);
    assert_eq!(
        (overlay.mtu, overlay.peers, overlay.device().unwrap().to_string()),
        (1472, 3, "flannel0".into())
    );
    let routes: Vec<_> = overlay.routes.into_iter().collect();
    assert_eq!(routes, [("10.5.0.0/16".parse().unwrap(), Way::device())]);
    let reasons: Vec<String> = useless
        .iter()
        .map(|(key, reason)| format!("{key} {reason}"))
        .collect();
    assert!(
        reasons[0].contains("10.5.5.0-24") && reasons[0].contains("host-gw"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].contains("10.5.6.0-24") && reasons[1].contains("Port"),
        "{reasons:?}"
    );
    let (found, _) = backend.peers(IpFamily::V4, &peers);
    let told: Vec<_> = found
        .iter()
        .map(|p| (p.endpoint.to_string(), p.any_port, p.ecn))
        .collect();
    let at = |text: &str, any_port, ecn| (text.to_owned(), any_port, ecn);
    assert_eq!(
        told,
        [
            at("192.168.50.2:8285", false, false),
            at("192.168.50.3:8285", false, true),
            at("192.168.50.4:9000", true, false)
        ]
    );
}
