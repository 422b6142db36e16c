//! What this host's kernel has of the overlay; asked, never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{IpFamily, Mac};
use flannel_netlink::generic::{Wireguard, WireguardDevice};
use flannel_netlink::link::Link;
use flannel_netlink::route::{Filter, Route, RouteKind, TABLE_MAIN};
use flannel_netlink::{NetlinkError, RouteConn, address, fdb, link, neighbour, route};
use flannel_plan::{Device, Interface, InterfaceAddress};

/// A tunnel device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub ifindex: u32,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The interface that a VXLAN device is bound to.
    pub underlay: Option<u32>,
    /// Ethernet address of each peer's first address.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Where each Ethernet address is.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// Keys and peers of a WireGuard device; `None` for another device, and when the kernel shows them to root alone.
    pub wireguard: Option<WireguardDevice>,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Every interface with its addresses.
    pub interfaces: Vec<Interface>,
    /// The devices of those that were asked for.
    pub tunnels: BTreeMap<Device, Tunnel>,
    /// The unicast routes of the main table.
    pub routes: Vec<Route>,
}

impl Seen {
    /// The interface that has an address.
    pub fn holder(&self, address: IpAddr) -> Option<&Interface> {
        let has = |interface: &&Interface| interface.addresses.iter().any(|a| a.address == address);
        self.interfaces.iter().find(has)
    }

    /// The name of an interface.
    pub fn name(&self, ifindex: u32) -> String {
        let named = self
            .interfaces
            .iter()
            .find(|interface| interface.ifindex == ifindex);
        named.map_or_else(
            || format!("interface {ifindex}"),
            |interface| interface.name.clone(),
        )
    }
}

/// Asks for the host's interfaces and routes, and for these devices.
pub fn look(devices: &[Device]) -> Result<Seen, NetlinkError> {
    let mut conn = RouteConn::open()?;
    let links = link::dump(&mut conn)?;
    let mut seen = Seen {
        interfaces: interfaces(&mut conn, &links)?,
        ..Seen::default()
    };
    for family in [IpFamily::V4, IpFamily::V6] {
        let filter = Filter {
            family,
            kind: Some(RouteKind::Unicast),
            ..Filter::default()
        };
        let routes = route::dump(&mut conn, &filter)?;
        seen.routes
            .extend(routes.into_iter().filter(|route| route.table == TABLE_MAIN));
    }
    for device in devices {
        let name = device.to_string();
        if let Some(link) = links.iter().find(|link| link.name == name) {
            let mut there = tunnel(&mut conn, *device, link)?;
            let own = seen
                .interfaces
                .iter()
                .filter(|interface| interface.ifindex == link.ifindex);
            there.addresses = own
                .flat_map(|interface| interface.addresses.iter().map(|a| a.address))
                .collect();
            seen.tunnels.insert(*device, there);
        }
    }
    Ok(seen)
}

fn interfaces(conn: &mut RouteConn, links: &[Link]) -> Result<Vec<Interface>, NetlinkError> {
    let mut by_link: BTreeMap<u32, Vec<InterfaceAddress>> = BTreeMap::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        for found in address::dump(conn, family, None)? {
            let address = InterfaceAddress {
                address: found.local,
                length: found.length,
                host_scope: found.scope == address::Scope::Host,
                permanent: found.permanent,
                deprecated: found.deprecated,
                temporary: found.local.is_ipv6() && found.secondary,
            };
            by_link.entry(found.ifindex).or_default().push(address);
        }
    }
    let interface = |link: &Link| Interface {
        ifindex: link.ifindex,
        name: link.name.clone(),
        mtu: link.mtu,
        up: link.up,
        addresses: by_link.remove(&link.ifindex).unwrap_or_default(),
    };
    Ok(links.iter().map(interface).collect())
}

fn tunnel(conn: &mut RouteConn, device: Device, link: &Link) -> Result<Tunnel, NetlinkError> {
    let mut neighbours = BTreeMap::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        let all = neighbour::dump(conn, family, link.ifindex)?;
        neighbours.extend(all.iter().filter_map(|entry| Some((entry.address, entry.mac?))));
    }
    let wireguard = match device {
        Device::Wireguard { .. } => wireguard(&link.name),
        Device::Vxlan { .. } | Device::Ipip | Device::Tun => None,
    };
    let fdb = match device {
        Device::Vxlan { .. } => fdb::dump(conn, link.ifindex)?,
        Device::Ipip | Device::Tun | Device::Wireguard { .. } => Vec::new(),
    };
    Ok(Tunnel {
        ifindex: link.ifindex,
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        addresses: BTreeSet::new(),
        underlay: link.vxlan.as_ref().and_then(|vxlan| vxlan.underlay),
        neighbours,
        fdb: fdb.iter().map(|entry| (entry.mac, entry.dst)).collect(),
        wireguard,
    })
}

/// Without the right to see it, the rest can be checked all the same.
fn wireguard(name: &str) -> Option<WireguardDevice> {
    Wireguard::open().ok()??.device(name).ok()?
}
