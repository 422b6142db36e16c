//! The properties that hold for all differences.

use proptest::prelude::*;

use super::*;

prop_compose! {
    fn any_peers()(stations in prop::collection::vec((2u8..30, 2u8..12, any::<bool>()), 0..20)) -> Vec<Peer> {
        let mut subnets = BTreeSet::new();
        let mut ways = BTreeMap::new();
        // One public address a station, and one way to it, as the backends see to it.
        let peers = stations.into_iter().filter(|(n, _, _)| subnets.insert(*n));
        peers.map(|(n, station, direct)| {
            let direct = *ways.entry(station).or_insert(direct);
            Peer { direct, ..peer(n, station, station) }
        }).collect()
    }
}

prop_compose! {
    fn any_route()(n in 2u8..30, protocol in prop::sample::select(vec![3u8, 4, 70]),
                   onlink in any::<bool>(), metric in prop::sample::select(vec![0u32, 0, 9]), plain in any::<bool>(),
                   gateway in prop::option::of(1u8..4)) -> ObservedRoute {
        let usual = route(n, protocol);
        let gateway = gateway.map_or(usual.way.gateway, |last| Some(IpAddr::from([10, 5, n, last])));
        let out = if plain { Out::Interface(2) } else { Out::Tunnel };
        ObservedRoute { metric, way: Way { out, gateway, onlink }, ..usual }
    }
}

prop_compose! {
    fn any_link()(differs in 0u8..9) -> Option<ObservedLink> {
        let mut link = link_of(&tunnel(&wanted(&[])).link);
        let vxlan = vxlan_of(&mut link);
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
                    routes in prop::collection::vec(any_route(), 0..20),
                    blackholes in prop::collection::btree_set((2u8..30).prop_map(subnet), 0..3)) -> ObservedOverlay {
        if link.is_none() {
            return ObservedOverlay { blackholes, ..ObservedOverlay::default() };
        }
        let mut seen = BTreeSet::new();
        let unique = |r: &ObservedRoute| seen.insert((r.destination, r.metric));
        // A device that is down has neither neighbours nor routes.
        let up = link.as_ref().is_some_and(|l| l.up);
        ObservedOverlay {
            wireguard: None,
            settings: BTreeMap::new(),
            addresses: addresses.into_iter().collect(),
            neighbours: if up { neighbours.into_iter().map(|(n, m)| (subnet(n).network(), mac(m))).collect() }
                else { BTreeMap::new() },
            fdb: fdb.into_iter().map(|(m, ip)| (mac(m), IpAddr::from([192, 0, 2, ip]))).collect(),
            routes: if up { routes.into_iter().filter(unique).collect() } else { Vec::new() },
            blackholes,
            link,
        }
    }
}

/// Whether a route is ours or flannel's, as the rule is written down beside the code.
fn is_ours(desired: &DesiredOverlay, route: &ObservedRoute) -> bool {
    let plain = desired.routes.values().any(|way| way.out != Out::Tunnel);
    let shape = match route.way.out {
        Out::Tunnel => route.way.onlink && route.way.gateway == Some(route.destination.network()),
        Out::Interface(_) => plain && !route.way.onlink,
    };
    route.protocol == OUR_PROTOCOL || (route.protocol == 3 && route.metric == 0 && shape)
}

/// The foreign routes: they may vanish only together with the device.
fn foreign(desired: &DesiredOverlay, kernel: &ObservedOverlay, recreated: bool) -> BTreeSet<ObservedRoute> {
    let goes = |r: &ObservedRoute| is_ours(desired, r) || (recreated && r.way.out == Out::Tunnel);
    kernel.routes.iter().filter(|r| !goes(r)).copied().collect()
}

proptest! {
    #[test]
    fn applying_the_difference_leads_to_what_is_wanted(peers in any_peers(), before in any_kernel()) {
        let desired = wanted(&peers);
        let ops = diff_overlay(&desired, &before);
        let recreated = ops.iter().any(|op| matches!(op, Op::LinkCreate(_)));
        let taken = foreign(&desired, &before, recreated);
        let mut kernel = before.clone();
        for op in &ops {
            prop_assert_eq!(apply(&mut kernel, op), Ok(()), "{}", op);
            if let Op::RouteAdd { way, .. } | Op::RouteReplace { way, .. } | Op::RoutePrepend { way, .. } = op {
                prop_assert!(leads_somewhere(&kernel, way), "a route to nowhere: {}", op);
            }
        }
        prop_assert_eq!(foreign(&desired, &kernel, false), taken.clone());
        let wanted_tunnel = tunnel(&desired);
        prop_assert_eq!(kernel.link.as_ref(), Some(&link_of(&wanted_tunnel.link)));
        prop_assert_eq!(&kernel.neighbours, &wanted_tunnel.neighbours);
        prop_assert_eq!(&kernel.fdb, &wanted_tunnel.fdb);
        prop_assert_eq!(&kernel.blackholes, &desired.blackholes);
        prop_assert!(kernel.addresses.contains(&(wanted_tunnel.address, 32)));
        let ours: BTreeSet<_> = kernel.routes.iter().filter(|r| is_ours(&desired, r)).map(|r| r.destination).collect();
        // Somebody else's route that leads the right way serves as well; where it leads elsewhere, ours is before it.
        let served = |d: &IpSubnet| taken.iter().any(|r| r.destination == *d && r.metric == 0 && r.way == desired.routes[d]);
        let expected: BTreeSet<_> = desired.routes.keys().filter(|d| !served(d)).copied().collect();
        prop_assert_eq!(ours, expected);
        for (destination, way) in &desired.routes {
            let first = kernel.routes.iter().find(|r| r.destination == *destination && r.metric == 0);
            prop_assert_eq!(first.map(|route| route.way), Some(*way));
        }
        prop_assert_eq!(diff_overlay(&desired, &kernel), vec![]);
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
                let route = kernel.routes.iter().find(|r| r.destination == peer.subnet);
                prop_assert!(route.is_some_and(|r| leads_somewhere(&kernel, &r.way)), "{} cuts {:?}", op, peer);
            }
        }
    }
}

/// Whether a packet that goes this way leaves the node.
fn leads_somewhere(kernel: &ObservedOverlay, way: &Way) -> bool {
    let station = || way.gateway.and_then(|gateway| kernel.neighbours.get(&gateway));
    way.out != Out::Tunnel || station().is_some_and(|mac| kernel.fdb.contains_key(mac))
}
