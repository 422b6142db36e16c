//! Listing routes.

use std::net::{Ipv4Addr, Ipv6Addr};

use flannel_model::{Ipv4Subnet, Ipv6Subnet};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Distance, Route, RouteKind, TABLE_MAIN};
use crate::error::NetlinkError;
use crate::family::{number, of_route};
use crate::route_conn::{RouteConn, RouteRequest};
use flannel_model::IpFamily;

/// Which routes to list. The default is all IPv4 routes of table main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// Only routes of this family.
    pub family: IpFamily,
    /// Table number.
    pub table: u32,
    /// Only routes over this device.
    pub ifindex: Option<u32>,
    /// Only routes of this protocol.
    pub protocol: Option<u8>,
    /// Only routes of this kind.
    pub kind: Option<RouteKind>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            family: IpFamily::V4,
            table: TABLE_MAIN,
            ifindex: None,
            protocol: None,
            kind: None,
        }
    }
}

impl Filter {
    fn passes(&self, route: &Route) -> bool {
        IpFamily::of(route.destination.network()) == self.family
            && route.table == self.table
            && self.ifindex.is_none_or(|i| route.ifindex == Some(i))
            && self.protocol.is_none_or(|p| route.protocol == p)
            && self.kind.is_none_or(|k| route.kind == k)
    }
}

/// Lists the routes of one family.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(conn: &mut RouteConn, filter: &Filter) -> Result<Vec<Route>, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = number(filter.family);
    message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    message.header.kind = filter.kind.map_or(RouteType::Unspec, RouteType::from);
    message.attributes.push(RouteAttribute::Table(filter.table));
    message.attributes.extend(filter.ifindex.map(RouteAttribute::Oif));
    let request = RouteRequest::new(RouteNetlinkMessage::GetRoute(message), 0, "list routes");
    let listed = match conn.dump(&request) {
        // The kernel refuses to filter by a device or a table that is not there; they have no routes.
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        other => other?,
    };
    // Once more on our side: kernels before 4.20 do not filter.
    Ok(listed
        .iter()
        .filter_map(read_route)
        .filter(|route| filter.passes(route))
        .collect())
}

/// Reads a route out of an answer or a notification of a new or deleted route; `None` for other messages and for
/// entries of the route cache.
pub fn read_route(message: &RouteNetlinkMessage) -> Option<Route> {
    let (RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) = message else {
        return None;
    };
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let length = header.destination_prefix_length;
    let unspecified = match header.address_family {
        AddressFamily::Inet => Ipv4Subnet::new(Ipv4Addr::UNSPECIFIED, length)?.into(),
        AddressFamily::Inet6 => Ipv6Subnet::new(Ipv6Addr::UNSPECIFIED, length)?.into(),
        _ => return None,
    };
    let mut route = Route {
        destination: unspecified,
        kind: header.kind.into(),
        table: u32::from(header.table),
        protocol: header.protocol.into(),
        scope: header.scope.into(),
        ifindex: None,
        gateway: None,
        source: None,
        metric: 0,
        onlink: header.flags.contains(RouteFlags::Onlink),
        multipath: false,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.destination = Ipv4Subnet::new(*address, length)?.into();
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                route.destination = Ipv6Subnet::new(*address, length)?.into();
            }
            RouteAttribute::Gateway(address) => route.gateway = of_route(address),
            RouteAttribute::PrefSource(address) => route.source = of_route(address),
            RouteAttribute::Oif(index) => route.ifindex = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::MultiPath(_) => route.multipath = true,
            _ => {}
        }
    }
    Some(route)
}

impl From<RouteType> for RouteKind {
    fn from(kind: RouteType) -> Self {
        match kind {
            RouteType::Unicast => Self::Unicast,
            RouteType::Local => Self::Local,
            RouteType::BlackHole => Self::Blackhole,
            other => Self::Other(other.into()),
        }
    }
}

impl From<RouteScope> for Distance {
    fn from(scope: RouteScope) -> Self {
        match scope {
            RouteScope::Universe => Self::Universe,
            RouteScope::Link => Self::Link,
            RouteScope::Host => Self::Host,
            other => Self::Other(other.into()),
        }
    }
}
