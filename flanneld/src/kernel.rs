//! Between plans and netlink: the kernel as facts, and operations as requests. No decision is made here.

use std::collections::HashMap;
use std::net::IpAddr;

use flannel_model::IpSubnet;
use flannel_netlink::address::{self, Address, AddressSpec};
use flannel_netlink::link::{self, IpipSpec, Link, LinkRef, VxlanSpec};
use flannel_netlink::neighbour;
use flannel_netlink::route::{self, DEFAULT_METRIC_V6, Distance, Filter, Route, RouteKind};
use flannel_netlink::{Failure, IpFamily, NetlinkError, RouteConn, RouteRequest, fdb};
use flannel_plan::{
    CanReach, DefaultRoute, Device, Interface, InterfaceAddress, IpipLink, LinkKind, METRIC_OF_LAST_RESORT,
    ObservedRoute, Op, Out, TunnelLink, Way,
};

use crate::wireguard;

/// From so many new routes at once on, they are spread over scopes. Fewer look as everybody expects them to.
const MANY_ROUTES: usize = 1_000;
/// Scopes of routes with a gateway: those below the link's, which is 253 (`fib_check_nh_v4_gw`).
const SCOPES: usize = 253;

/// All interfaces with their addresses.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn interfaces(conn: &mut RouteConn) -> Result<Vec<Interface>, NetlinkError> {
    let links = link::dump(conn)?;
    let mut by_link: HashMap<u32, Vec<InterfaceAddress>> = HashMap::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        for address in address::dump(conn, family, None)? {
            let of_link = by_link.entry(address.ifindex).or_default();
            of_link.push(interface_address(&address));
        }
    }
    let interface = |link: Link| Interface {
        addresses: by_link.remove(&link.ifindex).unwrap_or_default(),
        ifindex: link.ifindex,
        name: link.name,
        mtu: link.mtu,
        up: link.up,
    };
    Ok(links.into_iter().map(interface).collect())
}

fn interface_address(address: &Address) -> InterfaceAddress {
    InterfaceAddress {
        address: address.local,
        length: address.length,
        host_scope: address.scope == address::Scope::Host,
        permanent: address.permanent,
        deprecated: address.deprecated,
        temporary: address.local.is_ipv6() && address.secondary,
    }
}

/// The default routes of table main that have one device, in the kernel's order.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn default_routes(conn: &mut RouteConn) -> Result<Vec<DefaultRoute>, NetlinkError> {
    let mut defaults = Vec::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        let filter = Filter {
            family,
            kind: Some(RouteKind::Unicast),
            ..Filter::default()
        };
        let routes = route::dump(conn, &filter)?.into_iter();
        let of_family = routes.filter(|r| r.destination.length() == 0).filter_map(|r| {
            Some(DefaultRoute {
                family,
                ifindex: r.ifindex?,
                metric: r.metric,
            })
        });
        defaults.extend(of_family);
    }
    Ok(defaults)
}

/// The way to an address, as `--iface-can-reach` asks for it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn can_reach(conn: &mut RouteConn, target: IpAddr) -> Result<CanReach, NetlinkError> {
    let way = route::lookup(conn, target)?.map(|way| (way.ifindex, way.source));
    Ok(CanReach { target, way })
}

/// Carries out operations in their order, many in one system call, and says what became of each. No failure stops the
/// rest. Deleting what is gone already is a success.
pub fn apply(conn: &mut RouteConn, ops: &[Op]) -> Vec<(Op, Result<(), NetlinkError>)> {
    // Operations on the device come first and go by its name; the index that all others need is known only afterwards.
    let (of_link, others): (Vec<&Op>, Vec<&Op>) = ops.iter().partition(|op| op.is_link());
    let mut results = run(conn, &of_link, 0);
    let (of_wireguard, others): (Vec<&Op>, Vec<&Op>) =
        others.into_iter().partition(|op| wireguard::concerns(op));
    let outcomes = wireguard::apply(&of_wireguard).into_iter();
    results.extend(of_wireguard.into_iter().cloned().zip(outcomes));
    let device = others.iter().find_map(|op| device_of(op));
    let devices: Result<_, NetlinkError> = device
        .map(|device| Ok((device, index_of(conn, device)?)))
        .transpose();
    match devices {
        Ok(known) => results.extend(apply_on(conn, &others, known.as_slice())),
        Err(error) => {
            // Without the tunnel the ways that lead elsewhere still serve.
            let (elsewhere, over_it): (Vec<&Op>, Vec<&Op>) =
                others.iter().partition(|op| leads_elsewhere(op));
            results.extend(run(conn, &elsewhere, 0));
            let failed = |op: &&Op| {
                let error = NetlinkError {
                    what: op.to_string(),
                    ..error.clone()
                };
                ((*op).clone(), Err(error))
            };
            results.extend(over_it.iter().map(failed));
        }
    }
    results
}

/// Carries out operations on what is about devices whose indices are known: routes, neighbours, FDB entries. One on a device that is
/// not among them fails, as it does when the index is that of a device which has gone.
pub fn apply_on(
    conn: &mut RouteConn,
    ops: &[&Op],
    devices: &[(Device, u32)],
) -> Vec<(Op, Result<(), NetlinkError>)> {
    let index = |op: &&Op| {
        let device = device_of(op);
        let known = devices.iter().find(|(known, _)| Some(*known) == device);
        // The kernel has no link 0.
        known.map_or(0, |(_, index)| *index)
    };
    let mut results = Vec::with_capacity(ops.len());
    for of_one in ops.chunk_by(|one, other| index(one) == index(other)) {
        let ifindex = of_one.first().map_or(0, index);
        results.extend(run(conn, of_one, ifindex));
    }
    results
}

/// Whether it is about a route that does not need the tunnel.
fn leads_elsewhere(op: &Op) -> bool {
    match op {
        Op::RouteAdd { way, .. }
        | Op::RouteReplace { way, .. }
        | Op::RoutePrepend { way, .. }
        | Op::RouteDelete {
            route: ObservedRoute { way, .. },
            ..
        } => way.out != Out::Tunnel,
        Op::BlackholeAdd { .. } | Op::BlackholeDelete { .. } => true,
        _ => false,
    }
}

fn run(conn: &mut RouteConn, ops: &[&Op], ifindex: u32) -> Vec<(Op, Result<(), NetlinkError>)> {
    let many = ops.iter().filter(|op| matches!(op, Op::RouteAdd { .. })).count() >= MANY_ROUTES;
    let (ops, requests): (Vec<&Op>, Vec<RouteRequest>) = ops
        .iter()
        .enumerate()
        .filter_map(|(n, op)| Some((*op, request(op, ifindex, many.then_some(n))?)))
        .unzip();
    let outcomes = conn.batch_quietly(&requests).into_iter();
    ops.into_iter()
        .zip(outcomes)
        .map(|(op, outcome)| (op.clone(), settle(op, outcome)))
        .collect()
}

fn index_of(conn: &mut RouteConn, device: Device) -> Result<u32, NetlinkError> {
    let name = device.to_string();
    let missing = || NetlinkError {
        what: format!("get link {name}"),
        failure: Failure::Refused {
            errno: rustix::io::Errno::NODEV.raw_os_error(),
            explanation: format!("{name} is not there"),
        },
    };
    Ok(link::by_name(conn, &name)?.ok_or_else(missing)?.ifindex)
}

/// Turns into successes the failures that mean that somebody was faster and the result is the wanted one.
fn settle(op: &Op, outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    let Err(error) = outcome else { return Ok(()) };
    // The text is that of the operation, with names for numbers.
    let error = NetlinkError {
        what: op.to_string(),
        ..error
    };
    let done = match op {
        Op::LinkDelete { .. }
        | Op::AddressDelete { .. }
        | Op::NeighbourDelete { .. }
        | Op::FdbDelete { .. }
        | Op::RouteDelete { .. }
        | Op::BlackholeDelete { .. } => error.is_missing(),
        Op::AddressAdd { .. } => error.is_exists(),
        Op::LinkCreate(_)
        | Op::LinkSetMac { .. }
        | Op::LinkSetMtu { .. }
        | Op::LinkSetLearning { .. }
        | Op::LinkSetLocal { .. }
        | Op::LinkUp { .. }
        | Op::WireguardIdentity { .. }
        | Op::WireguardPeerSet { .. }
        | Op::WireguardPeerRemove { .. }
        | Op::SettingSet { .. }
        | Op::NeighbourReplace { .. }
        | Op::FdbReplace { .. }
        | Op::RouteAdd { .. }
        | Op::RouteReplace { .. }
        | Op::RoutePrepend { .. }
        | Op::BlackholeAdd { .. } => false,
    };
    if done { Ok(()) } else { Err(error) }
}

/// The tunnel that an operation is about.
fn device_of(op: &Op) -> Option<Device> {
    match op {
        Op::LinkCreate(TunnelLink { device, .. })
        | Op::LinkDelete { device, .. }
        | Op::LinkSetMac { device, .. }
        | Op::LinkSetMtu { device, .. }
        | Op::LinkSetLearning { device, .. }
        | Op::LinkSetLocal { device, .. }
        | Op::LinkUp { device }
        | Op::SettingSet { device, .. }
        | Op::WireguardIdentity { device, .. }
        | Op::WireguardPeerSet { device, .. }
        | Op::WireguardPeerRemove { device, .. }
        | Op::AddressAdd { device, .. }
        | Op::AddressDelete { device, .. }
        | Op::NeighbourReplace { device, .. }
        | Op::NeighbourDelete { device, .. }
        | Op::FdbReplace { device, .. }
        | Op::FdbDelete { device, .. } => Some(*device),
        Op::RouteAdd { device, .. }
        | Op::RouteReplace { device, .. }
        | Op::RoutePrepend { device, .. }
        | Op::RouteDelete { device, .. } => *device,
        Op::BlackholeAdd { .. } | Op::BlackholeDelete { .. } => None,
    }
}

/// The request that carries out an operation; `ifindex` is that of the tunnel, `place` where the operation stands among very many.
/// `None` for what goes another way.
fn request(op: &Op, ifindex: u32, place: Option<usize>) -> Option<RouteRequest> {
    let device = device_of(op).map(|device| device.to_string()).unwrap_or_default();
    let name = LinkRef::Name(&device);
    let request = match op {
        Op::LinkDelete { .. } => link::delete(name),
        Op::LinkCreate(wanted) => create(&device, wanted),
        Op::LinkSetMac { mac, .. } => link::set_mac(name, *mac),
        Op::LinkSetMtu { mtu, .. } => link::set_mtu(name, *mtu),
        Op::LinkSetLearning { learning, .. } => link::set_vxlan_learning(name, *learning),
        Op::LinkSetLocal { local, .. } => link::set_vxlan_local(name, *local),
        Op::LinkUp { .. } => link::set_up(name),
        Op::WireguardIdentity { .. }
        | Op::WireguardPeerSet { .. }
        | Op::WireguardPeerRemove { .. }
        | Op::SettingSet { .. } => return None,
        Op::AddressAdd { address, length, .. } => address::add(&address_spec(ifindex, *address, *length)),
        Op::AddressDelete { address, length, .. } => {
            address::delete(&address_spec(ifindex, *address, *length))
        }
        Op::NeighbourReplace { address, mac, .. } => neighbour::replace(ifindex, *address, *mac),
        Op::NeighbourDelete { address, .. } => neighbour::delete(ifindex, *address),
        Op::FdbReplace { mac, dst, .. } => fdb::replace(ifindex, *mac, *dst),
        Op::FdbDelete { mac, dst, .. } => fdb::delete(ifindex, *mac, *dst),
        Op::RouteAdd { destination, way, .. } => {
            let route = route_by(*destination, way, ifindex);
            route::add(&place.map_or_else(|| route.clone(), |place| spread(&route, place)))
        }
        Op::RouteReplace { destination, way, .. } => route::replace(&route_by(*destination, way, ifindex)),
        Op::RoutePrepend { destination, way, .. } => route::prepend(&route_by(*destination, way, ifindex)),
        Op::RouteDelete { route, .. } => route::delete(&route_of(route, ifindex)),
        Op::BlackholeAdd { destination } => route::add(&last_resort(*destination)),
        Op::BlackholeDelete { destination } => route::delete(&last_resort(*destination)),
    };
    Some(request)
}

/// An IPv4 route as one of many. The kernel compares a new route with all others of the same hash, to share what it knows of the way;
/// the gateway is not part of that hash, and the scope is (`fib_info_hash_bucket`, net/ipv4/fib_semantics.c). With one scope, 10,000
/// routes over one device are 50 million comparisons. To packets on a route with a gateway all these scopes are the same.
fn spread(route: &Route, place: usize) -> Route {
    let applies = route.destination.is_ipv4() && route.scope == Distance::Universe;
    let number = u8::try_from(place % SCOPES).unwrap_or_default();
    let scope = match number {
        _ if !applies => route.scope,
        0 => Distance::Universe,
        number => Distance::Other(number),
    };
    Route {
        scope,
        ..route.clone()
    }
}

fn create(name: &str, link: &TunnelLink) -> RouteRequest {
    match link.kind {
        LinkKind::Vxlan(vxlan) => link::create_vxlan(&VxlanSpec {
            name,
            id: vxlan.id,
            underlay: vxlan.underlay,
            local: vxlan.local,
            port: vxlan.port,
            mtu: link.mtu,
            mac: vxlan.mac,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
            udp_checksum: vxlan.udp_checksum,
        }),
        LinkKind::Wireguard => link::create_wireguard(name, link.mtu),
        LinkKind::Ipip(IpipLink { local }) => link::create_ipip(&IpipSpec {
            name,
            local,
            mtu: link.mtu,
        }),
        // No plan says so: whoever reads its packets opens it.
        LinkKind::Tun => link::set_up(LinkRef::Name(name)),
    }
}

fn address_spec(ifindex: u32, local: IpAddr, length: u8) -> AddressSpec {
    AddressSpec {
        ifindex,
        local,
        length,
        no_prefix_route: false,
    }
}

/// A route that goes this way, marked as ours.
fn route_by(destination: IpSubnet, way: &Way, tunnel: u32) -> Route {
    let ifindex = match way.out {
        Out::Tunnel => tunnel,
        Out::Interface(ifindex) => ifindex,
    };
    let scope = if way.gateway.is_some() {
        Distance::Universe
    } else {
        Distance::Link
    };
    Route {
        gateway: way.gateway,
        onlink: way.onlink,
        scope,
        ..Route::on_link(destination, ifindex)
    }
}

/// A route that drops what no better route takes, marked as ours.
fn last_resort(destination: IpSubnet) -> Route {
    Route {
        metric: METRIC_OF_LAST_RESORT,
        ..Route::blackhole(destination)
    }
}

fn route_of(route: &ObservedRoute, tunnel: u32) -> Route {
    Route {
        protocol: route.protocol,
        // 0 would match every metric there (ip6_route_del).
        metric: match (route.destination.is_ipv4(), route.metric) {
            (false, 0) => DEFAULT_METRIC_V6,
            (_, metric) => metric,
        },
        ..route_by(route.destination, &route.way, tunnel)
    }
}
