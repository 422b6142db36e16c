//! Asking the kernel which way it would send a packet.

use std::net::Ipv4Addr;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::NetlinkError;
use crate::route_conn::{RouteConn, RouteRequest};

/// The way to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// Index of the device that packets leave by.
    pub ifindex: u32,
    /// Source address that a local process gets.
    pub source: Option<Ipv4Addr>,
    /// The next router; `None` when the address is on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// The way that a packet of this host to `address` takes (`ip route get`). `None` when there is no route.
///
/// # Errors
/// When the kernel refuses for another reason or its answer cannot be read.
pub fn lookup(conn: &mut RouteConn, address: Ipv4Addr) -> Result<Option<Lookup>, NetlinkError> {
    use rustix::io::Errno;
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::Inet(address)));
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
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    Some(Lookup {
        ifindex: ifindex?,
        source,
        gateway,
    })
}
