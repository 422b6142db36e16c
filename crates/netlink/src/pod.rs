//! Addresses and routes of either family, as a container's interface and its bridge need them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::conn::{CREATE, EXCL};
use crate::error::NetlinkError;
use crate::family::{number, of_route, route_address};
use crate::link::LinkRef;
use crate::route_conn::{RouteConn, RouteRequest};
use flannel_model::IpFamily;

/// An address on a link, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpOnLink {
    /// Index of the link.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Prefix length.
    pub length: u8,
    /// Valid everywhere, not only on the link or host.
    pub global: bool,
}

/// A route of either family through a gateway on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayRoute {
    /// Index of the link.
    pub ifindex: u32,
    /// Destination: network address and prefix length.
    pub destination: (IpAddr, u8),
    /// Next hop, of the same family.
    pub gateway: IpAddr,
    /// What else the route has.
    pub options: RouteOptions,
}

/// Metrics and place of a route. Absent means the kernel's own choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteOptions {
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Segment size told to TCP peers, in bytes.
    pub advmss: Option<u32>,
    /// Metric; lower wins.
    pub priority: Option<u32>,
    /// Routing table; the main one when absent.
    pub table: Option<u32>,
    /// Scope as in `ip route` (253 is link).
    pub scope: Option<u8>,
}

/// A route of either family, as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedRoute {
    /// Index of the link, where there is a single one.
    pub ifindex: Option<u32>,
    /// Destination: network address and prefix length.
    pub destination: (IpAddr, u8),
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Routing table.
    pub table: u32,
}

/// Puts an address on a link; EEXIST when it is there. There is no duplicate address detection, so an IPv6 address serves at
/// once: addresses come from a list of leases that has each only once.
pub fn add_address(ip: &IpOnLink) -> RouteRequest {
    RouteRequest::new(
        RouteNetlinkMessage::NewAddress(message(ip)),
        CREATE | EXCL,
        format!("add address {ip}"),
    )
}

/// Takes an address off a link; EADDRNOTAVAIL when it is not there.
pub fn delete_address(ip: &IpOnLink) -> RouteRequest {
    RouteRequest::new(
        RouteNetlinkMessage::DelAddress(message(ip)),
        0,
        format!("delete address {ip}"),
    )
}

/// All addresses of a link, both families.
///
/// # Errors
/// When the kernel refuses.
pub fn addresses(conn: &mut RouteConn, ifindex: u32) -> Result<Vec<IpOnLink>, NetlinkError> {
    let listed = conn.dump(&list_request(ifindex))?;
    Ok(listed
        .iter()
        .filter_map(read)
        .filter(|ip| ip.ifindex == ifindex)
        .collect())
}

/// The links that bear an address.
///
/// # Errors
/// When the kernel refuses.
pub fn bearers(conn: &mut RouteConn, address: IpAddr) -> Result<Vec<u32>, NetlinkError> {
    let listed = conn.dump(&list_request(0))?;
    let bearing = listed.iter().filter_map(read).filter(|ip| ip.address == address);
    Ok(bearing.map(|ip| ip.ifindex).collect())
}

/// The request for the addresses of a link. The kernel may tell those of others too.
pub(crate) fn list_request(ifindex: u32) -> RouteRequest {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    let what = format!("list addresses of link {ifindex}");
    RouteRequest::new(RouteNetlinkMessage::GetAddress(message), 0, what)
}

/// All unicast routes of the namespace, both families and all tables.
///
/// # Errors
/// When the kernel refuses.
pub fn routes(conn: &mut RouteConn) -> Result<Vec<ListedRoute>, NetlinkError> {
    let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let listed = conn.dump(&RouteRequest::new(request, 0, "list routes"))?;
    Ok(listed.iter().filter_map(read_route).collect())
}

fn read_route(message: &RouteNetlinkMessage) -> Option<ListedRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = ListedRoute {
        ifindex: None,
        destination: (any, message.header.destination_prefix_length),
        gateway: None,
        table: message.header.table.into(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination.0 = of_route(address)?,
            RouteAttribute::Gateway(address) => route.gateway = of_route(address),
            RouteAttribute::Oif(index) => route.ifindex = Some(*index),
            RouteAttribute::Table(table) => route.table = *table,
            _ => {}
        }
    }
    Some(route)
}

/// Adds a route through a gateway; EEXIST when the destination has one of the same metric.
pub fn add_route(route: &GatewayRoute) -> RouteRequest {
    let mut message = RouteMessage::default();
    message.header.address_family = number(IpFamily::of(route.gateway));
    message.header.destination_prefix_length = route.destination.1;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    // As `ip route add` marks what an administrator asked for.
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = route.options.scope.map_or(RouteScope::Universe, RouteScope::from);
    message.header.kind = RouteType::Unicast;
    let mut set = |attribute| message.attributes.push(attribute);
    if route.destination.1 > 0 {
        set(RouteAttribute::Destination(route_address(route.destination.0)));
    }
    set(RouteAttribute::Gateway(route_address(route.gateway)));
    set(RouteAttribute::Oif(route.ifindex));
    route
        .options
        .priority
        .into_iter()
        .for_each(|priority| set(RouteAttribute::Priority(priority)));
    // The attribute holds any number and outranks the byte in the header.
    route
        .options
        .table
        .into_iter()
        .for_each(|table| set(RouteAttribute::Table(table)));
    let mtu = route.options.mtu.map(RouteMetric::Mtu);
    let metrics: Vec<RouteMetric> = mtu
        .into_iter()
        .chain(route.options.advmss.map(RouteMetric::Advmss))
        .collect();
    if !metrics.is_empty() {
        set(RouteAttribute::Metrics(metrics));
    }
    let (network, length) = route.destination;
    let what = format!("add route {network}/{length} via {}", route.gateway);
    RouteRequest::new(RouteNetlinkMessage::NewRoute(message), CREATE | EXCL, what)
}

/// Lets a link take every frame (IFF_PROMISC), or only its own.
pub fn set_promiscuous<'a>(link: impl Into<LinkRef<'a>>, on: bool) -> RouteRequest {
    let link = link.into();
    let mut message = LinkMessage::default();
    match link {
        LinkRef::Index(ifindex) => message.header.index = ifindex,
        LinkRef::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_owned())),
    }
    message.header.change_mask = LinkFlags::Promisc;
    message.header.flags = if on {
        LinkFlags::Promisc
    } else {
        LinkFlags::empty()
    };
    let what = format!("set {link} promiscuous {}", if on { "on" } else { "off" });
    RouteRequest::new(RouteNetlinkMessage::SetLink(message), 0, what)
}

pub(crate) fn message(ip: &IpOnLink) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = number(IpFamily::of(ip.address));
    message.header.prefix_len = ip.length;
    message.header.index = ip.ifindex;
    message.header.scope = AddressScope::Universe;
    message.header.flags = AddressHeaderFlags::Nodad | AddressHeaderFlags::Permanent;
    message.attributes.push(AddressAttribute::Local(ip.address));
    message.attributes.push(AddressAttribute::Address(ip.address));
    message.attributes.push(AddressAttribute::Flags(
        AddressFlags::Nodad | AddressFlags::Permanent,
    ));
    message
}

pub(crate) fn read(message: &RouteNetlinkMessage) -> Option<IpOnLink> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    // IPv6 has no local attribute unless the link is point-to-point.
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some(IpOnLink {
        ifindex: message.header.index,
        address,
        length: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
    })
}

impl fmt::Display for IpOnLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on link {}", self.address, self.length, self.ifindex)
    }
}
