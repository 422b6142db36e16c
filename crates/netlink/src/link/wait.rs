//! Waiting for a link to carry packets.

use std::io;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};

use super::read::{by_index, read_link};
use crate::conn::Reply;
use crate::error::NetlinkError;
use crate::route_conn::{RouteConn, parse};
use crate::wire::Frames;

/// `RTNLGRP_LINK` (linux/rtnetlink.h): changes of links.
const LINK_CHANGES: u32 = 1;

/// Waits until the kernel has acted upon a link's carrier: then its queue takes packets, and a bridge forwards to it. That
/// happens in the background after the carrier comes, or at once when the link is asked for (Linux 6.8, `rtnl_getlink`).
/// `false` when it did not happen within `patience`.
///
/// # Errors
/// When the kernel refuses.
pub fn await_running(conn: &mut RouteConn, ifindex: u32, patience: Duration) -> Result<bool, NetlinkError> {
    let mut running = || Ok(by_index(conn, ifindex)?.is_some_and(|link| link.running));
    if running()? {
        return Ok(true);
    }
    let what = format!("watch link {ifindex}");
    let failed = |e: io::Error| NetlinkError::socket(what.clone(), &e);
    let socket = subscribe().map_err(failed)?;
    // It may have happened before we listened.
    let begin = Instant::now();
    while !running()? {
        let left = patience.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(left)).map_err(|e| failed(e.into()))?;
        until_told(&socket, ifindex).map_err(failed)?;
    }
    Ok(true)
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(LINK_CHANGES)?;
    Ok(socket)
}

/// Reads notifications up to the first about the link. A lost one, or none in time, also ends it: the caller looks anyway.
fn until_told(socket: &Socket, ifindex: u32) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        buffer.clear();
        match socket.recv_from(&mut buffer, 0) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => return Ok(()),
            Err(e) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&e.kind()) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        let told = Frames(&buffer).flatten().any(|frame| {
            let message = parse(&Reply::from(&frame)).ok();
            message
                .as_ref()
                .and_then(read_link)
                .is_some_and(|link| link.ifindex == ifindex)
        });
        if told {
            return Ok(());
        }
    }
}
