//! Examples of differences on a model of the kernel.

mod difference;
mod exchange;
mod kernel;
mod random;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flannel_model::{IpFamily, IpSubnet, Ipv4Subnet, Mac, WireguardPublicKey, WireguardSecret};

use self::kernel::apply;
use super::diff_overlay;
use crate::device::Device;
use crate::observed::{
    OUR_PROTOCOL, ObservedIpip, ObservedKind, ObservedLink, ObservedOverlay, ObservedRoute, ObservedVxlan,
    ObservedWireguardPeer,
};
use crate::op::Op;
use crate::overlay::{
    DesiredOverlay, IpipLink, LinkKind, Out, Tunnel, TunnelLink, VxlanLink, Way, WireguardPeer,
    WireguardTunnel,
};

/// A node that the tests have as a peer.
#[derive(Debug, Clone, Copy)]
struct Peer {
    subnet: IpSubnet,
    public_ip: IpAddr,
    mac: Mac,
    /// Reached without the tunnel.
    direct: bool,
}

fn subnet(n: u8) -> IpSubnet {
    Ipv4Subnet::new([10, 5, n, 0].into(), 24).unwrap().into()
}

fn mac(n: u8) -> Mac {
    Mac::new([0x8a, 0, 0, 0, 0, n])
}

fn peer(n: u8, ip: u8, station: u8) -> Peer {
    Peer {
        subnet: subnet(n),
        public_ip: IpAddr::from([192, 0, 2, ip]),
        mac: mac(station),
        direct: false,
    }
}

fn vxlan_link() -> VxlanLink {
    VxlanLink {
        id: 1,
        underlay: 2,
        local: IpAddr::from([192, 0, 2, 1]),
        port: 8472,
        mac: mac(1),
        learning: false,
        gbp: false,
        udp_checksum: true,
    }
}

fn wanted(peers: &[Peer]) -> DesiredOverlay {
    let mut tunnel = Tunnel {
        link: TunnelLink {
            device: Device::Vxlan {
                vni: 1,
                family: IpFamily::V4,
            },
            mtu: 1450,
            kind: LinkKind::Vxlan(vxlan_link()),
        },
        address: subnet(1).network(),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
        wireguard: None,
        senders: BTreeSet::new(),
        vteps: BTreeMap::new(),
    };
    let mut routes = BTreeMap::new();
    for peer in peers {
        let gateway = peer.subnet.network();
        if peer.direct {
            routes.insert(peer.subnet, Way::direct(2, peer.public_ip));
        } else {
            tunnel.neighbours.insert(gateway, peer.mac);
            tunnel.fdb.insert(peer.mac, peer.public_ip);
            routes.insert(peer.subnet, Way::tunnel(gateway));
        }
    }
    DesiredOverlay {
        network: "10.5.0.0/16".parse().unwrap(),
        own_subnet: subnet(1),
        mtu: 1450,
        tunnel: Some(tunnel),
        peers: routes.len(),
        routes,
        blackholes: BTreeSet::new(),
    }
}

fn tunnel(desired: &DesiredOverlay) -> &Tunnel {
    desired.tunnel.as_ref().unwrap()
}

fn kind_of(kind: &LinkKind) -> ObservedKind {
    match kind {
        LinkKind::Vxlan(link) => ObservedKind::Vxlan(ObservedVxlan {
            id: link.id,
            underlay: Some(link.underlay),
            local: Some(link.local),
            port: link.port,
            learning: link.learning,
            gbp: link.gbp,
        }),
        LinkKind::Ipip(link) => ObservedKind::Ipip(ObservedIpip {
            local: Some(link.local),
            remote: None,
        }),
        LinkKind::Wireguard => ObservedKind::Wireguard,
        LinkKind::Tun => ObservedKind::Other("tun".to_owned()),
    }
}

fn link_of(link: &TunnelLink) -> ObservedLink {
    ObservedLink {
        kind: kind_of(&link.kind),
        mtu: link.mtu,
        mac: match link.kind {
            LinkKind::Vxlan(vxlan) => Some(vxlan.mac),
            LinkKind::Ipip(_) | LinkKind::Wireguard | LinkKind::Tun => None,
        },
        up: true,
    }
}

fn vxlan_of(link: &mut ObservedLink) -> &mut ObservedVxlan {
    match &mut link.kind {
        ObservedKind::Vxlan(vxlan) => vxlan,
        other => panic!("{other:?}"),
    }
}

fn route(n: u8, protocol: u8) -> ObservedRoute {
    let destination = subnet(n);
    ObservedRoute {
        destination,
        way: Way::tunnel(destination.network()),
        protocol,
        metric: 0,
    }
}

/// The kernel after everything wanted was made.
fn settled(desired: &DesiredOverlay) -> ObservedOverlay {
    let mut kernel = ObservedOverlay::default();
    for op in diff_overlay(desired, &kernel) {
        apply(&mut kernel, &op).unwrap();
    }
    kernel
}

fn texts(ops: &[Op]) -> Vec<String> {
    ops.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_kernel_gets_everything_in_order() {
    let ops = texts(&diff_overlay(
        &wanted(&[peer(2, 12, 2)]),
        &ObservedOverlay::default(),
    ));
    let expected = [
        "link add flannel.1 mtu 1450 address 8a:00:00:00:00:01 type vxlan id 1 link 2 local 192.0.2.1 dstport 8472 \
         nolearning",
        "link set flannel.1 up",
        "address add 10.5.1.0/32 dev flannel.1",
        "fdb replace 8a:00:00:00:00:02 dev flannel.1 dst 192.0.2.12 self permanent",
        "neighbour replace 10.5.2.0 lladdr 8a:00:00:00:00:02 dev flannel.1 permanent",
        "route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
    ];
    assert_eq!(ops, expected);
}

#[test]
fn a_kernel_that_flannel_left_is_adopted_and_only_its_routes_are_marked() {
    let desired = wanted(&[peer(2, 12, 2), peer(3, 13, 3)]);
    let mut kernel = settled(&desired);
    kernel.routes.iter_mut().for_each(|r| r.protocol = 3);
    let expected = [
        "route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
        "route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink",
    ];
    assert_eq!(texts(&diff_overlay(&desired, &kernel)), expected);
}

#[test]
fn a_peer_that_left_is_removed_from_the_route_down() {
    let kernel = settled(&wanted(&[peer(2, 12, 2), peer(3, 13, 3)]));
    let expected = [
        "route delete 10.5.3.0/24 via 10.5.3.0 dev flannel.1 proto 70",
        "fdb delete 8a:00:00:00:00:03 dev flannel.1 dst 192.0.2.13 self",
        "neighbour delete 10.5.3.0 dev flannel.1",
    ];
    assert_eq!(
        texts(&diff_overlay(&wanted(&[peer(2, 12, 2)]), &kernel)),
        expected
    );
}

#[test]
fn a_new_vtep_address_is_known_before_the_old_one_is_forgotten() {
    let kernel = settled(&wanted(&[peer(2, 12, 2)]));
    let expected = [
        "fdb replace 8a:00:00:00:00:09 dev flannel.1 dst 192.0.2.12 self permanent",
        "neighbour replace 10.5.2.0 lladdr 8a:00:00:00:00:09 dev flannel.1 permanent",
        "fdb delete 8a:00:00:00:00:02 dev flannel.1 dst 192.0.2.12 self",
    ];
    assert_eq!(
        texts(&diff_overlay(&wanted(&[peer(2, 12, 9)]), &kernel)),
        expected
    );
}

#[test]
fn a_peer_with_a_new_public_address_costs_one_change() {
    let kernel = settled(&wanted(&[peer(2, 12, 2)]));
    let expected = ["fdb replace 8a:00:00:00:00:02 dev flannel.1 dst 192.0.2.77 self permanent"];
    assert_eq!(
        texts(&diff_overlay(&wanted(&[peer(2, 77, 2)]), &kernel)),
        expected
    );
}

#[test]
fn a_node_that_moved_to_another_subnet_keeps_its_one_fdb_entry() {
    let both = wanted(&[peer(2, 12, 2), peer(3, 12, 2)]);
    let kernel = settled(&both);
    assert_eq!(kernel.fdb.len(), 1);
    let expected = [
        "route delete 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 70",
        "neighbour delete 10.5.2.0 dev flannel.1",
    ];
    assert_eq!(
        texts(&diff_overlay(&wanted(&[peer(3, 12, 2)]), &kernel)),
        expected
    );
}

#[test]
fn what_can_be_corrected_in_place_is_and_the_rest_is_made_anew_with_its_reason() {
    let desired = wanted(&[peer(2, 12, 2)]);
    let mut kernel = settled(&desired);
    let mut link = kernel.link.clone().unwrap();
    link.mtu = 1400;
    link.up = false;
    vxlan_of(&mut link).learning = true;
    vxlan_of(&mut link).local = Some(IpAddr::from([192, 0, 2, 99]));
    kernel.link = Some(link.clone());
    let expected = [
        "link set flannel.1 type vxlan nolearning",
        "link set flannel.1 type vxlan local 192.0.2.1",
        "link set flannel.1 mtu 1450",
        "link set flannel.1 up",
    ];
    assert_eq!(texts(&diff_overlay(&desired, &kernel)), expected);

    vxlan_of(&mut link).port = 4789;
    vxlan_of(&mut link).underlay = Some(7);
    kernel.link = Some(link.clone());
    let ops = texts(&diff_overlay(&desired, &kernel));
    assert_eq!(
        ops[0],
        "link delete flannel.1 (underlay is link 7, not 2, port is 4789, not 8472)"
    );
    assert_eq!(ops.len(), 7, "and everything anew: {ops:?}");
    kernel.link = Some(ObservedLink {
        kind: ObservedKind::Other("bridge".to_owned()),
        ..link
    });
    assert_eq!(
        texts(&diff_overlay(&desired, &kernel))[0],
        "link delete flannel.1 (it is not a VXLAN device)"
    );
}

#[test]
fn another_own_address_comes_before_the_old_one_goes() {
    let desired = wanted(&[]);
    let mut kernel = settled(&desired);
    let foreign = (IpAddr::from([172, 16, 0, 1]), 24);
    kernel.addresses = vec![
        (IpAddr::from([10, 5, 8, 0]), 32),
        (tunnel(&desired).address, 24),
        foreign,
    ];
    let expected = [
        "address add 10.5.1.0/32 dev flannel.1",
        "address delete 10.5.8.0/32 dev flannel.1",
        "address delete 10.5.1.0/24 dev flannel.1",
    ];
    assert_eq!(texts(&diff_overlay(&desired, &kernel)), expected);
}

#[test]
fn foreign_routes_are_left_and_serve_if_they_lead_the_right_way() {
    let desired = wanted(&[peer(2, 12, 2), peer(3, 13, 3)]);
    let mut kernel = settled(&desired);
    kernel.routes = vec![
        route(2, 4), // static, the right way
        ObservedRoute {
            way: Way::tunnel([10, 5, 9, 9].into()),
            ..route(3, 4)
        }, // static, another way
        ObservedRoute {
            way: Way {
                onlink: false,
                ..route(7, 3).way
            },
            ..route(7, 3)
        }, // by hand, not of flannel's shape
        ObservedRoute {
            metric: 50,
            ..route(8, 3)
        },
    ];
    let ops = diff_overlay(&desired, &kernel);
    assert_eq!(
        texts(&ops),
        ["route prepend 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink"]
    );
    ops.iter().for_each(|op| apply(&mut kernel, op).unwrap());
    assert_eq!(diff_overlay(&desired, &kernel), []);
    // Somebody puts theirs before ours again.
    kernel.routes.rotate_left(1);
    let third = kernel.routes.iter().position(|r| r.is_marked()).unwrap();
    let ours = kernel.routes.remove(third);
    kernel.routes.push(ours);
    let expected = [
        "route delete 10.5.3.0/24 via 10.5.3.0 dev flannel.1 proto 70",
        "route prepend 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink",
    ];
    assert_eq!(texts(&diff_overlay(&desired, &kernel)), expected);
}

#[test]
fn a_peer_on_the_same_link_is_reached_without_the_tunnel_and_back() {
    let far = [peer(2, 12, 2), peer(3, 13, 3)];
    let near = [
        Peer {
            direct: true,
            ..far[0]
        },
        far[1],
    ];
    let mut kernel = settled(&wanted(&far));
    let expected = [
        "route replace 10.5.2.0/24 via 192.0.2.12 dev if2",
        "fdb delete 8a:00:00:00:00:02 dev flannel.1 dst 192.0.2.12 self",
        "neighbour delete 10.5.2.0 dev flannel.1",
    ];
    let ops = diff_overlay(&wanted(&near), &kernel);
    assert_eq!(texts(&ops), expected);
    ops.iter().for_each(|op| apply(&mut kernel, op).unwrap());
    let expected = [
        "fdb replace 8a:00:00:00:00:02 dev flannel.1 dst 192.0.2.12 self permanent",
        "neighbour replace 10.5.2.0 lladdr 8a:00:00:00:00:02 dev flannel.1 permanent",
        "route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
    ];
    assert_eq!(texts(&diff_overlay(&wanted(&far), &kernel)), expected);
}

/// An overlay without a tunnel, with one peer on the link.
fn plain() -> DesiredOverlay {
    DesiredOverlay {
        tunnel: None,
        ..wanted(&[Peer {
            direct: true,
            ..peer(2, 12, 2)
        }])
    }
}

#[test]
fn without_a_tunnel_there_are_only_routes() {
    let mut kernel = ObservedOverlay::default();
    let ops = diff_overlay(&plain(), &kernel);
    assert_eq!(texts(&ops), ["route add 10.5.2.0/24 via 192.0.2.12 dev if2"]);
    ops.iter().for_each(|op| apply(&mut kernel, op).unwrap());
    assert_eq!(diff_overlay(&plain(), &kernel), []);
    let way = |last: u8| Way::direct(2, IpAddr::from([192, 0, 2, last]));
    let of = |n: u8, way: Way, protocol: u8| ObservedRoute {
        way,
        ..route(n, protocol)
    };
    kernel.routes = vec![
        of(2, way(12), 3),            // flannel's, and right
        of(3, way(13), 3),            // flannel's, of a peer that left
        of(4, way(14), OUR_PROTOCOL), // ours, of a peer that left
        of(5, way(15), 4),            // an operator's
    ];
    let expected = [
        "route delete 10.5.3.0/24 via 192.0.2.13 dev if2 proto 3",
        "route delete 10.5.4.0/24 via 192.0.2.14 dev if2 proto 70",
        "route replace 10.5.2.0/24 via 192.0.2.12 dev if2",
    ];
    assert_eq!(texts(&diff_overlay(&plain(), &kernel)), expected);
}

#[test]
fn a_backend_without_plain_routes_leaves_those_that_may_be_an_operators() {
    let desired = wanted(&[peer(2, 12, 2)]);
    let mut kernel = settled(&desired);
    kernel.routes.push(ObservedRoute {
        way: Way::direct(2, IpAddr::from([192, 0, 2, 13])),
        ..route(3, 3)
    });
    assert_eq!(diff_overlay(&desired, &kernel), []);
}

fn ipip(local: [u8; 4]) -> DesiredOverlay {
    let link = TunnelLink {
        device: Device::Ipip,
        mtu: 1480,
        kind: LinkKind::Ipip(IpipLink { local: local.into() }),
    };
    let mut desired = wanted(&[]);
    desired.tunnel = Some(Tunnel {
        link,
        ..tunnel(&desired).clone()
    });
    desired
        .routes
        .insert(subnet(2), Way::tunnel([192, 0, 2, 12].into()));
    desired
}

#[test]
fn an_ipip_device_names_the_other_end_in_each_route() {
    let desired = ipip([192, 0, 2, 1]);
    let expected = [
        "link add flannel.ipip mtu 1480 type ipip local 192.0.2.1",
        "link set flannel.ipip up",
        "address add 10.5.1.0/32 dev flannel.ipip",
        "route add 10.5.2.0/24 via 192.0.2.12 dev flannel.ipip onlink",
    ];
    assert_eq!(
        texts(&diff_overlay(&desired, &ObservedOverlay::default())),
        expected
    );
    let mut kernel = settled(&desired);
    assert_eq!(diff_overlay(&desired, &kernel), []);
    kernel.routes[0].protocol = 3;
    let adopted = diff_overlay(&desired, &kernel);
    assert_eq!(
        texts(&adopted),
        ["route replace 10.5.2.0/24 via 192.0.2.12 dev flannel.ipip onlink"]
    );
    let moved = texts(&diff_overlay(&ipip([192, 0, 2, 77]), &kernel));
    assert_eq!(
        moved[0],
        "link delete flannel.ipip (local is 192.0.2.1, not 192.0.2.77)"
    );
    assert_eq!(moved.len(), 5, "and everything anew: {moved:?}");
}

#[test]
fn a_tun_device_is_waited_for_and_then_furnished() {
    let network: IpSubnet = "10.5.0.0/16".parse().unwrap();
    let desired = DesiredOverlay {
        network,
        own_subnet: "10.5.1.0/24".parse().unwrap(),
        mtu: 1472,
        tunnel: Some(Tunnel {
            link: TunnelLink {
                device: Device::Tun,
                mtu: 1472,
                kind: LinkKind::Tun,
            },
            address: [10, 5, 1, 0].into(),
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
            wireguard: None,
            senders: BTreeSet::new(),
            vteps: BTreeMap::new(),
        }),
        routes: BTreeMap::from([(network, Way::device())]),
        blackholes: BTreeSet::new(),
        peers: 1,
    };
    // Only who reads its packets can make it.
    assert_eq!(diff_overlay(&desired, &ObservedOverlay::default()), []);
    let mut observed = ObservedOverlay {
        link: Some(ObservedLink {
            kind: ObservedKind::Other("tun".to_owned()),
            mtu: 1500,
            mac: None,
            up: false,
        }),
        ..ObservedOverlay::default()
    };
    let ops: Vec<String> = diff_overlay(&desired, &observed)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        ops,
        [
            "link set flannel0 mtu 1472",
            "link set flannel0 up",
            "address add 10.5.1.0/32 dev flannel0",
            "route add 10.5.0.0/16 dev flannel0",
        ]
    );
    observed.link = Some(ObservedLink {
        mtu: 1472,
        up: true,
        ..observed.link.unwrap()
    });
    observed.addresses = vec![([10, 5, 1, 0].into(), 32)];
    observed.routes = vec![ObservedRoute {
        destination: network,
        way: Way::device(),
        protocol: OUR_PROTOCOL,
        metric: 0,
    }];
    assert_eq!(diff_overlay(&desired, &observed), []);
}
