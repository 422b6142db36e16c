//! Ranges of addresses that are delivered on the host itself, of both families, and the host's own addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flannel_model::{IpSubnet, Ipv4Subnet, Ipv6Subnet};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::conn::{CREATE, REPLACE};
use crate::error::NetlinkError;
use crate::route::{OUR_PROTOCOL, PROTOCOL_KERNEL, TABLE_LOCAL};
use crate::route_conn::{RouteConn, RouteRequest};

/// A route of table local that carries our mark: the host takes every address of the range for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalRoute {
    /// The range.
    pub destination: IpSubnet,
    /// What local processes get as their address when they send there.
    pub source: Option<IpAddr>,
}

/// The local routes of one family that carry our mark.
///
/// # Errors
/// When the kernel refuses to list them. A kernel without IPv6 has none of that family.
pub fn ours(conn: &mut RouteConn, ipv4: bool) -> Result<Vec<LocalRoute>, NetlinkError> {
    let listed = list(conn, ipv4, OUR_PROTOCOL)?;
    Ok(listed.iter().filter_map(|m| read(m, OUR_PROTOCOL)).collect())
}

/// Every address of the host that the kernel delivers, of both families, without loopback and without those of the device `except`.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn own_addresses(conn: &mut RouteConn, except: Option<u32>) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let mut addresses = BTreeSet::new();
    for ipv4 in [true, false] {
        let listed = list(conn, ipv4, PROTOCOL_KERNEL)?;
        let counted = listed.iter().filter(|m| except.is_none() || device(m) != except);
        let routes = counted.filter_map(|m| read(m, PROTOCOL_KERNEL));
        let single = routes.filter(|r| r.destination.network() == r.destination.last());
        addresses.extend(
            single
                .map(|r| r.destination.network())
                .filter(|ip| !ip.is_loopback()),
        );
    }
    Ok(addresses)
}

/// Adds a route over the device `ifindex`, or puts it in the place of ours with another source.
pub fn put(route: &LocalRoute, ifindex: u32) -> RouteRequest {
    RouteRequest::new(
        RouteNetlinkMessage::NewRoute(message(route, Some(ifindex))),
        CREATE | REPLACE,
        format!("add local route {}", route.destination),
    )
}

/// Deletes a route of ours; ESRCH when there is none.
pub fn delete(route: &LocalRoute) -> RouteRequest {
    let mut message = message(route, None);
    if route.destination.is_ipv4() {
        // RT_SCOPE_NOWHERE matches every scope (fib_table_delete).
        message.header.scope = RouteScope::NoWhere;
    }
    RouteRequest::new(
        RouteNetlinkMessage::DelRoute(message),
        0,
        format!("delete local route {}", route.destination),
    )
}

fn list(conn: &mut RouteConn, ipv4: bool, protocol: u8) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ipv4);
    message.header.protocol = RouteProtocol::from(protocol);
    message.header.kind = RouteType::Local;
    message.attributes.push(RouteAttribute::Table(TABLE_LOCAL));
    let request = RouteRequest::new(RouteNetlinkMessage::GetRoute(message), 0, "list local routes");
    match conn.dump(&request) {
        // There is no table yet, or no IPv6.
        Err(error) if error.is_missing() || !ipv4 && error.has_errno(rustix::io::Errno::OPNOTSUPP) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

fn family(ipv4: bool) -> AddressFamily {
    if ipv4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn message(route: &LocalRoute, ifindex: Option<u32>) -> RouteMessage {
    let ipv4 = route.destination.is_ipv4();
    let mut message = RouteMessage::default();
    message.header.address_family = family(ipv4);
    message.header.destination_prefix_length = route.destination.length();
    message.header.protocol = RouteProtocol::from(OUR_PROTOCOL);
    message.header.scope = if ipv4 {
        RouteScope::Host
    } else {
        RouteScope::Universe
    };
    message.header.kind = RouteType::Local;
    // 255, the highest number that the header has room for
    message.header.table = u8::try_from(TABLE_LOCAL).unwrap_or(u8::MAX);
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route_address(
        route.destination.network(),
    )));
    attributes.extend(
        route
            .source
            .map(|ip| RouteAttribute::PrefSource(route_address(ip))),
    );
    attributes.extend(ifindex.map(RouteAttribute::Oif));
    message
}

/// The device that a route leads over.
fn device(message: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })
}

fn read(message: &RouteNetlinkMessage, protocol: u8) -> Option<LocalRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    // Once more on our side: kernels before 4.20 do not filter.
    if header.kind != RouteType::Local || u8::from(header.protocol) != protocol {
        return None;
    }
    let length = header.destination_prefix_length;
    let mut destination = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                destination = Ipv4Subnet::new(*ip, length).map(IpSubnet::V4);
            }
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                destination = Ipv6Subnet::new(*ip, length).map(IpSubnet::V6);
            }
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(IpAddr::V4(*ip)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some(IpAddr::V6(*ip)),
            RouteAttribute::Table(table) if *table != TABLE_LOCAL => return None,
            _ => {}
        }
    }
    Some(LocalRoute {
        destination: destination?,
        source,
    })
}
