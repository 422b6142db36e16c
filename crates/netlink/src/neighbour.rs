//! Neighbours: which Ethernet address an IP address on a link has.

use std::net::IpAddr;

use flannel_model::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteType;

use crate::conn::{CREATE, REPLACE};
use crate::error::NetlinkError;
use crate::family::{neighbour_address, number, of_neighbour};
use crate::route_conn::{RouteConn, RouteRequest};
use flannel_model::IpFamily;

/// An entry of a link's neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the link.
    pub ifindex: u32,
    /// The IP address.
    pub address: IpAddr,
    /// Its Ethernet address, where it is known.
    pub mac: Option<Mac>,
    /// Set by somebody, never to be asked for or forgotten (NUD_PERMANENT).
    pub permanent: bool,
}

/// Neighbours of one family of a link, permanent and learned ones, without proxy entries.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(conn: &mut RouteConn, family: IpFamily, ifindex: u32) -> Result<Vec<Neighbour>, NetlinkError> {
    let mut message = NeighbourMessage::default();
    message.header.family = number(family);
    message.attributes.push(NeighbourAttribute::IfIndex(ifindex));
    let what = format!("list neighbours of link {ifindex}");
    let request = RouteRequest::new(RouteNetlinkMessage::GetNeighbour(message), 0, what);
    let listed = match conn.dump(&request) {
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        other => other?,
    };
    Ok(listed
        .iter()
        .filter_map(read_neighbour)
        .filter(|n| n.ifindex == ifindex && IpFamily::of(n.address) == family)
        .collect())
}

/// Makes a permanent entry, or makes the existing one of that address so.
pub fn replace(ifindex: u32, address: impl Into<IpAddr>, mac: Mac) -> RouteRequest {
    let address = address.into();
    let mut message = message(ifindex, address);
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
    let what = format!("set neighbour {address} lladdr {mac} on link {ifindex}");
    RouteRequest::new(RouteNetlinkMessage::NewNeighbour(message), CREATE | REPLACE, what)
}

/// Deletes the entry of an address; ENOENT when there is none.
pub fn delete(ifindex: u32, address: impl Into<IpAddr>) -> RouteRequest {
    let address = address.into();
    let what = format!("delete neighbour {address} on link {ifindex}");
    RouteRequest::new(
        RouteNetlinkMessage::DelNeighbour(message(ifindex, address)),
        0,
        what,
    )
}

fn message(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = number(IpFamily::of(address));
    message.header.ifindex = ifindex;
    message.header.kind = RouteType::Unicast;
    message
        .attributes
        .push(NeighbourAttribute::Destination(neighbour_address(address)));
    message
}

/// Reads a neighbour out of an answer or a notification; `None` for other messages.
pub(crate) fn read_neighbour(message: &RouteNetlinkMessage) -> Option<Neighbour> {
    let (RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message)) = message
    else {
        return None;
    };
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(address) => of_neighbour(address),
        _ => None,
    })?;
    Some(Neighbour {
        ifindex: message.header.ifindex,
        address,
        mac: mac_of(message),
        permanent: is_permanent(message),
    })
}

/// Whether the entry is permanent. The state is a set of bits: iproute2 adds NUD_NOARP to an FDB entry's.
pub(crate) fn is_permanent(message: &NeighbourMessage) -> bool {
    u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0
}

/// The Ethernet address in a neighbour message.
pub(crate) fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => {
            <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac::new)
        }
        _ => None,
    })
}
