//! One message: a byte, and perhaps a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

pub const CLEAR: u8 = b'c';
pub const DEVICE: u8 = b'd';
pub const SOCKET: u8 = b's';
pub const MEMORY: u8 = b'm';
pub const KEPT: u8 = b'k';
pub const TAKE: u8 = b't';
pub const END: u8 = b'e';
pub const QUIT: u8 = b'q';

/// Both ends only move descriptors about: who has not answered by then never will.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes every call on the socket end in time.
pub fn limit(socket: impl AsFd) -> io::Result<()> {
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    Ok(())
}

pub fn send(socket: impl AsFd, message: u8, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = descriptor.as_slice();
    if !rights.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(rights));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&[message])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// `None` at the end of the connection.
pub fn receive(socket: impl AsFd) -> io::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = [0];
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut message)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok((received.bytes > 0).then_some((message[0], descriptor)))
}
