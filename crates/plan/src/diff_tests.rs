//! Examples of differences, and the properties that hold for all of them on a model of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{IpSubnet, Ipv4Subnet, Mac, VxlanOptions};
use proptest::prelude::*;

use crate::diff::{OUR_PROTOCOL, ObservedLink, ObservedOverlay, ObservedRoute, ObservedVxlan, diff_overlay};
use crate::op::Op;
use crate::vxlan::{Carrier, DesiredOverlay, OverlayFacts, Peer, VxlanLink, desired_overlay};

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
        vtep_mac: mac(station),
    }
}

fn wanted(peers: &[Peer]) -> DesiredOverlay {
    desired_overlay(&OverlayFacts {
        own_subnet: subnet(1),
        network: "10.5.0.0/16".parse().unwrap(),
        options: VxlanOptions::default(),
        carrier: Carrier {
            ifindex: 2,
            mtu: 1500,
            address: IpAddr::from([192, 0, 2, 1]),
        },
        vtep_mac: mac(1),
        peers: peers.to_vec(),
    })
}

fn link_of(link: &VxlanLink) -> ObservedLink {
    ObservedLink {
        vxlan: Some(ObservedVxlan {
            id: link.id,
            underlay: Some(link.underlay),
            local: Some(link.local),
            port: link.port,
            learning: link.learning,
            gbp: link.gbp,
        }),
        mtu: link.mtu,
        mac: Some(link.mac),
        up: true,
    }
}

fn route(n: u8, protocol: u8) -> ObservedRoute {
    let destination = subnet(n);
    ObservedRoute {
        destination,
        gateway: Some(destination.network()),
        onlink: true,
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

/// What a kernel does with an operation.
fn apply(kernel: &mut ObservedOverlay, op: &Op) -> Result<(), &'static str> {
    match op {
        Op::LinkDelete { .. } => *kernel = ObservedOverlay::default(),
        Op::LinkCreate(link) if kernel.link.is_none() => {
            kernel.link = Some(ObservedLink {
                up: false,
                ..link_of(link)
            });
        }
        Op::LinkCreate(_) => return Err("EEXIST"),
        other => {
            let link = kernel.link.as_mut().ok_or("ENODEV")?;
            match other {
                Op::LinkSetMac { mac, .. } => {
                    link.mac = Some(*mac);
                    kernel.neighbours.clear();
                }
                Op::LinkSetMtu { mtu, .. } => link.mtu = *mtu,
                Op::LinkSetLearning { learning, .. } => {
                    link.vxlan.as_mut().ok_or("EOPNOTSUPP")?.learning = *learning;
                }
                Op::LinkSetLocal { local, .. } => {
                    link.vxlan.as_mut().ok_or("EOPNOTSUPP")?.local = Some(*local)
                }
                Op::LinkUp { .. } => link.up = true,
                entry => return apply_entry(kernel, entry),
            }
        }
    }
    Ok(())
}

fn apply_entry(kernel: &mut ObservedOverlay, op: &Op) -> Result<(), &'static str> {
    let at = |routes: &[ObservedRoute], d: IpSubnet| {
        routes.iter().position(|r| r.destination == d && r.metric == 0)
    };
    match op {
        Op::AddressAdd { address, length, .. } => kernel.addresses.push((*address, *length)),
        Op::AddressDelete { address, length, .. } => {
            kernel.addresses.retain(|a| *a != (*address, *length));
            if kernel.addresses.is_empty() {
                kernel.routes.clear();
            }
        }
        Op::NeighbourReplace { address, mac, .. } => {
            kernel.neighbours.insert(*address, *mac);
        }
        Op::NeighbourDelete { address, .. } => {
            kernel.neighbours.remove(address).ok_or("ENOENT")?;
        }
        Op::FdbReplace { mac, dst, .. } => {
            kernel.fdb.insert(*mac, *dst);
        }
        Op::FdbDelete { mac, dst, .. } => {
            if kernel.fdb.get(mac) != Some(dst) {
                return Err("ENOENT");
            }
            kernel.fdb.remove(mac);
        }
        Op::RouteAdd { destination, .. } if at(&kernel.routes, *destination).is_some() => {
            return Err("EEXIST");
        }
        Op::RouteAdd {
            destination, gateway, ..
        }
        | Op::RouteReplace {
            destination, gateway, ..
        } => {
            if !kernel.link.as_ref().is_some_and(|l| l.up) {
                return Err("ENETDOWN");
            }
            if let Some(i) = at(&kernel.routes, *destination) {
                kernel.routes.remove(i);
            }
            let route = ObservedRoute {
                destination: *destination,
                gateway: Some(*gateway),
                onlink: true,
                protocol: OUR_PROTOCOL,
                metric: 0,
            };
            kernel.routes.push(route);
        }
        Op::RouteDelete { route, .. } => {
            let i = kernel.routes.iter().position(|r| r == route).ok_or("ESRCH")?;
            kernel.routes.remove(i);
        }
        _ => return Err("not an entry"),
    }
    Ok(())
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
    if let Some(vxlan) = link.vxlan.as_mut() {
        vxlan.learning = true;
        vxlan.local = Some(IpAddr::from([192, 0, 2, 99]));
    }
    kernel.link = Some(link.clone());
    let expected = [
        "link set flannel.1 mtu 1450",
        "link set flannel.1 type vxlan nolearning",
        "link set flannel.1 type vxlan local 192.0.2.1",
        "link set flannel.1 up",
    ];
    assert_eq!(texts(&diff_overlay(&desired, &kernel)), expected);

    if let Some(vxlan) = link.vxlan.as_mut() {
        vxlan.port = 4789;
        vxlan.underlay = Some(7);
    }
    kernel.link = Some(link.clone());
    let ops = texts(&diff_overlay(&desired, &kernel));
    assert_eq!(
        ops[0],
        "link delete flannel.1 (underlay is link 7, not 2, port is 4789, not 8472)"
    );
    assert_eq!(ops.len(), 7, "and everything anew: {ops:?}");
    kernel.link = Some(ObservedLink { vxlan: None, ..link });
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
    kernel.addresses = vec![(IpAddr::from([10, 5, 8, 0]), 32), (desired.address, 24), foreign];
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
            gateway: Some([10, 5, 9, 9].into()),
            ..route(3, 4)
        }, // static, another way
        ObservedRoute {
            onlink: false,
            ..route(7, 3)
        }, // by hand, not of flannel's shape
        ObservedRoute {
            metric: 50,
            ..route(8, 3)
        },
    ];
    assert_eq!(
        texts(&diff_overlay(&desired, &kernel)),
        ["route add 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink"]
    );
}

prop_compose! {
    fn any_peers()(stations in prop::collection::vec((2u8..30, 2u8..12), 0..20)) -> Vec<Peer> {
        let mut subnets = BTreeSet::new();
        // One public address a station, as the checks before this crate's diff see to it.
        let peers = stations.into_iter().filter(|(n, _)| subnets.insert(*n));
        peers.map(|(n, station)| peer(n, station, station)).collect()
    }
}

prop_compose! {
    fn any_route()(n in 2u8..30, protocol in prop::sample::select(vec![3u8, 4, 70]),
                   onlink in any::<bool>(), metric in prop::sample::select(vec![0u32, 0, 9]),
                   gateway in prop::option::of(1u8..4)) -> ObservedRoute {
        let usual = route(n, protocol);
        let gateway = gateway.map_or(usual.gateway, |last| Some(IpAddr::from([10, 5, n, last])));
        ObservedRoute { onlink, metric, gateway, ..usual }
    }
}

prop_compose! {
    fn any_link()(differs in 0u8..9) -> Option<ObservedLink> {
        let mut link = link_of(&wanted(&[]).link);
        let mut vxlan = link.vxlan.unwrap();
        match differs {
            0 => return None,
            1 => vxlan.id = 2,
            2 => vxlan.gbp = true,
            3 => vxlan.local = None,
            4 => vxlan.learning = true,
            5 => link.mtu = 1300,
            6 => link.mac = Some(mac(99)),
            7 => link.up = false,
            _ => {}
        }
        link.vxlan = Some(vxlan);
        Some(link)
    }
}

prop_compose! {
    fn any_kernel()(link in any_link(),
                    addresses in prop::collection::btree_set((prop::sample::select(vec![
                        IpAddr::from([10, 5, 1, 0]), IpAddr::from([10, 5, 4, 0]), IpAddr::from([172, 16, 0, 1])
                    ]), prop::sample::select(vec![24u8, 32])), 0..4),
                    neighbours in prop::collection::btree_map(2u8..30, 2u8..20, 0..20),
                    fdb in prop::collection::btree_map(2u8..20, 2u8..20, 0..20),
                    routes in prop::collection::vec(any_route(), 0..20)) -> ObservedOverlay {
        if link.is_none() {
            return ObservedOverlay::default();
        }
        let mut seen = BTreeSet::new();
        let unique = |r: &ObservedRoute| seen.insert((r.destination, r.metric));
        // A device that is down has neither neighbours nor routes.
        let up = link.as_ref().is_some_and(|l| l.up);
        ObservedOverlay {
            addresses: addresses.into_iter().collect(),
            neighbours: if up { neighbours.into_iter().map(|(n, m)| (subnet(n).network(), mac(m))).collect() }
                else { BTreeMap::new() },
            fdb: fdb.into_iter().map(|(m, ip)| (mac(m), IpAddr::from([192, 0, 2, ip]))).collect(),
            routes: if up { routes.into_iter().filter(unique).collect() } else { Vec::new() },
            link,
        }
    }
}

/// The foreign routes: they may vanish only together with the device.
fn foreign(kernel: &ObservedOverlay) -> BTreeSet<ObservedRoute> {
    kernel.routes.iter().filter(|r| !r.is_ours()).copied().collect()
}

proptest! {
    #[test]
    fn applying_the_difference_leads_to_what_is_wanted(peers in any_peers(), before in any_kernel()) {
        let desired = wanted(&peers);
        let ops = diff_overlay(&desired, &before);
        let recreated = ops.iter().any(|op| matches!(op, Op::LinkCreate(_)));
        let taken: BTreeSet<_> = if recreated { BTreeSet::new() } else { foreign(&before) };
        let mut kernel = before.clone();
        for op in &ops {
            match (apply(&mut kernel, op), op) {
                // Only a foreign route to the same destination may be in the way.
                (Err(_), Op::RouteAdd { destination, .. }) => {
                    prop_assert!(taken.iter().any(|r| r.destination == *destination && r.metric == 0));
                }
                (result, op) => prop_assert_eq!(result, Ok(()), "{}", op),
            }
            if let Op::RouteAdd { gateway, .. } | Op::RouteReplace { gateway, .. } = op {
                let station = kernel.neighbours.get(gateway);
                prop_assert!(station.is_some_and(|m| kernel.fdb.contains_key(m)), "a route to nowhere: {}", op);
            }
        }
        prop_assert_eq!(foreign(&kernel), taken.clone());
        prop_assert_eq!(kernel.link.as_ref(), Some(&link_of(&desired.link)));
        prop_assert_eq!(&kernel.neighbours, &desired.neighbours);
        prop_assert_eq!(&kernel.fdb, &desired.fdb);
        prop_assert!(kernel.addresses.contains(&(desired.address, 32)));
        let ours: BTreeSet<_> = kernel.routes.iter().filter(|r| r.is_ours()).map(|r| r.destination).collect();
        let blocked = |d: &IpSubnet| taken.iter().any(|r| r.destination == *d && r.metric == 0);
        let expected: BTreeSet<_> = desired.routes.keys().filter(|d| !blocked(d)).copied().collect();
        prop_assert_eq!(ours, expected);
        let again = diff_overlay(&desired, &kernel);
        let only_blocked = again.iter().all(|op| matches!(op, Op::RouteAdd { destination, .. } if blocked(destination)));
        prop_assert!(only_blocked, "not settled: {again:?}");
    }

    #[test]
    fn nothing_is_changed_where_nothing_differs(peers in any_peers()) {
        let desired = wanted(&peers);
        prop_assert_eq!(diff_overlay(&desired, &settled(&desired)), vec![]);
    }

    #[test]
    fn a_peer_that_stays_is_reachable_all_the_time(before in any_peers(), after in any_peers()) {
        let mut kernel = settled(&wanted(&before));
        let desired = wanted(&after);
        let staying: Vec<_> = before.iter().filter(|p| after.iter().any(|q| q.subnet == p.subnet)).collect();
        for op in diff_overlay(&desired, &kernel) {
            apply(&mut kernel, &op).unwrap();
            for peer in &staying {
                let station = kernel.neighbours.get(&peer.subnet.network());
                prop_assert!(kernel.routes.iter().any(|r| r.destination == peer.subnet));
                prop_assert!(station.is_some_and(|m| kernel.fdb.contains_key(m)), "{} cuts {:?}", op, peer);
            }
        }
    }
}
