//! What a link has carried.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;

use super::LinkRef;
use super::change::message_for;
use crate::error::NetlinkError;
use crate::route_conn::{RouteConn, RouteRequest};

/// Counters of a link since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets that came in.
    pub received: u64,
    /// Packets that went out.
    pub sent: u64,
    /// Packets that came in and were thrown away, or could not be read.
    pub received_lost: u64,
    /// Packets that should have gone out and did not.
    pub sent_lost: u64,
}

/// The counters of a link; `None` when there is no such link.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub fn counters(conn: &mut RouteConn, ifindex: u32) -> Result<Option<Counters>, NetlinkError> {
    let message = message_for(LinkRef::Index(ifindex));
    let what = format!("get counters of link {ifindex}");
    let answer = match conn.request(&RouteRequest::new(RouteNetlinkMessage::GetLink(message), 0, what)) {
        Err(error) if error.is_missing() => return Ok(None),
        other => other?,
    };
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Ok(None);
    };
    Ok(link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(Counters {
            received: stats.rx_packets,
            sent: stats.tx_packets,
            received_lost: stats.rx_dropped + stats.rx_errors,
            sent_lost: stats.tx_dropped + stats.tx_errors,
        }),
        _ => None,
    }))
}
