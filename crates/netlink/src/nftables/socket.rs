//! The socket by which this thread speaks to nf_tables, kept for its next request.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::net::sockopt::{self, Timeout};

use super::DEADLINE;
use crate::error::NetlinkError;

/// A socket and the numbers that its messages have had.
pub(super) struct Numbered {
    socket: Socket,
    used: u32,
}

impl Numbered {
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The number before the next `count`, which are its own from then on: what is still said about earlier messages is not
    /// mistaken for an answer.
    pub(super) fn take_numbers(&mut self, count: usize) -> u32 {
        let before = self.used;
        self.used = before.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        before
    }
}

thread_local! {
    /// Sockets that have served; the last one serves again.
    static SERVED: RefCell<Vec<Numbered>> = const { RefCell::new(Vec::new()) };
}

/// Sockets kept at the most.
const MOST: usize = 64;

/// Hands a socket to `call`, and does not close it then. While deleted objects wait for their destruction, closing any socket
/// of this protocol waits for that, a good ten milliseconds, and lets nobody begin a transaction meanwhile (`nft_rcv_nl_event`,
/// net/netfilter/nf_tables_api.c). A moment later the kernel is at it in the background, and closing costs nothing. One by which
/// something failed does not serve again, as more may be said about that.
pub(super) fn with_socket(
    what: &str,
    call: impl FnOnce(&mut Numbered) -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    let kept = SERVED.with_borrow_mut(Vec::pop);
    let mut socket = match kept {
        Some(socket) => socket,
        None => Numbered {
            socket: open().map_err(|e| NetlinkError::socket(what, &e))?,
            used: 0,
        },
    };
    let result = call(&mut socket);
    SERVED.with_borrow_mut(|served| {
        if served.len() >= MOST {
            served.clear();
        }
        match result {
            Ok(()) => served.push(socket),
            Err(_) => served.insert(0, socket),
        }
    });
    result
}

/// Lends the sockets that this thread keeps, so that somebody else can hold them when it ends.
pub fn with_kept_sockets<T>(call: impl FnOnce(&[BorrowedFd<'_>]) -> T) -> T {
    SERVED.with_borrow(|served| {
        let lent: Vec<BorrowedFd<'_>> = served.iter().map(|kept| kept.socket.as_fd()).collect();
        call(&lent)
    })
}

/// A new socket.
pub(super) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    // Only words for errors are lost where these are not known (before 4.12).
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
    Ok(socket)
}
