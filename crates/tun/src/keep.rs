//! Descriptors that outlive the daemon. While nobody reads them, the kernel queues packets in the TUN device and the socket, so that a
//! restart loses none. systemd keeps descriptors itself (FDSTORE); elsewhere a small process of the same program does.
//!
//! The protocol, on a SOCK_SEQPACKET socket: a message is one byte, with one descriptor where the byte names a kind of descriptor.
//! `c` clears, `d`, `s` and `m` keep a queue of the device, a socket or the memory of what the threads have in hand, each answered by `k`;
//! `t` is answered by every descriptor and `e`; `q` ends the process. It must stay readable for a holder that an earlier version started.

mod holder;
mod wire;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub use holder::hold;
use wire::{CLEAR, DEVICE, END, KEPT, MEMORY, QUIT, SOCKET, TAKE};

/// Descriptors of a data path.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// Queues of the device.
    pub devices: Vec<OwnedFd>,
    /// Sockets.
    pub sockets: Vec<OwnedFd>,
    /// The memory of what the threads had in hand.
    pub memory: Option<OwnedFd>,
}

impl Descriptors {
    /// Whether there is nothing to go on with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.sockets.is_empty()
    }
}

/// Every descriptor that the holder at `path` has. It keeps them as well.
///
/// # Errors
/// When there is no holder, or it does not answer.
pub fn take(path: &Path) -> io::Result<Descriptors> {
    let holder = connect(path)?;
    wire::send(&holder, TAKE, None)?;
    let mut all = Descriptors::default();
    loop {
        match wire::receive(&holder)? {
            Some((DEVICE, Some(descriptor))) => all.devices.push(descriptor),
            Some((SOCKET, Some(descriptor))) => all.sockets.push(descriptor),
            Some((MEMORY, Some(descriptor))) => all.memory = Some(descriptor),
            Some((END, _)) => return Ok(all),
            _ => return Err(unexpected()),
        }
    }
}

/// Gives the holder at `path` these descriptors in the place of what it has.
///
/// # Errors
/// When there is no holder, or it does not answer; the memory is the last that it gets.
pub fn keep(
    path: &Path,
    devices: &[BorrowedFd<'_>],
    sockets: &[BorrowedFd<'_>],
    memory: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let holder = connect(path)?;
    confirmed(&holder, CLEAR, None)?;
    for descriptor in devices {
        confirmed(&holder, DEVICE, Some(*descriptor))?;
    }
    for descriptor in sockets {
        confirmed(&holder, SOCKET, Some(*descriptor))?;
    }
    if memory.is_some() {
        confirmed(&holder, MEMORY, memory)?;
    }
    Ok(())
}

/// Ends the holder at `path`, and what nobody else has open with it.
///
/// # Errors
/// When there is no holder.
pub fn forget(path: &Path) -> io::Result<()> {
    wire::send(&connect(path)?, QUIT, None)
}

fn confirmed(holder: &OwnedFd, message: u8, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    wire::send(holder, message, descriptor)?;
    match wire::receive(holder)? {
        Some((KEPT, _)) => Ok(()),
        _ => Err(unexpected()),
    }
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    wire::limit(&socket)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn unexpected() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the descriptor holder answered something else",
    )
}
