//! The changes for single peers in a kernel that has what was wanted before.

use super::{entries, wireguard};
use crate::exchange::Exchange;
use crate::observed::{
    OUR_PROTOCOL, ObservedOverlay, ObservedRoute, ObservedWireguard, ObservedWireguardPeer,
};
use crate::op::Op;
use crate::overlay::{DesiredOverlay, WireguardPeer, WireguardTunnel};

/// The changes that exchange single peers' entries, in the order in which they are to be made, in a kernel that is as it should be.
/// `None` where it has to be looked at first: a route that is replaced may be somebody else's by now. All others fail, or do nothing,
/// where the kernel is not as it should be.
pub fn exchange_ops(exchange: &Exchange) -> Option<Vec<Op>> {
    let Exchange { before, after } = exchange;
    let observed = as_wanted(before);
    let mut ops = Vec::new();
    if let Some(tunnel) = &after.tunnel {
        wireguard::ops(tunnel, observed.wireguard.as_ref(), &mut ops);
    }
    entries::Changes::new(after, &observed, false).write(&mut ops);
    let needs_a_look = |op: &Op| matches!(op, Op::RouteReplace { .. } | Op::RoutePrepend { .. });
    (!ops.iter().any(needs_a_look)).then_some(ops)
}

/// A kernel with these entries. Of the device nothing is said: it is not compared.
fn as_wanted(overlay: &DesiredOverlay) -> ObservedOverlay {
    let routes = overlay.routes.iter().map(|(destination, way)| ObservedRoute {
        destination: *destination,
        way: *way,
        protocol: OUR_PROTOCOL,
        metric: 0,
    });
    let observed = ObservedOverlay {
        routes: routes.collect(),
        blackholes: overlay.blackholes.clone(),
        ..ObservedOverlay::default()
    };
    let Some(tunnel) = &overlay.tunnel else {
        return observed;
    };
    ObservedOverlay {
        addresses: vec![(tunnel.address, overlay.family().bits())],
        neighbours: tunnel.neighbours.clone(),
        fdb: tunnel.fdb.clone(),
        wireguard: tunnel.wireguard.as_ref().map(wireguard_as_wanted),
        ..observed
    }
}

fn wireguard_as_wanted(wanted: &WireguardTunnel) -> ObservedWireguard {
    let as_written = |peer: &WireguardPeer| ObservedWireguardPeer {
        endpoint: Some(peer.endpoint),
        written: Some(peer.endpoint),
        is_live: false,
        preshared: peer.preshared,
        keepalive: peer.keepalive,
        allowed: peer.allowed.clone(),
    };
    ObservedWireguard {
        public: Some(wanted.public),
        port: wanted.port,
        peers: wanted
            .peers
            .iter()
            .map(|(key, peer)| (*key, as_written(peer)))
            .collect(),
    }
}
