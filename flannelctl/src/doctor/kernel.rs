//! What this host's kernel has of the overlay; asked, never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{IpFamily, IpSubnet, Mac};
use flannel_netlink::route::{Filter, RouteKind};
use flannel_netlink::{NetlinkError, RouteConn, address, fdb, link, neighbour, route};

/// A tunnel device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// Ethernet address of each peer's first address.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Where each Ethernet address is.
    pub fdb: BTreeMap<Mac, IpAddr>,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Addresses of the host.
    pub addresses: BTreeSet<IpAddr>,
    /// Devices by their name, of those that were asked for.
    pub devices: BTreeMap<String, Device>,
    /// Where there are routes to, in the main table.
    pub routes: BTreeSet<IpSubnet>,
}

/// Asks for the host's addresses and routes, and for these devices.
pub fn look(devices: &[String]) -> Result<Seen, NetlinkError> {
    let mut conn = RouteConn::open()?;
    let mut seen = Seen::default();
    for family in [IpFamily::V4, IpFamily::V6] {
        let addresses = address::dump(&mut conn, family, None)?;
        seen.addresses
            .extend(addresses.iter().map(|address| address.local));
        let filter = Filter {
            family,
            kind: Some(RouteKind::Unicast),
            ..Filter::default()
        };
        let routes = route::dump(&mut conn, &filter)?;
        seen.routes.extend(routes.iter().map(|route| route.destination));
    }
    for name in devices {
        if let Some(device) = device(&mut conn, name)? {
            seen.devices.insert(name.clone(), device);
        }
    }
    Ok(seen)
}

fn device(conn: &mut RouteConn, name: &str) -> Result<Option<Device>, NetlinkError> {
    let Some(link) = link::by_name(conn, name)? else {
        return Ok(None);
    };
    let mut neighbours = BTreeMap::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        let all = neighbour::dump(conn, family, link.ifindex)?;
        neighbours.extend(all.iter().filter_map(|entry| Some((entry.address, entry.mac?))));
    }
    let fdb = fdb::dump(conn, link.ifindex)?;
    Ok(Some(Device {
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        neighbours,
        fdb: fdb.iter().map(|entry| (entry.mac, entry.dst)).collect(),
    }))
}
