//! Routes.

mod lookup;
mod read;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use flannel_model::IpSubnet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::conn::{CREATE, EXCL, REPLACE};
use crate::family::{number, route_address};
use crate::route_conn::RouteRequest;
use flannel_model::IpFamily;

pub use lookup::{Lookup, lookup};
pub use read::{Filter, dump, read_route};

/// The protocol number that marks our routes. It is free in the kernel's list (linux/rtnetlink.h, RTPROT_*), and
/// neither iproute2 nor FRR give it a name.
pub const OUR_PROTOCOL: u8 = 70;
/// Routes made by hand or by flannel (RTPROT_BOOT).
pub const PROTOCOL_BOOT: u8 = 3;
/// Routes that the kernel makes of addresses (RTPROT_KERNEL).
pub const PROTOCOL_KERNEL: u8 = 2;
/// What an IPv6 route without a priority gets (IP6_RT_PRIO_USER).
pub const DEFAULT_METRIC_V6: u32 = 1024;
/// The table `main` (RT_TABLE_MAIN).
pub const TABLE_MAIN: u32 = 254;
/// The table `local` (RT_TABLE_LOCAL).
pub const TABLE_LOCAL: u32 = 255;

/// What happens to a packet that takes a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sent on.
    Unicast,
    /// Delivered to this host.
    Local,
    /// Dropped without a word.
    Blackhole,
    /// Another type, by number (RTN_*).
    Other(u8),
}

/// How far away the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// Beyond a gateway, or anywhere (RT_SCOPE_UNIVERSE).
    Universe,
    /// On the link (RT_SCOPE_LINK).
    Link,
    /// This host (RT_SCOPE_HOST).
    Host,
    /// Another scope, by number.
    Other(u8),
}

/// A route: as the kernel shows it, and as a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpSubnet,
    /// What happens to the packets.
    pub kind: RouteKind,
    /// Table number.
    pub table: u32,
    /// Who made it ([`OUR_PROTOCOL`]).
    pub protocol: u8,
    /// How far the destination is.
    pub scope: Distance,
    /// Index of the device that packets leave by; `None` for blackholes and for routes over several devices.
    pub ifindex: Option<u32>,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// Source address that local processes get.
    pub source: Option<IpAddr>,
    /// Priority; the lowest wins. In IPv6, 0 asks for the default, which the kernel then shows as
    /// [`DEFAULT_METRIC_V6`].
    pub metric: u32,
    /// The gateway is taken to be on the link although no address says so.
    pub onlink: bool,
    /// The route has several next hops, which are not shown here.
    pub multipath: bool,
}

impl Route {
    /// `destination via gateway dev ifindex`, in table main, marked as ours.
    pub fn via(destination: impl Into<IpSubnet>, gateway: impl Into<IpAddr>, ifindex: u32) -> Self {
        Self {
            destination: destination.into(),
            kind: RouteKind::Unicast,
            table: TABLE_MAIN,
            protocol: OUR_PROTOCOL,
            scope: Distance::Universe,
            ifindex: Some(ifindex),
            gateway: Some(gateway.into()),
            source: None,
            metric: 0,
            onlink: false,
            multipath: false,
        }
    }

    /// `destination via gateway dev ifindex onlink`, in table main, marked as ours.
    pub fn via_onlink(destination: impl Into<IpSubnet>, gateway: impl Into<IpAddr>, ifindex: u32) -> Self {
        Self {
            onlink: true,
            ..Self::via(destination, gateway, ifindex)
        }
    }

    /// `destination dev ifindex scope link`, in table main, marked as ours.
    pub fn on_link(destination: impl Into<IpSubnet>, ifindex: u32) -> Self {
        Self {
            gateway: None,
            scope: Distance::Link,
            ..Self::via(destination, Ipv4Addr::UNSPECIFIED, ifindex)
        }
    }

    /// `local destination dev ifindex`, in table local, marked as ours: the host takes every address of the destination
    /// for its own. `source` is what local processes get as their address when they send there.
    pub fn local(destination: impl Into<IpSubnet>, ifindex: u32, source: Option<IpAddr>) -> Self {
        Self {
            kind: RouteKind::Local,
            table: TABLE_LOCAL,
            scope: Distance::Host,
            source,
            ..Self::on_link(destination, ifindex)
        }
    }

    /// `blackhole destination`, in table main, marked as ours.
    pub fn blackhole(destination: impl Into<IpSubnet>) -> Self {
        let route = Self::via(destination, Ipv4Addr::UNSPECIFIED, 0);
        Self {
            kind: RouteKind::Blackhole,
            gateway: None,
            ifindex: None,
            ..route
        }
    }
}

/// Adds a route; EEXIST when the table has one with the same destination and metric, whoever made it.
pub fn add(route: &Route) -> RouteRequest {
    let message = RouteNetlinkMessage::NewRoute(message(route));
    RouteRequest::new(message, CREATE | EXCL, format!("add route {route}"))
}

/// Adds a route or puts it in the place of the one with the same destination and metric, **whoever made that**. No
/// packet is lost in between.
pub fn replace(route: &Route) -> RouteRequest {
    let message = RouteNetlinkMessage::NewRoute(message(route));
    RouteRequest::new(message, CREATE | REPLACE, format!("replace route {route}"))
}

/// Puts an IPv4 route before others with the same destination and metric, which stay; EEXIST when the very same is among them. IPv6
/// would join them to one route with several ways.
pub fn prepend(route: &Route) -> RouteRequest {
    let message = RouteNetlinkMessage::NewRoute(message(route));
    RouteRequest::new(message, CREATE, format!("prepend route {route}"))
}

/// Deletes the route that agrees in destination, table, kind, protocol, metric, device, gateway and source; ESRCH when
/// there is none.
pub fn delete(route: &Route) -> RouteRequest {
    let mut message = message(route);
    // RT_SCOPE_NOWHERE matches every scope (fib_table_delete).
    message.header.scope = RouteScope::NoWhere;
    RouteRequest::new(
        RouteNetlinkMessage::DelRoute(message),
        0,
        format!("delete route {route}"),
    )
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number(IpFamily::of(route.destination.network()));
    message.header.destination_prefix_length = route.destination.length();
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = route.scope.into();
    message.header.kind = route.kind.into();
    // The header has room for 8 bits; larger numbers go into an attribute.
    message.header.table = u8::try_from(route.table).unwrap_or(0);
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.table > u32::from(u8::MAX) {
        attributes.push(RouteAttribute::Table(route.table));
    }
    if route.destination.length() > 0 {
        attributes.push(RouteAttribute::Destination(route_address(
            route.destination.network(),
        )));
    }
    attributes.extend(route.gateway.map(|a| RouteAttribute::Gateway(route_address(a))));
    attributes.extend(route.source.map(|a| RouteAttribute::PrefSource(route_address(a))));
    attributes.extend(route.ifindex.map(RouteAttribute::Oif));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

impl From<RouteKind> for RouteType {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => Self::Unicast,
            RouteKind::Local => Self::Local,
            RouteKind::Blackhole => Self::BlackHole,
            RouteKind::Other(number) => Self::from(number),
        }
    }
}

impl From<Distance> for RouteScope {
    fn from(scope: Distance) -> Self {
        match scope {
            Distance::Universe => Self::Universe,
            Distance::Link => Self::Link,
            Distance::Host => Self::Host,
            Distance::Other(number) => Self::from(number),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => f.write_str("local ")?,
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Other(number) => write!(f, "type {number} ")?,
        }
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(ifindex) = self.ifindex {
            write!(f, " dev link {ifindex}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        if self.onlink {
            f.write_str(" onlink")
        } else {
            Ok(())
        }
    }
}
