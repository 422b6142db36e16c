//! Leaving what is slow to the daemon, where one runs: the deletion of a container's device, and the destruction of what nf_tables
//! had of it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use flannel_netlink::link::{Link, released};
use flannel_netlink::nftables::with_kept_sockets;
use flannel_netlink::{RouteConn, link};

use super::plan::HostEnd;
use super::{Target, kernel, veth};
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

    /// Whether a daemon that writes `subnet_file` has ever listened since the node's start: it leaves its socket.
    pub fn has_been(subnet_file: &Path) -> bool {
        fs::symlink_metadata(subnet_file.with_file_name(released::SOCKET)).is_ok()
    }

    /// Tells it that there is something to delete. `false` when it cannot be told.
    pub fn wake(&self) -> bool {
        match with_kept_sockets(|sockets| released::tell(&self.0, sockets)) {
            Ok(()) => true,
            // Its queue is full (`net.unix.max_dgram_qlen`, 10 by default): earlier words are unread, and when it reads them it
            // looks for everything that was cut off.
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// What became of the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// There was none.
    Nothing,
    /// It is cut off, and is to be deleted: the index.
    CutOff(u32),
    /// It could not be cut off, and was deleted.
    Deleted,
}

/// Cuts the host's end off, so that nothing else keeps anybody from taking away what belonged to it.
///
/// # Errors
/// Code 102 when a device of that name is somebody else's, 100 when the kernel refuses.
pub fn detach(conn: &mut RouteConn, end: &HostEnd) -> Result<Detached, CniError> {
    let Some(found) = veth::find(conn, end)? else {
        return Ok(Detached::Nothing);
    };
    match cut_off(conn, &found) {
        true => Ok(Detached::CutOff(found.ifindex)),
        false => veth::delete(conn, found.ifindex).map(|_| Detached::Deleted),
    }
}

/// Leaves a device that was cut off to `reaper`; without one, or when it cannot be told, deletes it.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn finish(conn: &mut RouteConn, ifindex: u32, reaper: Option<&Reaper>) -> Result<(), CniError> {
    match reaper.is_some_and(Reaper::wake) {
        true => Ok(()),
        false => veth::delete(conn, ifindex).map(drop),
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

/// The host's end, if there is one, when no device that was cut off has one of these addresses any more: nobody gets a device with
/// one while another with it lives.
///
/// # Errors
/// Code 102 when a device of that name is somebody else's, 100 when the kernel refuses.
pub fn await_gone(
    conn: &mut RouteConn,
    end: &HostEnd,
    addresses: &[IpAddr],
) -> Result<Option<Link>, CniError> {
    let (found, cut_off) = released::look(conn, &end.name, addresses).map_err(|e| kernel(&e))?;
    for link in cut_off {
        veth::delete(conn, link.ifindex)?;
    }
    found.map(|found| veth::ours(found, end)).transpose()
}

/// Removes the container's device `ifname` if its host end was cut off. `false` when it is another one.
///
/// # Errors
/// Code 8 when the namespace cannot be entered, 100 when the kernel refuses.
pub fn remove_rest(conn: &mut RouteConn, target: &Target, ifname: &str) -> Result<bool, CniError> {
    let mut inside = target.connect()?;
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
        Some(_) => Ok(false),
        // The daemon may have deleted it a moment ago, and both ends go together.
        None => link::by_name(&mut inside, ifname)
            .map(|device| device.is_none())
            .map_err(|e| kernel(&e)),
    }
}
