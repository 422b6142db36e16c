//! Addresses and routes of either family, as a container's interface and its bridge need them.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::conn::{CREATE, EXCL};
use crate::error::NetlinkError;
use crate::link::LinkRef;
use crate::route_conn::{RouteConn, RouteRequest};

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
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    let what = format!("list addresses of link {ifindex}");
    let listed = conn.dump(&RouteRequest::new(
        RouteNetlinkMessage::GetAddress(message),
        0,
        what,
    ))?;
    Ok(listed
        .iter()
        .filter_map(read)
        .filter(|ip| ip.ifindex == ifindex)
        .collect())
}

/// Adds a route through a gateway; EEXIST when the destination has one of the same metric.
pub fn add_route(route: &GatewayRoute) -> RouteRequest {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.gateway);
    message.header.destination_prefix_length = route.destination.1;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    // As `ip route add` marks what an administrator asked for.
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if route.destination.1 > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(route_address(route.destination.0)));
    }
    message
        .attributes
        .push(RouteAttribute::Gateway(route_address(route.gateway)));
    message.attributes.push(RouteAttribute::Oif(route.ifindex));
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

fn message(ip: &IpOnLink) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip.address);
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

fn read(message: &RouteNetlinkMessage) -> Option<IpOnLink> {
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

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

impl fmt::Display for IpOnLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on link {}", self.address, self.length, self.ifindex)
    }
}
