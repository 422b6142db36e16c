//! Many datagrams in one call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::Socket;
use super::message::{Address, Control};
use crate::memory::Mapping;

/// Room for one datagram or train: the longest that UDP has.
const SLOT: usize = 65_536;
/// Two super-packets of TCP and more, where no train comes: what ends with the batch is not merged with what comes next.
const SLOTS: usize = 128;
/// About as many bytes are received before they are passed on: they are read twice more, by us and by the kernel, and should still be in
/// the processor's cache then. Trains are up to 64 KiB long, so fewer of them are asked for.
const BATCH_BYTES: usize = 1 << 20;
/// So many are asked for even so: shares under overload are parts of a batch.
const FEWEST: usize = 16;
/// Where the first slot begins: behind the book, at a page.
const FIRST: usize = size_of::<Book>().next_multiple_of(4096);

/// What the kernel reads and writes of each slot. Everything in it may be zero.
#[repr(C)]
struct Book {
    messages: [libc::mmsghdr; SLOTS],
    parts: [libc::iovec; SLOTS],
    addresses: [Address; SLOTS],
    controls: [Control; SLOTS],
}

/// Room for a batch, kept from call to call. A slot is in use while the length of its message is above 0: after a crash the next process
/// finds here what was received and not passed on.
#[derive(Debug)]
pub struct ReceiveBatch {
    memory: Mapping,
    received: Vec<Received>,
    left_over: bool,
    /// How many are asked for next.
    wanted: usize,
    full: bool,
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
    /// Bytes of the memory.
    pub(crate) const LENGTH: usize = FIRST + SLOTS * SLOT;
    /// Datagrams or trains at the most.
    pub const SLOTS: usize = SLOTS;

    /// Over memory of [`Self::LENGTH`] bytes that is new, or that an earlier process used.
    #[must_use]
    pub(crate) fn new(memory: Mapping) -> Self {
        let mut batch = Self {
            memory,
            received: Vec::with_capacity(SLOTS),
            left_over: false,
            wanted: SLOTS,
            full: false,
        };
        batch.point_to_memory();
        batch.note_all(SLOTS);
        batch.received.retain(|received| received.datagram.length > 0);
        batch.left_over = !batch.received.is_empty();
        batch
    }

    fn book(&self) -> &Book {
        // SAFETY: the memory begins at a page and is longer than a Book, for which zero bytes and what the kernel writes are valid.
        unsafe { self.memory.start().cast().as_ref() }
    }

    fn book_mut(&mut self) -> &mut Book {
        // SAFETY: as above.
        unsafe { self.memory.start().cast().as_mut() }
    }

    fn slots(&self) -> &[u8] {
        &self.memory.bytes()[FIRST..]
    }

    /// The addresses in the book are those of this process.
    fn point_to_memory(&mut self) {
        let first = self.memory.bytes_mut()[FIRST..].as_mut_ptr();
        let book = self.book_mut();
        for slot in 0..SLOTS {
            let part = &mut book.parts[slot];
            part.iov_base = first.wrapping_add(slot * SLOT).cast();
            part.iov_len = SLOT;
            let header = &mut book.messages[slot].msg_hdr;
            header.msg_name = (&raw mut book.addresses[slot]).cast();
            header.msg_iov = part;
            header.msg_iovlen = 1;
            header.msg_control = book.controls[slot].0.as_mut_ptr().cast();
            // Read before the kernel writes it, after a restart.
            header.msg_controllen = header.msg_controllen.min(size_of::<Control>() as _);
        }
    }

    /// The datagrams with their bytes, in the order in which they came.
    pub fn datagrams(&self) -> impl Iterator<Item = (Datagram, &[u8])> {
        self.received.iter().map(|received| {
            let at = received.slot * SLOT;
            (
                received.datagram,
                &self.slots()[at..at + received.datagram.length],
            )
        })
    }

    /// The same, to be written to.
    pub fn datagrams_mut(&mut self) -> impl Iterator<Item = (Datagram, &mut [u8])> {
        let bytes = self.memory.bytes_mut()[FIRST..]
            .chunks_exact_mut(SLOT)
            .enumerate();
        let mut received = self.received.iter().peekable();
        bytes.filter_map(move |(slot, bytes)| {
            let datagram = received.next_if(|received| received.slot == slot)?.datagram;
            Some((datagram, &mut bytes[..datagram.length]))
        })
    }

    /// Receives what waits, without waiting: how many datagrams or trains, and how many the kernel has dropped for want of room
    /// since the socket was made, if it says so. The first batch is what an earlier process had received and not passed on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<(usize, Option<u32>)> {
        if std::mem::take(&mut self.left_over) {
            return Ok((self.received.len(), None));
        }
        self.received.clear();
        self.full = false;
        let wanted = self.wanted;
        let book = self.book_mut();
        for message in &mut book.messages[..wanted] {
            message.msg_len = 0;
            message.msg_hdr.msg_namelen = size_of::<Address>() as libc::socklen_t;
            message.msg_hdr.msg_controllen = size_of::<Control>() as _;
        }
        let (pointer, count) = (book.messages.as_mut_ptr(), wanted as libc::c_uint);
        let flags = libc::MSG_DONTWAIT as _;
        // SAFETY: every pointer in the messages is to memory of `self`, set by `point_to_memory` and as long as stated there and above.
        let got = unsafe { libc::recvmmsg(socket.as_raw_fd(), pointer, count, flags, std::ptr::null_mut()) };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok((0, None)),
                _ => Err(error),
            };
        }
        let lost = self.note_all(got as usize);
        self.want_as_before(got as usize);
        Ok((got as usize, lost))
    }

    /// Whether as many came as were asked for: more may wait.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// What came last says how long what comes next is.
    fn want_as_before(&mut self, got: usize) {
        self.full = got == self.wanted;
        if got > 0 {
            self.wanted = (BATCH_BYTES * got / self.bytes().max(1)).clamp(FEWEST, SLOTS);
        }
    }

    /// Bytes of the batch.
    pub fn bytes(&self) -> usize {
        self.received
            .iter()
            .map(|received| received.datagram.length)
            .sum()
    }

    /// The batch was passed on, or counted as dropped.
    pub fn done(&mut self) {
        for message in &mut self.book_mut().messages {
            message.msg_len = 0;
        }
    }

    /// Reads what the kernel wrote of the first `slots`; how many it says that it has dropped.
    fn note_all(&mut self, slots: usize) -> Option<u32> {
        let mut lost = None;
        let mut received = std::mem::take(&mut self.received);
        let book = self.book();
        let heads = book.messages.iter().zip(&book.addresses);
        for (slot, (message, address)) in heads.take(slots).enumerate() {
            received.extend(note(slot, message, address, &mut lost));
        }
        self.received = received;
        lost
    }
}

fn note(slot: usize, message: &libc::mmsghdr, address: &Address, lost: &mut Option<u32>) -> Option<Received> {
    let length = (message.msg_len as usize).min(SLOT);
    let mut datagram = Datagram {
        from: address.get()?,
        length,
        segment: length,
        tos: 0,
    };
    read_control(&message.msg_hdr, &mut datagram, lost);
    if datagram.segment == 0 {
        datagram.segment = length.max(1);
    }
    Some(Received { slot, datagram })
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::offloads::Offloads;

    /// Sends `count` datagrams of `length` bytes over the loopback device, whose queue is the socket's own.
    fn send(to: &Socket, count: usize, length: usize) {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..count {
            let datagram = vec![number as u8; length];
            assert_eq!(peer.send_to(&datagram, to.local()).unwrap(), length);
        }
    }

    /// The first bytes of the datagrams of the next batch.
    fn next(batch: &mut ReceiveBatch, socket: &Socket) -> Vec<u8> {
        batch.receive(socket).unwrap();
        let bytes = batch.datagrams().map(|(_, bytes)| bytes[0]).collect();
        batch.done();
        bytes
    }

    #[test]
    fn fewer_are_taken_at_once_when_they_are_long() {
        let local = "127.0.0.1:0".parse().unwrap();
        let socket = Socket::bind(local, 1, Offloads::NONE).unwrap().remove(0);
        let mut batch = ReceiveBatch::new(Mapping::anonymous(ReceiveBatch::LENGTH).unwrap());
        send(&socket, 40, 60_000);
        let all: Vec<u8> = (0..40).collect();
        assert_eq!(next(&mut batch, &socket), all);
        assert!(!batch.is_full());
        send(&socket, 40, 60_000);
        assert_eq!(next(&mut batch, &socket), all[..17]);
        assert!(batch.is_full());
        assert_eq!(next(&mut batch, &socket), all[17..34]);
        assert_eq!(next(&mut batch, &socket), all[34..]);
        assert!(!batch.is_full());
        assert_eq!(next(&mut batch, &socket), []);
        // Short ones again: no batch stays small for long.
        send(&socket, 200, 100);
        assert_eq!(next(&mut batch, &socket).len(), 17);
        assert_eq!(next(&mut batch, &socket).len(), SLOTS);
        assert_eq!(next(&mut batch, &socket).len(), 200 - 17 - SLOTS);
    }
}
