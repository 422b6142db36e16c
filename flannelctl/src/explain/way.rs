//! The way that the kernel has for packets to an address, layer by layer.

use std::net::IpAddr;
use std::time::SystemTime;

use flannel_model::{IpFamily, IpSubnet};
use flannel_netlink::link::{self, counters};
use flannel_netlink::route::{self, Filter, OUR_PROTOCOL as OURS, Route, RouteKind};
use flannel_netlink::{NetlinkError, RouteConn, neighbour};
use serde::Serialize;

use super::place::Place;
use crate::node::{NodeView, Seen, Tunnel};
use crate::output::span;

/// The way to an address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// What the kernel answers when it is asked for the way; `null` when it has none.
    pub route: Option<Hop>,
    /// The entry of table main that fits best; it is another one where a policy rule leads elsewhere.
    pub entry: Option<String>,
    /// Ethernet address of the next hop.
    pub neighbour: Option<Neighbour>,
    /// Where the tunnel sends that Ethernet address.
    pub fdb: Option<IpAddr>,
    /// The peer of a WireGuard device that has the address.
    pub wireguard: Option<Session>,
    /// How packets between nodes leave: the way to the tunnel's other end.
    pub outer: Option<Hop>,
    /// The devices on the way.
    pub devices: Vec<Device>,
}

/// What the kernel answers when it is asked for a way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// Where to.
    pub to: IpAddr,
    /// The next router.
    pub via: Option<IpAddr>,
    /// The device that packets leave by.
    pub device: String,
    /// Source address that this host itself would use.
    pub source: Option<IpAddr>,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address; `null` when nobody answered for it.
    pub mac: Option<String>,
    /// Written by somebody, not learned.
    pub permanent: bool,
}

/// What WireGuard knows of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Where it is.
    pub endpoint: Option<String>,
    /// How long ago keys were agreed on; `null` for never.
    pub handshake_seconds_ago: Option<u64>,
}

/// A device on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    name: String,
    kind: String,
    up: bool,
    mtu: u32,
    received_packets: u64,
    sent_packets: u64,
    received_lost: u64,
    sent_lost: u64,
}

impl Device {
    /// As a row of a table.
    pub fn row(&self) -> [String; 8] {
        [
            self.name.clone(),
            match self.kind.as_str() {
                "" => "-".to_owned(),
                kind => kind.to_owned(),
            },
            if self.up { "up" } else { "down" }.to_owned(),
            self.mtu.to_string(),
            self.received_packets.to_string(),
            self.sent_packets.to_string(),
            self.received_lost.to_string(),
            self.sent_lost.to_string(),
        ]
    }
}

impl Way {
    /// As lines with a name.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![match &self.route {
            Some(hop) => ("Way", hop.text()),
            None => (
                "Way",
                "none: the kernel has no route, or one that drops".to_owned(),
            ),
        }];
        lines.extend(self.entry.iter().map(|entry| ("Route", entry.clone())));
        lines.extend(self.neighbour.iter().map(|found| ("Neighbour", found.text())));
        lines.extend(self.fdb.iter().map(|end| ("FDB entry", format!("dst {end}"))));
        lines.extend(self.wireguard.iter().map(|session| ("WireGuard", session.text())));
        lines.extend(self.outer.iter().map(|hop| ("Outer packet", hop.text())));
        lines
    }

    /// What keeps packets from the address.
    pub fn problems(&self, place: Option<&Place>) -> Vec<String> {
        let mut problems = Vec::new();
        if self.route.is_none() {
            problems.push(
                "there is no way: packets are dropped, and the sender is told where a route says so"
                    .to_owned(),
            );
        }
        let down = self.devices.iter().filter(|device| !device.up);
        problems.extend(down.map(|device| format!("{} is down", device.name)));
        if place.is_some_and(|place| place.kind == "podHere")
            && self.neighbour.as_ref().is_some_and(|found| found.mac.is_none())
        {
            problems.push("nobody answered for the address: no pod has it".to_owned());
        }
        problems
    }
}

impl Hop {
    fn text(&self) -> String {
        let via = self.via.map(|via| format!("via {via} ")).unwrap_or_default();
        let source = self
            .source
            .map(|source| format!(", from {source} when this host itself sends"))
            .unwrap_or_default();
        format!("{} {via}dev {}{source}", self.to, self.device)
    }
}

impl Neighbour {
    fn text(&self) -> String {
        let mac = self.mac.as_deref().unwrap_or("no answer");
        format!(
            "{} lladdr {mac} ({})",
            self.address,
            if self.permanent { "permanent" } else { "learned" }
        )
    }
}

impl Session {
    fn text(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or("no endpoint");
        match self.handshake_seconds_ago {
            Some(secs) => format!("endpoint {endpoint}, handshake {} ago", span(secs)),
            None => format!("endpoint {endpoint}, no handshake yet"),
        }
    }
}

/// Asks the kernel.
pub fn find(
    conn: &mut RouteConn,
    seen: &Seen,
    node: Option<&NodeView>,
    address: IpAddr,
) -> Result<Way, NetlinkError> {
    let mut way = Way {
        entry: entry(conn, seen, address)?,
        ..Way::default()
    };
    let Some((hop, ifindex)) = hop(conn, seen, address)? else {
        return Ok(way);
    };
    let next = hop.via.unwrap_or(address);
    way.route = Some(hop);
    // What is this host's own has no neighbour.
    if seen.holder(address).is_none() {
        way.neighbour = neighbour::dump(conn, IpFamily::of(next), ifindex)?
            .into_iter()
            .find(|found| found.address == next)
            .map(|found| Neighbour {
                address: found.address,
                mac: found.mac.map(|mac| mac.to_string()),
                permanent: found.permanent,
            });
    }
    way.devices.extend(device(conn, ifindex)?);
    let tunnel = node.and_then(|node| {
        node.seen
            .tunnels
            .values()
            .find(|tunnel| tunnel.ifindex == ifindex)
    });
    if let Some(tunnel) = tunnel
        && let Some(end) = far_end(tunnel, &mut way, address, next)
        && let Some((outer, ifindex)) = self::hop(conn, seen, end)?
    {
        way.outer = Some(outer);
        way.devices.extend(device(conn, ifindex)?);
    }
    Ok(way)
}

/// The node at the other end of a tunnel, by what the tunnel's device knows.
fn far_end(tunnel: &Tunnel, way: &mut Way, address: IpAddr, next: IpAddr) -> Option<IpAddr> {
    if let Some(wireguard) = &tunnel.wireguard {
        let mut peers = wireguard.peers.values();
        let has = |(network, length): &(IpAddr, u8)| {
            IpSubnet::around(*network, *length).is_some_and(|subnet| subnet.holds(address))
        };
        let peer = peers.find(|peer| peer.allowed.iter().any(has))?;
        let since = peer
            .handshake
            .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        way.wireguard = Some(Session {
            endpoint: peer.endpoint.map(|at| at.to_string()),
            handshake_seconds_ago: since.map(|since| since.as_secs()),
        });
        return peer.endpoint.map(|at| at.ip());
    }
    if let Some(mac) = tunnel.neighbours.get(&next) {
        way.fdb = tunnel.fdb.get(mac).copied();
        return way.fdb;
    }
    // An IPIP device's routes name the node itself.
    (next != address && tunnel.fdb.is_empty()).then_some(next)
}

fn hop(conn: &mut RouteConn, seen: &Seen, to: IpAddr) -> Result<Option<(Hop, u32)>, NetlinkError> {
    Ok(route::lookup(conn, to)?.map(|found| {
        let hop = Hop {
            to,
            via: found.gateway,
            device: seen.name(found.ifindex),
            source: found.source,
        };
        (hop, found.ifindex)
    }))
}

/// The entry of table main that the kernel takes where no policy rule leads elsewhere.
fn entry(conn: &mut RouteConn, seen: &Seen, address: IpAddr) -> Result<Option<String>, NetlinkError> {
    let filter = Filter {
        family: IpFamily::of(address),
        ..Filter::default()
    };
    let routes = route::dump(conn, &filter)?;
    let fitting = routes.iter().filter(|route| route.destination.holds(address));
    let best = fitting.min_by_key(|route| (u8::MAX - route.destination.length(), route.metric));
    Ok(best.map(|route| entry_text(route, seen)))
}

fn entry_text(route: &Route, seen: &Seen) -> String {
    let kind = match route.kind {
        RouteKind::Unicast => String::new(),
        RouteKind::Local => "local ".to_owned(),
        RouteKind::Blackhole => "blackhole ".to_owned(),
        RouteKind::Other(number) => format!("type {number} "),
    };
    let via = route.gateway.map(|via| format!(" via {via}")).unwrap_or_default();
    let device = route
        .ifindex
        .map(|index| format!(" dev {}", seen.name(index)))
        .unwrap_or_default();
    let metric = if route.metric == 0 {
        String::new()
    } else {
        format!(" metric {}", route.metric)
    };
    let whose = match route.protocol {
        OURS => "flanneld's",
        route::PROTOCOL_BOOT => "made by hand, or by flannel",
        route::PROTOCOL_KERNEL => "the kernel's, for an address",
        _ => "somebody else's",
    };
    format!(
        "{kind}{}{via}{device} proto {}{metric} ({whose})",
        route.destination, route.protocol
    )
}

fn device(conn: &mut RouteConn, ifindex: u32) -> Result<Option<Device>, NetlinkError> {
    let Some(link) = link::by_index(conn, ifindex)? else {
        return Ok(None);
    };
    let counted = counters(conn, ifindex)?.unwrap_or_default();
    Ok(Some(Device {
        name: link.name,
        kind: link.kind,
        up: link.up,
        mtu: link.mtu,
        received_packets: counted.received,
        sent_packets: counted.sent,
        received_lost: counted.received_lost,
        sent_lost: counted.sent_lost,
    }))
}
