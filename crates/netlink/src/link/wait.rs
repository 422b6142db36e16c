//! Waiting for a link to carry packets.

use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;

use super::read::by_index;
use crate::error::NetlinkError;
use crate::route_conn::RouteConn;
use crate::watch;

/// `RTNLGRP_LINK` (linux/rtnetlink.h): changes of links.
const LINK_CHANGES: u32 = 1;

/// Waits until the kernel has acted upon a link's carrier: then its queue takes packets, and a bridge forwards to it. That
/// happens in the background after the carrier comes, or at once when the link is asked for (Linux 6.8, `rtnl_getlink`).
/// `false` when it did not happen within `patience`.
///
/// # Errors
/// When the kernel refuses.
pub fn await_running(conn: &mut RouteConn, ifindex: u32, patience: Duration) -> Result<bool, NetlinkError> {
    let running = || Ok(by_index(conn, ifindex)?.filter(|link| link.running).map(drop));
    let ours = |message: &_| match message {
        RouteNetlinkMessage::NewLink(link) => link.header.index == ifindex,
        _ => false,
    };
    let what = format!("watch link {ifindex}");
    watch::until(LINK_CHANGES, &what, patience, ours, running).map(|outcome| outcome.is_some())
}
