//! A row for each subnet of a peer: what the kernel has for it.

use std::net::IpAddr;
use std::time::SystemTime;

use flannel_lease::Peer;
use flannel_model::{IpFamily, IpSubnet, WireguardPublicKey};
use flannel_plan::{Difference, DifferenceKind, Object, ObservedRoute, Out};
use serde::Serialize;

use crate::node::{NodeView, OverlayView};

/// What the kernel has for one subnet of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The subnet.
    pub subnet: String,
    /// Where its node is reached.
    pub public_ip: String,
    /// The backend that its record names.
    pub backend: Option<String>,
    /// The route that packets for the subnet take.
    pub route: Option<String>,
    /// Ethernet address of its node's end of the tunnel.
    pub neighbour: Option<String>,
    /// Where that Ethernet address is.
    pub fdb: Option<String>,
    /// Where WireGuard sends packets for it.
    pub endpoint: Option<String>,
    /// How long ago keys were agreed on.
    pub handshake_seconds_ago: Option<u64>,
    /// Bytes that WireGuard received from the node.
    pub received_bytes: Option<u64>,
    /// Bytes that WireGuard sent to it.
    pub sent_bytes: Option<u64>,
    /// Everything that should be there is there.
    pub complete: bool,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

impl Row {
    /// The columns that every backend has.
    pub fn common(&self) -> [String; 4] {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            self.subnet.clone(),
            self.public_ip.clone(),
            or_dash(&self.backend),
            or_dash(&self.route),
        ]
    }

    /// Complete, or what is not.
    pub fn state(&self) -> String {
        match self.complete {
            true => "complete".to_owned(),
            false => self.problems.join("; "),
        }
    }
}

/// The rows of all peers that are used, IPv4 first.
pub fn rows(node: &NodeView) -> Vec<Row> {
    let mut rows = Vec::new();
    for (overlay, useless) in node.overlays.iter().zip(&node.expected.useless) {
        let mut peers: Vec<(IpSubnet, &Peer)> = node
            .expected
            .peers
            .iter()
            .filter(|peer| !useless.contains(&peer.key))
            .filter_map(|peer| Some((subnet_of(peer, overlay.family())?, peer)))
            .collect();
        peers.sort_by_key(|(subnet, _)| *subnet);
        rows.extend(
            peers
                .into_iter()
                .map(|(subnet, peer)| row(node, overlay, subnet, peer)),
        );
    }
    rows
}

fn subnet_of(peer: &Peer, family: IpFamily) -> Option<IpSubnet> {
    match family {
        IpFamily::V4 => peer.key.ipv4().map(IpSubnet::from),
        IpFamily::V6 => peer.key.ipv6().map(IpSubnet::from),
    }
}

fn row(node: &NodeView, overlay: &OverlayView, subnet: IpSubnet, peer: &Peer) -> Row {
    let public_ip = match (overlay.family(), peer.value.public_ipv6) {
        (IpFamily::V6, Some(ipv6)) => IpAddr::from(ipv6),
        _ => peer.value.public_ip.into(),
    };
    let gateway = subnet.network();
    let mac = overlay.observed.neighbours.get(&gateway);
    let key = key_of(overlay, &subnet);
    let state = key.and_then(|key| {
        let device = overlay.desired.device()?;
        let there = node.seen.tunnels.get(&device)?.wireguard.as_ref()?;
        there.peers.get(&key)
    });
    let problems: Vec<String> = overlay
        .differences
        .iter()
        .filter(|difference| concerns(difference, overlay, &subnet, key))
        .map(told)
        .collect();
    Row {
        subnet: subnet.to_string(),
        public_ip: public_ip.to_string(),
        backend: peer.value.backend_type.clone(),
        route: route(overlay, &subnet).map(|found| route_text(node, overlay, found)),
        neighbour: mac.map(ToString::to_string),
        fdb: mac
            .and_then(|mac| overlay.observed.fdb.get(mac))
            .map(ToString::to_string),
        endpoint: state.and_then(|state| state.endpoint).map(|at| at.to_string()),
        handshake_seconds_ago: state
            .and_then(|state| state.handshake)
            .map(|at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs()),
        received_bytes: state.map(|state| state.received),
        sent_bytes: state.map(|state| state.sent),
        complete: problems.is_empty(),
        problems,
    }
}

fn told(difference: &Difference) -> String {
    match difference.kind {
        DifferenceKind::Foreign => format!("foreign {} in the way", difference.object),
        kind => format!("{kind} {}", difference.object),
    }
}

/// The key of the WireGuard peer that has the subnet.
fn key_of(overlay: &OverlayView, subnet: &IpSubnet) -> Option<WireguardPublicKey> {
    let wireguard = overlay.desired.tunnel.as_ref()?.wireguard.as_ref()?;
    let mut peers = wireguard.peers.iter();
    peers
        .find(|(_, peer)| peer.allowed.contains(subnet))
        .map(|(key, _)| *key)
}

/// The route that the kernel takes for the subnet as a whole: the longest that holds all of it, of those the one that comes first.
fn route<'a>(overlay: &'a OverlayView, subnet: &IpSubnet) -> Option<&'a ObservedRoute> {
    let holding = overlay
        .observed
        .routes
        .iter()
        .filter(|route| route.destination.contains(subnet));
    holding.min_by_key(|route| (u8::MAX - route.destination.length(), route.metric))
}

fn route_text(node: &NodeView, overlay: &OverlayView, route: &ObservedRoute) -> String {
    let device = match (route.way.out, overlay.desired.device()) {
        (Out::Tunnel, Some(device)) => device.to_string(),
        (Out::Tunnel, None) => "-".to_owned(),
        (Out::Interface(index), _) => node.seen.name(index),
    };
    let via = route.way.gateway.map(|gateway| format!("via {gateway} "));
    format!("{}dev {device}", via.unwrap_or_default())
}

/// Whether a difference keeps packets from the subnet, or may.
fn concerns(
    difference: &Difference,
    overlay: &OverlayView,
    subnet: &IpSubnet,
    key: Option<WireguardPublicKey>,
) -> bool {
    if difference.kind == DifferenceKind::Extra {
        return false;
    }
    let desired = &overlay.desired;
    let gateway = subnet.network();
    let tunnel = desired.tunnel.as_ref();
    let over_tunnel = desired
        .routes
        .iter()
        .any(|(to, way)| to.contains(subnet) && way.out == Out::Tunnel);
    match difference.object {
        Object::Route(to) => to.contains(subnet) || subnet.contains(&to),
        Object::Neighbour(address) => address == gateway,
        Object::Fdb(mac) => tunnel.is_some_and(|tunnel| tunnel.neighbours.get(&gateway) == Some(&mac)),
        Object::Peer(other) => key == Some(other),
        Object::Device(_) | Object::Key(_) | Object::Address(..) => over_tunnel,
        Object::Blackhole(_) | Object::Setting(..) => false,
    }
}
