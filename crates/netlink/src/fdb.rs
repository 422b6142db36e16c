//! The forwarding table of a VXLAN link: which VTEP (outer IP address) has an Ethernet address.

use std::net::IpAddr;

use flannel_model::Mac;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::conn::{CREATE, REPLACE};
use crate::error::NetlinkError;
use crate::family::{neighbour_address, of_neighbour};
use crate::neighbour::{is_permanent, mac_of};
use crate::route_conn::{RouteConn, RouteRequest};

/// An entry of a link's own forwarding table that leads to a VTEP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdbEntry {
    /// Index of the VXLAN link.
    pub ifindex: u32,
    /// Inner destination.
    pub mac: Mac,
    /// Outer destination.
    pub dst: IpAddr,
    /// Set by somebody, never to be forgotten.
    pub permanent: bool,
    /// Uses the port, VNI and underlay of the link. Entries that have their own are none of ours.
    pub plain: bool,
}

/// Entries of a VXLAN link that have an outer destination.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(conn: &mut RouteConn, ifindex: u32) -> Result<Vec<FdbEntry>, NetlinkError> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.attributes.push(NeighbourAttribute::IfIndex(ifindex));
    let what = format!("list FDB of link {ifindex}");
    let request = RouteRequest::new(RouteNetlinkMessage::GetNeighbour(message), 0, what);
    let listed = match conn.dump(&request) {
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        other => other?,
    };
    Ok(listed
        .iter()
        .filter_map(read_entry)
        .filter(|e| e.ifindex == ifindex)
        .collect())
}

/// Leads an Ethernet address to a VTEP, in place of the VTEP that it led to.
pub fn replace(ifindex: u32, mac: Mac, dst: impl Into<IpAddr>) -> RouteRequest {
    let dst = dst.into();
    let mut message = message(ifindex, mac, dst);
    message.header.state = NeighbourState::Permanent;
    let what = format!("set FDB entry {mac} dst {dst} on link {ifindex}");
    RouteRequest::new(RouteNetlinkMessage::NewNeighbour(message), CREATE | REPLACE, what)
}

/// Deletes an entry; ENOENT when the link knows no such Ethernet address. An entry that leads elsewhere stays, and
/// kernels differ in whether they call that a success.
pub fn delete(ifindex: u32, mac: Mac, dst: impl Into<IpAddr>) -> RouteRequest {
    let dst = dst.into();
    let what = format!("delete FDB entry {mac} dst {dst} on link {ifindex}");
    RouteRequest::new(
        RouteNetlinkMessage::DelNeighbour(message(ifindex, mac, dst)),
        0,
        what,
    )
}

fn message(ifindex: u32, mac: Mac, dst: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    // "self": the link's own table and not that of a bridge above it.
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
    message
        .attributes
        .push(NeighbourAttribute::Destination(neighbour_address(dst)));
    message
}

/// Reads an entry out of an answer; `None` for other messages and for entries without an outer address.
pub(crate) fn read_entry(message: &RouteNetlinkMessage) -> Option<FdbEntry> {
    let (RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message)) = message
    else {
        return None;
    };
    if message.header.family != AddressFamily::Bridge {
        return None;
    }
    let mut dst = None;
    let mut plain = true;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => dst = of_neighbour(address),
            NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) | NeighbourAttribute::IfIndex(_) => {
                plain = false;
            }
            _ => {}
        }
    }
    Some(FdbEntry {
        ifindex: message.header.ifindex,
        mac: mac_of(message)?,
        dst: dst?,
        permanent: is_permanent(message),
        plain,
    })
}
