//! The way to every peer: routes, and what the tunnel devices know.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use flannel_model::IpSubnet;
use flannel_netlink::generic::WireguardDevice;
use flannel_netlink::route::Route;
use flannel_plan::{DesiredOverlay, Out, Way, WireguardTunnel};

use super::judge;
use crate::findings::{Finding, Level, number};
use crate::node::{Expected, Seen, Tunnel};

const REPAIR: &str =
    "is flanneld running? It repairs what is missing at once, and names peers that it skips in its log";

/// A session without a handshake for this long carries nothing (Reject-After-Time of the WireGuard paper, §6.1).
const HANDSHAKE: Duration = Duration::from_secs(180);

/// What there is to say of the way to the peers.
pub fn findings(expected: &Expected, stranded: &[IpSubnet], seen: &Seen) -> Vec<Finding> {
    let mut found = vec![routes(expected, stranded, seen)];
    let overlays = &expected.overlays;
    if overlays.iter().any(has_entries) {
        found.push(entries(overlays, seen));
    }
    // One device may serve both families.
    let mut devices = BTreeSet::new();
    for overlay in overlays {
        let (Some(device), Some(wanted)) = (overlay.device(), wireguard(overlay)) else {
            continue;
        };
        if let (true, Some(tunnel)) = (devices.insert(device), seen.tunnels.get(&device)) {
            found.push(keys(&device.to_string(), wanted, tunnel.wireguard.as_ref()));
        }
    }
    found
}

fn has_entries(overlay: &DesiredOverlay) -> bool {
    let tunnel = overlay.tunnel.as_ref();
    tunnel.is_some_and(|tunnel| matches!(tunnel.link.kind, flannel_plan::LinkKind::Vxlan(_)))
}

fn wireguard(overlay: &DesiredOverlay) -> Option<&WireguardTunnel> {
    overlay.tunnel.as_ref()?.wireguard.as_ref()
}

fn routes(expected: &Expected, stranded: &[IpSubnet], seen: &Seen) -> Finding {
    let wanted: Vec<(&IpSubnet, &Way, &DesiredOverlay)> = expected
        .overlays
        .iter()
        .flat_map(|overlay| overlay.routes.iter().map(move |(to, way)| (to, way, overlay)))
        .filter(|(to, _, _)| !stranded.contains(to))
        .collect();
    let bad: Vec<String> = wanted
        .iter()
        .filter_map(|(to, way, overlay)| route_problem(to, way, overlay, seen))
        .collect();
    let peers = expected
        .overlays
        .iter()
        .map(|overlay| overlay.peers)
        .max()
        .unwrap_or(0);
    let good = format!(
        "{} to the pods of {}",
        number(wanted.len(), "route"),
        number(peers, "peer")
    );
    let what = "subnets of peers whose route is missing or leads elsewhere";
    judge("peer-routes", Level::Error, &bad, what, good, REPAIR)
}

fn route_problem(to: &IpSubnet, way: &Way, overlay: &DesiredOverlay, seen: &Seen) -> Option<String> {
    let out = match way.out {
        Out::Interface(ifindex) => Some(ifindex),
        Out::Tunnel => overlay
            .device()
            .and_then(|device| seen.tunnels.get(&device))
            .map(|tunnel: &Tunnel| tunnel.ifindex),
    };
    // The kernel takes the one with the lowest metric.
    let routes = seen.routes.iter().filter(|route| route.destination == *to);
    let Some(route) = routes.min_by_key(|route| route.metric) else {
        return Some(format!("{to} (no route)"));
    };
    let right = route.gateway == way.gateway && route.ifindex.is_some() && route.ifindex == out;
    (!right).then(|| format!("{to} ({})", direction(route, seen)))
}

fn direction(route: &Route, seen: &Seen) -> String {
    let via = route.gateway.map(|gateway| format!("via {gateway} "));
    let dev = match route.ifindex {
        Some(ifindex) => format!("dev {}", seen.name(ifindex)),
        None => "over several devices".to_owned(),
    };
    format!("{}{dev}", via.unwrap_or_default())
}

/// The neighbour and the forwarding entry of each peer on the VXLAN devices.
fn entries(overlays: &[DesiredOverlay], seen: &Seen) -> Finding {
    let mut bad = Vec::new();
    let mut count = 0;
    for overlay in overlays {
        let (Some(wanted), Some(device)) = (&overlay.tunnel, overlay.device()) else {
            continue;
        };
        let Some(there) = seen.tunnels.get(&device) else {
            continue;
        };
        for (address, mac) in &wanted.neighbours {
            count += 1;
            let end = wanted.fdb.get(mac);
            let neighbour = there.neighbours.get(address) == Some(mac);
            if !neighbour || there.fdb.get(mac) != end {
                let end = end.map(IpAddr::to_string).unwrap_or_default();
                let lacks = if neighbour {
                    "forwarding entry"
                } else {
                    "neighbour"
                };
                bad.push(format!("{} of {end} ({lacks})", subnet_of(overlay, address)));
            }
        }
    }
    let good = format!("neighbour and forwarding entries of {}", number(count, "peer"));
    let what = "peers whose entries on the VXLAN device are missing or others";
    judge("peer-entries", Level::Error, &bad, what, good, REPAIR)
}

/// The subnet whose first address is the gateway on the tunnel.
fn subnet_of(overlay: &DesiredOverlay, gateway: &IpAddr) -> String {
    let mut subnets = overlay.routes.keys();
    let found = subnets.find(|subnet| subnet.network() == *gateway);
    found.map_or_else(|| gateway.to_string(), IpSubnet::to_string)
}

/// What a WireGuard device knows of its peers.
fn keys(name: &str, wanted: &WireguardTunnel, there: Option<&WireguardDevice>) -> Finding {
    let check = "peer-keys";
    let Some(there) = there else {
        let fix = "run this as root: the kernel shows the peers of a WireGuard device to nobody else";
        return Finding::warning(check, format!("the peers of {name} cannot be seen"), fix);
    };
    let mut bad = Vec::new();
    let mut fresh = 0;
    for (key, peer) in &wanted.peers {
        let subnets: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
        let subnets = subnets.join(" and ");
        let Some(state) = there.peers.get(key) else {
            bad.push(format!(
                "{subnets} of {} (its key is not there)",
                peer.endpoint.ip()
            ));
            continue;
        };
        let allowed: BTreeSet<(IpAddr, u8)> =
            peer.allowed.iter().map(|s| (s.network(), s.length())).collect();
        if state.allowed != allowed {
            bad.push(format!("{subnets} of {} (other allowed IPs)", peer.endpoint.ip()));
        }
        let since = state
            .handshake
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        fresh += usize::from(since.is_some_and(|since| since < HANDSHAKE));
    }
    let good = format!(
        "{name} knows the keys and subnets of {}, {fresh} with a handshake in the last three minutes",
        number(wanted.peers.len(), "peer")
    );
    let what = format!("peers that {name} does not know or lets have other addresses");
    judge(check, Level::Error, &bad, &what, good, REPAIR)
}
