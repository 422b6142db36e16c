//! The word to the daemon that there is something to delete, and what goes with it.
//!
//! A process that has just deleted elements of nf_tables hands its sockets over instead of closing them: whoever closes one
//! waits, and makes all others wait, until those elements are destroyed. The daemon closes them when that is long done.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Sockets in one word at the most. The kernel would take 253 (SCM_MAX_FD, include/net/scm.h).
const MOST: usize = 16;

/// Tells the daemon at the other end of `to`, without waiting, and gives it its own copies of `sockets`.
///
/// # Errors
/// `WouldBlock` when its queue is full, other errors when nobody listens.
pub fn tell(to: &UnixDatagram, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sockets = sockets.get(..MOST).unwrap_or(sockets);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(sockets));
    }
    sendmsg(to, &[IoSlice::new(&[1])], &mut control, SendFlags::DONTWAIT)?;
    Ok(())
}

/// Waits for a word, as long as the socket's own time limit says, and gives what came with it.
///
/// # Errors
/// `WouldBlock` when none came in time.
pub fn hear(at: &UnixDatagram) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0; 8];
    recvmsg(
        at,
        &mut [IoSliceMut::new(&mut word)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            sockets.extend(files);
        }
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_go_with_the_word() {
        let (plugin, daemon) = UnixDatagram::pair().unwrap();
        daemon.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(hear(&daemon).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (reading, writing) = io::pipe().unwrap();
        tell(&plugin, &[]).unwrap();
        tell(&plugin, &[writing.as_fd()]).unwrap();
        drop(writing);
        assert!(hear(&daemon).unwrap().is_empty());
        let held = hear(&daemon).unwrap();
        assert_eq!(held.len(), 1);
        let mut one = [0];
        rustix::io::write(&held[0], b"x").unwrap();
        rustix::io::read(&reading, &mut one).unwrap();
        drop(held);
        assert_eq!(rustix::io::read(&reading, &mut one).unwrap(), 0);
    }
}
