//! Asking the kernel which way it would send a packet.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};

use crate::error::NetlinkError;
use crate::family::{number, of_route, route_address};
use crate::route_conn::{RouteConn, RouteRequest};
use flannel_model::IpFamily;

/// The way to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// Index of the device that packets leave by.
    pub ifindex: u32,
    /// Source address that a local process gets.
    pub source: Option<IpAddr>,
    /// The next router; `None` when the address is on the link.
    pub gateway: Option<IpAddr>,
}

/// The way that a packet of this host to `address` takes (`ip route get`). `None` when there is no route.
///
/// # Errors
/// When the kernel refuses for another reason or its answer cannot be read.
pub fn lookup(conn: &mut RouteConn, address: impl Into<IpAddr>) -> Result<Option<Lookup>, NetlinkError> {
    use rustix::io::Errno;
    let address = address.into();
    let mut message = RouteMessage::default();
    message.header.address_family = number(IpFamily::of(address));
    message.header.destination_prefix_length = IpFamily::of(address).bits();
    message
        .attributes
        .push(RouteAttribute::Destination(route_address(address)));
    let what = format!("look up the route to {address}");
    let request = RouteRequest::new(RouteNetlinkMessage::GetRoute(message), 0, what.clone());
    match conn.request(&request) {
        Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => Ok(read(&answer)),
        Ok(_) => Err(NetlinkError::malformed(what, "no route in the answer")),
        // EINVAL is the answer of a prohibiting `blackhole`, EACCES that of `prohibit` (fib_props, fib_semantics.c).
        Err(error)
            if [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL]
                .iter()
                .any(|e| error.has_errno(*e)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn read(answer: &RouteMessage) -> Option<Lookup> {
    let (mut ifindex, mut source, mut gateway) = (None, None, None);
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::PrefSource(address) => source = of_route(address),
            RouteAttribute::Gateway(address) => gateway = of_route(address),
            _ => {}
        }
    }
    Some(Lookup {
        ifindex: ifindex?,
        source,
        gateway,
    })
}
