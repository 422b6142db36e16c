//! What differs between the overlay that a kernel has and the one that it should have, told rather than mended.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use flannel_model::{IpSubnet, Mac, WireguardPublicKey};

use super::diff_overlay;
use super::entries::Changes;
use crate::device::Device;
use crate::observed::{ObservedLink, ObservedOverlay, ObservedRoute};
use crate::op::Op;
use crate::overlay::{DesiredOverlay, LinkKind, Out, Way};
use crate::setting::{Setting, setting_ops};

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DifferenceKind {
    /// It should be there and is not.
    Missing,
    /// It is there, and is not what it should be.
    Wrong,
    /// It is there and should not be; it is ours to remove.
    Extra,
    /// Somebody else's: it takes packets away from where they should go, and is left alone.
    Foreign,
}

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// The tunnel device.
    Device(Device),
    /// An address of the tunnel device.
    Address(IpAddr, u8),
    /// A route.
    Route(IpSubnet),
    /// A neighbour on the tunnel device.
    Neighbour(IpAddr),
    /// An entry of the tunnel device's forwarding table.
    Fdb(Mac),
    /// Key and port of a WireGuard device.
    Key(Device),
    /// A peer of a WireGuard device.
    Peer(WireguardPublicKey),
    /// A route that drops what no better one takes.
    Blackhole(IpSubnet),
    /// A kernel setting of the tunnel device.
    Setting(Device, Setting),
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// How it differs.
    pub kind: DifferenceKind,
    /// What differs.
    pub object: Object,
    /// What it should be; nothing where it should not be there.
    pub wanted: Option<String>,
    /// What it is; nothing where it is not there.
    pub found: Option<String>,
}

/// The differences between `desired` and `observed`, each once: what the daemon would write, as [`diff_overlay`] says it, and the
/// routes of others that take packets which the overlay should have. `name` gives the name of an interface by its index.
pub fn differences(
    desired: &DesiredOverlay,
    observed: &ObservedOverlay,
    name: &dyn Fn(u32) -> String,
) -> Vec<Difference> {
    let view = View {
        desired,
        observed,
        name,
    };
    let mut foreign: Vec<&ObservedRoute> = view.foreign();
    foreign.sort();
    let mut ops = diff_overlay(desired, observed);
    ops.extend(device_setting_ops(desired, observed));
    let made_anew = ops.iter().any(|op| matches!(op, Op::LinkDelete { .. }));
    let taken: BTreeSet<IpSubnet> = foreign.iter().map(|route| route.destination).collect();
    let mut found: Vec<Difference> = view.missing_tun().into_iter().collect();
    for op in &ops {
        // Behind a deletion the device is made anew, which is the same difference.
        let repeats = made_anew && matches!(op, Op::LinkCreate(_) | Op::LinkUp { .. });
        // One to the same destination is told as somebody else's, and not by what is done about it.
        let in_the_way = match op {
            Op::RouteAdd { destination, .. } | Op::RoutePrepend { destination, .. } => {
                taken.contains(destination)
            }
            Op::RouteDelete { route, .. } => taken.contains(&route.destination),
            _ => false,
        };
        if !repeats && !in_the_way {
            found.extend(view.difference(op));
        }
    }
    found.extend(foreign.into_iter().map(|route| {
        Difference {
            kind: DifferenceKind::Foreign,
            object: Object::Route(route.destination),
            wanted: desired
                .routes
                .get(&route.destination)
                .map(|way| view.way(way, None)),
            found: Some(format!(
                "{} proto {}{}",
                view.way(&route.way, None),
                route.protocol,
                metric(route.metric)
            )),
        }
    }));
    found
}

/// The changes of the tunnel device's settings, which [`diff_overlay`] leaves out: a failed one fails nothing else.
pub fn device_setting_ops(desired: &DesiredOverlay, observed: &ObservedOverlay) -> Vec<Op> {
    let device = desired.device().filter(|_| observed.link.is_some());
    device.map_or_else(Vec::new, |device| setting_ops(device, &observed.settings))
}

struct View<'a> {
    desired: &'a DesiredOverlay,
    observed: &'a ObservedOverlay,
    name: &'a dyn Fn(u32) -> String,
}

impl<'a> View<'a> {
    /// Routes that are not ours and take packets of a wanted one, or of a part of it.
    fn foreign(&self) -> Vec<&'a ObservedRoute> {
        let changes = Changes::new(self.desired, self.observed, false);
        let takes = |route: &&ObservedRoute| {
            self.desired.routes.iter().any(|(wanted, way)| {
                wanted.contains(&route.destination)
                    && route.way != *way
                    && (route.destination != *wanted || self.serves(route))
            })
        };
        let routes = self.observed.routes.iter();
        routes
            .filter(|route| !self.desired.own_subnet.contains(&route.destination))
            .filter(|route| !changes.is_ours(route))
            .filter(takes)
            .collect()
    }

    /// Whether it is the one that the kernel takes, of those with the destination.
    fn serves(&self, route: &ObservedRoute) -> bool {
        let mut same = self.observed.routes.iter();
        same.find(|other| other.metric == 0 && other.destination == route.destination) == Some(route)
    }

    /// The daemon itself opens a TUN device, so that no operation says that it is missing.
    fn missing_tun(&self) -> Option<Difference> {
        let link = &self.desired.tunnel.as_ref()?.link;
        let missing = link.kind == LinkKind::Tun && self.observed.link.is_none();
        missing.then(|| Difference {
            kind: DifferenceKind::Missing,
            object: Object::Device(link.device),
            wanted: Some(format!("tun device, mtu {}", link.mtu)),
            found: None,
        })
    }

    fn difference(&self, op: &Op) -> Option<Difference> {
        let (object, wanted, found) = match op {
            Op::LinkDelete { device, reason } => (
                Object::Device(*device),
                Some("another one".to_owned()),
                Some(reason.clone()),
            ),
            Op::LinkCreate(link) => {
                let text = Op::LinkCreate(*link).to_string();
                let wanted = text
                    .strip_prefix(&format!("link add {} ", link.device))
                    .map(str::to_owned);
                (Object::Device(link.device), wanted, None)
            }
            Op::LinkUp { device } => (
                Object::Device(*device),
                Some("up".to_owned()),
                self.link(|_| Some("down".to_owned())),
            ),
            Op::LinkSetMac { device, mac } => {
                let found = self.link(|link| {
                    Some(
                        link.mac
                            .map_or_else(|| "no address".to_owned(), |mac| format!("address {mac}")),
                    )
                });
                (Object::Device(*device), Some(format!("address {mac}")), found)
            }
            Op::LinkSetMtu { device, mtu } => (
                Object::Device(*device),
                Some(format!("mtu {mtu}")),
                self.link(|link| Some(format!("mtu {}", link.mtu))),
            ),
            Op::LinkSetLearning { device, learning } => {
                let text = |on| if on { "learning" } else { "nolearning" }.to_owned();
                (
                    Object::Device(*device),
                    Some(text(*learning)),
                    Some(text(!learning)),
                )
            }
            Op::LinkSetLocal { device, local } => (
                Object::Device(*device),
                Some(format!("local {local}")),
                Some("another local address".to_owned()),
            ),
            other => return self.of_entry(other),
        };
        // A device that is down only because it is not there yet is one difference and not two.
        if matches!(op, Op::LinkUp { .. }) && found.is_none() {
            return None;
        }
        Some(difference(object, wanted, found))
    }

    fn of_entry(&self, op: &Op) -> Option<Difference> {
        let observed = self.observed;
        let (object, wanted, found) = match op {
            Op::SettingSet { device, setting } => (
                Object::Setting(*device, *setting),
                Some(setting.value().to_owned()),
                observed.settings.get(setting).cloned(),
            ),
            Op::AddressAdd { address, length, .. } => {
                // It goes with another change and comes back with it, as do the entries below.
                if observed.addresses.contains(&(*address, *length)) {
                    return None;
                }
                (
                    Object::Address(*address, *length),
                    Some("on the device".to_owned()),
                    None,
                )
            }
            Op::AddressDelete { address, length, .. } => (
                Object::Address(*address, *length),
                None,
                Some("on the device".to_owned()),
            ),
            Op::NeighbourReplace { address, mac, .. } => {
                let found = observed.neighbours.get(address);
                if found == Some(mac) {
                    return None;
                }
                (
                    Object::Neighbour(*address),
                    Some(format!("lladdr {mac}")),
                    found.map(|mac| format!("lladdr {mac}")),
                )
            }
            Op::NeighbourDelete { address, .. } => {
                let found = observed.neighbours.get(address);
                (
                    Object::Neighbour(*address),
                    None,
                    found.map(|mac| format!("lladdr {mac}")),
                )
            }
            Op::FdbReplace { mac, dst, .. } => {
                let found = observed.fdb.get(mac);
                if found == Some(dst) {
                    return None;
                }
                (
                    Object::Fdb(*mac),
                    Some(format!("dst {dst}")),
                    found.map(|dst| format!("dst {dst}")),
                )
            }
            Op::FdbDelete { mac, dst, .. } => (Object::Fdb(*mac), None, Some(format!("dst {dst}"))),
            Op::BlackholeAdd { destination } => (
                Object::Blackhole(*destination),
                Some("drops the rest".to_owned()),
                None,
            ),
            Op::BlackholeDelete { destination } => (
                Object::Blackhole(*destination),
                None,
                Some("drops the rest".to_owned()),
            ),
            Op::RouteAdd { destination, way, .. } | Op::RouteReplace { destination, way, .. } => {
                return self.of_route(*destination, way);
            }
            Op::RouteDelete { route, .. } => {
                let found = self.way(&route.way, Some(route.protocol)) + &metric(route.metric);
                (Object::Route(route.destination), None, Some(found))
            }
            Op::WireguardIdentity { device, port, .. } => (
                Object::Key(*device),
                Some(format!("this node's key, port {port}")),
                observed.wireguard.as_ref().map(|there| {
                    let key = there
                        .public
                        .map_or_else(|| "no key".to_owned(), |key| key.to_string());
                    format!("{key}, port {}", there.port)
                }),
            ),
            Op::WireguardPeerSet { key, .. } => (Object::Peer(*key), self.wanted_peer(key), self.peer(key)),
            Op::WireguardPeerRemove { key, .. } => (Object::Peer(*key), None, self.peer(key)),
            _ => return None,
        };
        Some(difference(object, wanted, found))
    }

    fn of_route(&self, destination: IpSubnet, way: &Way) -> Option<Difference> {
        let mut routes = self.observed.routes.iter();
        let present = routes.find(|route| route.destination == destination && route.metric == 0);
        // The mark is told only where it is all that differs.
        let only_the_mark = present.is_some_and(|route| route.way == *way);
        if only_the_mark && present.is_some_and(ObservedRoute::is_marked) {
            return None;
        }
        let protocol = |protocol| only_the_mark.then_some(protocol);
        Some(difference(
            Object::Route(destination),
            Some(self.way(way, protocol(crate::OUR_PROTOCOL))),
            present.map(|route| self.way(&route.way, protocol(route.protocol))),
        ))
    }

    fn link(&self, text: impl FnOnce(&ObservedLink) -> Option<String>) -> Option<String> {
        self.observed.link.as_ref().and_then(text)
    }

    fn wanted_peer(&self, key: &WireguardPublicKey) -> Option<String> {
        let wanted = self.desired.tunnel.as_ref()?.wireguard.as_ref()?.peers.get(key)?;
        Some(peer_text(
            Some(wanted.endpoint),
            &wanted.allowed,
            wanted.keepalive,
            wanted.preshared.is_some(),
        ))
    }

    fn peer(&self, key: &WireguardPublicKey) -> Option<String> {
        let found = self.observed.wireguard.as_ref()?.peers.get(key)?;
        Some(peer_text(
            found.endpoint,
            &found.allowed,
            found.keepalive,
            found.preshared.is_some(),
        ))
    }

    fn way(&self, way: &Way, protocol: Option<u8>) -> String {
        let dev = match (way.out, self.desired.device()) {
            (Out::Tunnel, Some(device)) => device.to_string(),
            (Out::Tunnel, None) => "(none)".to_owned(),
            (Out::Interface(index), _) => (self.name)(index),
        };
        let via = way
            .gateway
            .map(|gateway| format!("via {gateway} "))
            .unwrap_or_default();
        let onlink = if way.onlink { " onlink" } else { "" };
        let protocol = protocol
            .map(|number| format!(" proto {number}"))
            .unwrap_or_default();
        format!("{via}dev {dev}{onlink}{protocol}")
    }
}

fn difference(object: Object, wanted: Option<String>, found: Option<String>) -> Difference {
    let kind = match (&wanted, &found) {
        (Some(_), None) => DifferenceKind::Missing,
        (None, _) => DifferenceKind::Extra,
        (Some(_), Some(_)) => DifferenceKind::Wrong,
    };
    Difference {
        kind,
        object,
        wanted,
        found,
    }
}

fn metric(metric: u32) -> String {
    match metric {
        0 => String::new(),
        metric => format!(" metric {metric}"),
    }
}

/// A secret is never shown.
fn peer_text(
    endpoint: Option<std::net::SocketAddr>,
    allowed: &BTreeSet<IpSubnet>,
    keepalive: u16,
    preshared: bool,
) -> String {
    let endpoint = endpoint.map_or_else(|| "no endpoint".to_owned(), |at| format!("endpoint {at}"));
    let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    let preshared = if preshared { " with a preshared key" } else { "" };
    format!(
        "{endpoint} allowed-ips {} persistent-keepalive {keepalive}{preshared}",
        allowed.join(",")
    )
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Wrong => "wrong",
            Self::Extra => "extra",
            Self::Foreign => "foreign",
        })
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "device {device}"),
            Self::Address(address, length) => write!(f, "address {address}/{length}"),
            Self::Route(destination) => write!(f, "route {destination}"),
            Self::Neighbour(address) => write!(f, "neighbour {address}"),
            Self::Fdb(mac) => write!(f, "fdb {mac}"),
            Self::Key(device) => write!(f, "key of {device}"),
            Self::Peer(key) => write!(f, "peer {key}"),
            Self::Blackhole(destination) => write!(f, "blackhole {destination}"),
            Self::Setting(device, setting) => write!(f, "sysctl {}", setting.name(*device)),
        }
    }
}
