//! Leaving the slow deletion of a container's device to the daemon, where one runs.

use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use flannel_netlink::link::{Link, released};
use flannel_netlink::{Netns, RouteConn, link};

use super::plan::HostEnd;
use super::{kernel, veth};
use crate::protocol::CniError;

/// Aliases up to this length name all addresses: a longer one may have had no room for another (IFALIASZ less 1, less the
/// longest address and its blank).
const ALIAS_COMPLETE: usize = 255 - 46;

/// A daemon that deletes what was cut off.
#[derive(Debug)]
pub struct Reaper(UnixDatagram);

impl Reaper {
    /// The daemon that writes `subnet_file`, if it is there to listen.
    pub fn find(subnet_file: &Path) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket
            .connect(subnet_file.with_file_name(released::SOCKET))
            .ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self(socket))
    }

    /// Tells it that there is something to delete. `false` when it cannot be told.
    fn wake(&self) -> bool {
        match self.0.send(&[1]) {
            Ok(_) => true,
            // Its queue is full (`net.unix.max_dgram_qlen`, 10 by default): earlier words are unread, and when it reads them it
            // looks for everything that was cut off.
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// Cuts the host's end off and leaves its deletion to `reaper`; without one, or when that fails, deletes it. `false` when there
/// was none.
///
/// # Errors
/// Code 102 when a device of that name is somebody else's, 100 when the kernel refuses.
pub fn detach(conn: &mut RouteConn, end: &HostEnd, reaper: Option<&Reaper>) -> Result<bool, CniError> {
    let Some(found) = veth::find(conn, end)? else {
        return Ok(false);
    };
    match reaper.is_some_and(|reaper| cut_off(conn, &found) && reaper.wake()) {
        true => Ok(true),
        false => veth::delete(conn, found.ifindex),
    }
}

/// `false` when it could not be, and must be deleted instead.
pub fn cut_off(conn: &mut RouteConn, end: &Link) -> bool {
    if released::is_released(end) {
        return true;
    }
    let alias = end.alias.as_deref().unwrap_or_default();
    if !alias.starts_with(released::MARK) || alias.len() > ALIAS_COMPLETE {
        return false;
    }
    let addresses: Vec<IpAddr> = alias.split(' ').filter_map(|word| word.parse().ok()).collect();
    released::release(conn, end.ifindex, &addresses).is_ok()
}

/// Sees to it that no device that was cut off has `address` any more: nobody gets it while it lives.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn await_gone(conn: &mut RouteConn, address: IpAddr) -> Result<(), CniError> {
    match released::with_address(conn, address).map_err(|e| kernel(&e))? {
        Some(link) => veth::delete(conn, link.ifindex).map(drop),
        None => Ok(()),
    }
}

/// Removes the container's device `ifname` if its host end was cut off. `false` when it is another one.
///
/// # Errors
/// Code 8 when the namespace cannot be entered, 100 when the kernel refuses.
pub fn remove_rest(conn: &mut RouteConn, target: &Netns, ifname: &str) -> Result<bool, CniError> {
    let mut inside = super::inside(target)?;
    let Some(device) = link::by_name(&mut inside, ifname).map_err(|e| kernel(&e))? else {
        return Ok(true);
    };
    let Some(peer) = device.peer.filter(|_| device.kind == "veth") else {
        return Ok(false);
    };
    // An index says nothing about the namespace that it is of; that both name each other does.
    match link::by_index(conn, peer).map_err(|e| kernel(&e))? {
        Some(end) if released::is_released(&end) && end.peer == Some(device.ifindex) => {
            veth::delete(conn, end.ifindex).map(|_| true)
        }
        Some(_) | None => Ok(false),
    }
}
