//! Waiting for a notification of the kernel, with a bound.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};

use crate::conn::Reply;
use crate::error::NetlinkError;
use crate::route_conn::parse;
use crate::wire::Frames;

/// Asks `holds` at once and again after each notification of `group` (linux/rtnetlink.h) that `concerns` it. `None` when it does
/// not hold within `patience`.
///
/// # Errors
/// When the kernel refuses, and what `holds` says.
pub(crate) fn until<T>(
    group: u32,
    what: &str,
    patience: Duration,
    concerns: impl Fn(&RouteNetlinkMessage) -> bool,
    mut holds: impl FnMut() -> Result<Option<T>, NetlinkError>,
) -> Result<Option<T>, NetlinkError> {
    if let Some(value) = holds()? {
        return Ok(Some(value));
    }
    let failed = |e: io::Error| NetlinkError::socket(what.to_owned(), &e);
    let socket = subscribe(group).map_err(failed)?;
    let begin = Instant::now();
    loop {
        // It may have happened before we listened.
        if let Some(value) = holds()? {
            return Ok(Some(value));
        }
        let left = patience.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(left)).map_err(|e| failed(e.into()))?;
        told(&socket, &concerns).map_err(failed)?;
    }
}

fn subscribe(group: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(group)?;
    Ok(socket)
}

/// Reads notifications up to the first that concerns us. A lost one, or none in time, also ends it: the caller looks anyway.
fn told(socket: &Socket, concerns: &impl Fn(&RouteNetlinkMessage) -> bool) -> io::Result<()> {
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
        let concerned = Frames(&buffer)
            .flatten()
            .any(|frame| parse(&Reply::from(&frame)).is_ok_and(|message| concerns(&message)));
        if concerned {
            return Ok(());
        }
    }
}
