//! What the kernel has of an overlay, in the words of the plan.

pub mod encap;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use flannel_model::{IpFamily, IpSubnet, WireguardPublicKey};
use flannel_plan::{
    DesiredOverlay, Device, METRIC_OF_LAST_RESORT, ObservedIpip, ObservedKind, ObservedLink, ObservedOverlay,
    ObservedRoute, ObservedVxlan, ObservedWireguard, ObservedWireguardPeer, Out, Setting, Way,
};

use crate::generic::{PeerState, Wireguard, WireguardDevice};
use crate::link::{self, Link};
use crate::route::{self, DEFAULT_METRIC_V6, Filter, Route, RouteKind};
use crate::{NetlinkError, RouteConn, address, fdb, neighbour, sysctl};

// What the plan takes for ours is what the requests mark as ours.
const _: () = assert!(flannel_plan::OUR_PROTOCOL == crate::OUR_PROTOCOL);

/// A session is not used for longer than this after its handshake (REJECT_AFTER_TIME, WireGuard whitepaper §6.1).
pub const SESSION: Duration = Duration::from_secs(180);

/// The endpoints that were written last.
pub type Written = BTreeMap<(Device, WireguardPublicKey), SocketAddr>;

/// What there is of an overlay: the tunnel device with all that is on it, and the routes to pods.
///
/// # Errors
/// When the kernel cannot be asked; a half-seen overlay would be planned for wrongly.
pub fn observe(conn: &mut RouteConn, desired: &DesiredOverlay) -> Result<ObservedOverlay, NetlinkError> {
    let link = match desired.device() {
        Some(device) => link::by_name(conn, &device.to_string())?,
        None => None,
    };
    let mut observed = match &link {
        Some(link) => observe_device(conn, link, desired.family())?,
        None => ObservedOverlay::default(),
    };
    if let (Some(device), Some(_)) = (desired.device(), &link) {
        observed.settings = observe_settings(device);
    }
    observed.routes = observe_routes(conn, link.as_ref(), desired)?;
    observed.blackholes = observe_blackholes(conn, desired)?;
    Ok(observed)
}

fn observe_device(
    conn: &mut RouteConn,
    link: &Link,
    family: IpFamily,
) -> Result<ObservedOverlay, NetlinkError> {
    let index = link.ifindex;
    let addresses = address::dump(conn, family, Some(index))?;
    let neighbours = neighbour::dump(conn, family, index)?
        .into_iter()
        .filter(|n| n.permanent);
    let fdb = fdb::dump(conn, index)?.into_iter();
    let fdb = fdb.filter(|e| e.permanent && e.plain && e.mac.is_unicast() && IpFamily::of(e.dst) == family);
    Ok(ObservedOverlay {
        link: Some(observed_link(link)),
        addresses: addresses.iter().map(|a| (a.local, a.length)).collect(),
        neighbours: neighbours.filter_map(|n| Some((n.address, n.mac?))).collect(),
        fdb: fdb.map(|e| (e.mac, e.dst)).collect(),
        settings: BTreeMap::new(),
        // Asked for over a socket of its own.
        wireguard: None,
        routes: Vec::new(),
        blackholes: BTreeSet::new(),
    })
}

/// The settings of a device, as far as this kernel has them.
pub fn observe_settings(device: Device) -> BTreeMap<Setting, String> {
    let known = |setting: &Setting| Some((*setting, sysctl::get(&setting.path(device)).ok()?));
    Setting::of(device).iter().filter_map(known).collect()
}

/// Routes over the tunnel, wherever they lead, and routes inside the network, whatever they lead over.
fn observe_routes(
    conn: &mut RouteConn,
    tunnel: Option<&Link>,
    desired: &DesiredOverlay,
) -> Result<Vec<ObservedRoute>, NetlinkError> {
    let filter = Filter {
        family: desired.family(),
        kind: Some(RouteKind::Unicast),
        ..Filter::default()
    };
    let tunnel = tunnel.map(|link| link.ifindex);
    let routes = route::dump(conn, &filter)?.into_iter().filter(|r| !r.multipath);
    let observed = routes.filter_map(|route| observed_route(&route, tunnel));
    let concerns =
        |route: &ObservedRoute| route.way.out == Out::Tunnel || desired.network.contains(&route.destination);
    Ok(observed.filter(concerns).collect())
}

/// Our routes of last resort inside the network.
fn observe_blackholes(
    conn: &mut RouteConn,
    desired: &DesiredOverlay,
) -> Result<BTreeSet<IpSubnet>, NetlinkError> {
    let filter = Filter {
        family: desired.family(),
        kind: Some(RouteKind::Blackhole),
        protocol: Some(flannel_plan::OUR_PROTOCOL),
        ..Filter::default()
    };
    let last = route::dump(conn, &filter)?
        .into_iter()
        .filter(|route| route.metric == METRIC_OF_LAST_RESORT);
    let destinations = last.map(|route| route.destination);
    Ok(destinations
        .filter(|destination| desired.network.contains(destination))
        .collect())
}

fn observed_link(link: &Link) -> ObservedLink {
    ObservedLink {
        kind: observed_kind(link),
        mtu: link.mtu,
        mac: link.mac,
        up: link.up,
    }
}

fn observed_kind(link: &Link) -> ObservedKind {
    if let Some(v) = link.vxlan {
        return ObservedKind::Vxlan(ObservedVxlan {
            id: v.id,
            underlay: v.underlay,
            local: v.local,
            port: v.port,
            learning: v.learning,
            gbp: v.gbp,
        });
    }
    if let Some(ipip) = link.ipip {
        return ObservedKind::Ipip(ObservedIpip {
            local: ipip.local,
            remote: ipip.remote,
        });
    }
    match link.kind.as_str() {
        "wireguard" => ObservedKind::Wireguard,
        other => ObservedKind::Other(other.to_owned()),
    }
}

fn observed_route(route: &Route, tunnel: Option<u32>) -> Option<ObservedRoute> {
    let ifindex = route.ifindex?;
    Some(ObservedRoute {
        destination: route.destination,
        way: Way {
            out: if tunnel == Some(ifindex) {
                Out::Tunnel
            } else {
                Out::Interface(ifindex)
            },
            gateway: route.gateway,
            onlink: route.onlink,
        },
        protocol: route.protocol,
        metric: match (route.destination.is_ipv4(), route.metric) {
            (false, DEFAULT_METRIC_V6) => 0,
            (_, metric) => metric,
        },
    })
}

/// What the WireGuard device of an overlay knows; `None` when there is none.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn observe_wireguard(
    desired: &DesiredOverlay,
    written: &Written,
) -> Result<Option<ObservedWireguard>, NetlinkError> {
    let Some(device) = wireguard_device(desired) else {
        return Ok(None);
    };
    let Some(mut wireguard) = Wireguard::open()? else {
        return Ok(None);
    };
    let state = wireguard.device(&device.to_string())?;
    Ok(state.map(|state| observed(device, state, written, SystemTime::now())))
}

fn wireguard_device(desired: &DesiredOverlay) -> Option<Device> {
    let tunnel = desired.tunnel.as_ref()?;
    tunnel.wireguard.as_ref().map(|_| tunnel.link.device)
}

fn observed(device: Device, state: WireguardDevice, written: &Written, now: SystemTime) -> ObservedWireguard {
    let peers = state.peers.into_iter().map(|(key, peer)| {
        let written = written.get(&(device, key)).copied();
        (key, observed_peer(peer, written, now))
    });
    ObservedWireguard {
        public: state.public_key,
        port: state.port,
        peers: peers.collect(),
    }
}

fn observed_peer(peer: PeerState, written: Option<SocketAddr>, now: SystemTime) -> ObservedWireguardPeer {
    // A handshake in the future is one before the clock was set back.
    let age = peer.handshake.map(|at| now.duration_since(at).unwrap_or(SESSION));
    ObservedWireguardPeer {
        endpoint: peer.endpoint,
        written,
        is_live: age.is_some_and(|age| age < SESSION),
        preshared: peer.preshared,
        keepalive: peer.keepalive,
        allowed: peer
            .allowed
            .iter()
            .filter_map(|(address, length)| IpSubnet::around(*address, *length))
            .collect(),
    }
}
