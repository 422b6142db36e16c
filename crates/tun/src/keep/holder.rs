//! The process that keeps descriptors for a host without systemd. It does nothing else, so there is little that could end it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::wire::{self, CLEAR, DEVICE, END, KEPT, MEMORY, QUIT, SOCKET, TAKE};

/// Descriptors at the most: 256 queues (the kernel's MAX_TAP_QUEUES) and as many sockets. More would only be a fault of the sender.
const MOST: usize = 512;

/// Keeps descriptors at `path` until it is told to end. A socket that an earlier holder left behind there is replaced.
///
/// # Errors
/// When the socket cannot be made.
pub fn hold(path: &Path) -> io::Result<()> {
    // A session of its own: neither a terminal's signals nor those to the daemon's process group end it. It fails when there is one.
    rustix::process::setsid().ok();
    std::fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Only root may have them.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&listener, 4)?;
    let mut kept: Vec<(u8, OwnedFd)> = Vec::new();
    loop {
        let client = match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(client) => client,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        // What goes wrong with one client is that client's matter.
        if matches!(serve(&client, &mut kept), Ok(End::Quit)) {
            std::fs::remove_file(path).ok();
            return Ok(());
        }
    }
}

enum End {
    Client,
    Quit,
}

fn serve(client: &OwnedFd, kept: &mut Vec<(u8, OwnedFd)>) -> io::Result<End> {
    wire::limit(client)?;
    while let Some((message, descriptor)) = wire::receive(client)? {
        match (message, descriptor) {
            (CLEAR, _) => {
                kept.clear();
                wire::send(client, KEPT, None)?;
            }
            (kind @ (DEVICE | SOCKET | MEMORY), Some(descriptor)) if kept.len() < MOST => {
                kept.push((kind, descriptor));
                wire::send(client, KEPT, None)?;
            }
            (TAKE, _) => {
                for (kind, descriptor) in kept.iter() {
                    wire::send(client, *kind, Some(descriptor.as_fd()))?;
                }
                wire::send(client, END, None)?;
            }
            (QUIT, _) => return Ok(End::Quit),
            _ => return Ok(End::Client),
        }
    }
    Ok(End::Client)
}
