//! Many datagrams in one call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::Socket;
use super::message::{Address, Control, empty_message};

/// Room for one datagram or train: the longest that UDP has.
const SLOT: usize = 65_536;

/// Room for a batch, kept from call to call.
pub struct ReceiveBatch {
    bytes: Vec<u8>,
    addresses: Vec<Address>,
    controls: Vec<Control>,
    received: Vec<Received>,
}

/// A datagram, or a train of datagrams from one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Bytes in all.
    pub length: usize,
    /// Bytes of each datagram but the last.
    pub segment: usize,
    /// The outer TOS or traffic class.
    pub tos: u8,
}

#[derive(Debug, Clone, Copy)]
struct Received {
    slot: usize,
    datagram: Datagram,
}

impl ReceiveBatch {
    /// Room for `slots` datagrams or trains.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            bytes: vec![0; slots * SLOT],
            addresses: vec![Address::empty(); slots],
            controls: vec![Control::EMPTY; slots],
            received: Vec::with_capacity(slots),
        }
    }

    /// Whether there was no room for more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.received.len() == self.addresses.len()
    }

    /// The datagrams with their bytes, in the order in which they came.
    pub fn datagrams(&self) -> impl Iterator<Item = (Datagram, &[u8])> {
        self.received.iter().map(|received| {
            let at = received.slot * SLOT;
            (received.datagram, &self.bytes[at..at + received.datagram.length])
        })
    }

    /// The same, to be written to.
    pub fn datagrams_mut(&mut self) -> impl Iterator<Item = (Datagram, &mut [u8])> {
        let bytes = self.bytes.chunks_exact_mut(SLOT).enumerate();
        let mut received = self.received.iter().peekable();
        bytes.filter_map(move |(slot, bytes)| {
            let datagram = received.next_if(|received| received.slot == slot)?.datagram;
            Some((datagram, &mut bytes[..datagram.length]))
        })
    }

    /// Receives what waits, without waiting: how many datagrams or trains, and how many the kernel has dropped for want of room
    /// since the socket was made, if it says so.
    ///
    /// # Errors
    /// The kernel's.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<(usize, Option<u32>)> {
        self.received.clear();
        let slots = self.addresses.len();
        let mut parts: Vec<libc::iovec> = Vec::with_capacity(slots);
        let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(slots);
        let buffers = self.bytes.chunks_exact_mut(SLOT);
        for ((bytes, address), control) in buffers.zip(&mut self.addresses).zip(&mut self.controls) {
            parts.push(libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            });
            let mut message = empty_message();
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = size_of::<Address>() as libc::socklen_t;
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = control.0.len() as _;
            messages.push(message);
        }
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let (pointer, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
        let flags = libc::MSG_DONTWAIT as _;
        // SAFETY: every pointer in `messages` is to memory of `self` or `parts`, long enough as stated beside it, and lives until
        // the call returns.
        let got = unsafe { libc::recvmmsg(socket.as_raw_fd(), pointer, count, flags, std::ptr::null_mut()) };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok((0, None)),
                _ => Err(error),
            };
        }
        let mut lost = None;
        for (slot, message) in messages.iter().take(got as usize).enumerate() {
            self.note(slot, message, &mut lost);
        }
        Ok((got as usize, lost))
    }

    fn note(&mut self, slot: usize, message: &libc::mmsghdr, lost: &mut Option<u32>) {
        let length = (message.msg_len as usize).min(SLOT);
        let Some(from) = self.addresses[slot].get() else {
            return;
        };
        let mut datagram = Datagram {
            from,
            length,
            segment: length,
            tos: 0,
        };
        read_control(&message.msg_hdr, &mut datagram, lost);
        if datagram.segment == 0 {
            datagram.segment = length.max(1);
        }
        self.received.push(Received { slot, datagram });
    }
}

fn read_control(header: &libc::msghdr, datagram: &mut Datagram, lost: &mut Option<u32>) {
    // SAFETY: the kernel filled `header`, whose control buffer is still there; CMSG_NXTHDR stays inside msg_controllen.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so a whole cmsghdr inside the buffer.
        let (level, kind, data) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, libc::CMSG_DATA(next)) };
        // SAFETY: the kernel wrote as many bytes as each kind has: an int for UDP_GRO, SO_RXQ_OVFL and IPV6_TCLASS, a byte for IP_TOS.
        // They need not be aligned.
        unsafe {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    datagram.segment = data.cast::<libc::c_int>().read_unaligned().max(0) as usize;
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => *lost = Some(data.cast::<u32>().read_unaligned()),
                (libc::SOL_IP, libc::IP_TOS) => datagram.tos = data.read(),
                (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
                    datagram.tos = data.cast::<libc::c_int>().read_unaligned() as u8;
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}
