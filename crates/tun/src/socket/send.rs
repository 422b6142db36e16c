//! Many datagrams and trains in one call.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Socket;
use super::message::{Address, Control, empty_message};

/// A socket whose buffer is full is waited for that long; then packets are dropped, as a router's queue would.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

/// A datagram, or a train of datagrams of one length but the last.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// To whom.
    pub to: SocketAddr,
    /// The outer TOS or traffic class.
    pub tos: u8,
    /// Bytes of each datagram but the last.
    pub segment: usize,
    /// Datagrams in it.
    pub count: usize,
    /// All bytes, in pieces; no piece is part of two datagrams.
    pub parts: &'a [IoSlice<'a>],
}

/// Sends everything that can be sent; `failed` hears of each datagram or train that could not, and why.
pub fn send_all(
    socket: &Socket,
    outgoing: &[Outgoing<'_>],
    failed: &mut dyn FnMut(&Outgoing<'_>, &io::Error),
) {
    let mut rest = outgoing;
    let mut waited = false;
    while let Some(first) = rest.first() {
        let trains = socket.has_trains();
        if first.count > 1 && !trains {
            one_by_one(socket, first, failed);
            rest = &rest[1..];
            continue;
        }
        let together = rest.iter().take_while(|next| trains || next.count == 1).count();
        match send_some(socket, &rest[..together]) {
            Ok(sent) => {
                rest = &rest[sent..];
                waited = false;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if would_fill(&error) && !waited => {
                waited = true;
                poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&PATIENCE)).ok();
            }
            // A train is refused when a packet of it exceeds the path's MTU (EMSGSIZE, before 6.2 EINVAL), or for good when the
            // device cannot checksum (EIO); alone each packet can still be fragmented.
            Err(error) if first.count > 1 && !would_fill(&error) => {
                if error.raw_os_error() == Some(libc::EIO) {
                    socket.without_trains();
                }
                one_by_one(socket, first, failed);
                rest = &rest[1..];
            }
            Err(error) => {
                failed(first, &error);
                rest = &rest[1..];
            }
        }
    }
}

fn would_fill(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn one_by_one(socket: &Socket, train: &Outgoing<'_>, failed: &mut dyn FnMut(&Outgoing<'_>, &io::Error)) {
    let mut rest = train.parts;
    while !rest.is_empty() {
        let mut length = 0;
        let parts = rest
            .iter()
            .take_while(|part| {
                length += part.len();
                length <= train.segment
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at(parts);
        let single = Outgoing {
            count: 1,
            parts: now,
            ..*train
        };
        if let Err(error) = send_some(socket, &[single]) {
            failed(&single, &error);
        }
        rest = later;
    }
}

/// One sendmmsg: how many went, at least one.
fn send_some(socket: &Socket, outgoing: &[Outgoing<'_>]) -> io::Result<usize> {
    let mut addresses: Vec<(Address, libc::socklen_t)> =
        outgoing.iter().map(|next| Address::of(next.to)).collect();
    let mut controls = vec![Control::EMPTY; outgoing.len()];
    let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(outgoing.len());
    for ((next, (address, length)), control) in outgoing.iter().zip(&mut addresses).zip(&mut controls) {
        let mut message = empty_message();
        message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        message.msg_hdr.msg_namelen = *length;
        message.msg_hdr.msg_iov = next.parts.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_iovlen = next.parts.len() as _;
        write_control(next, control, &mut message.msg_hdr);
        messages.push(message);
    }
    let (pointer, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
    // SAFETY: every pointer in `messages` is to memory that lives until the call returns: the addresses and controls above, and the
    // parts, which IoSlice guarantees to be laid out as iovec. The kernel only reads them.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), pointer, count, libc::MSG_DONTWAIT as _) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

fn write_control(next: &Outgoing<'_>, control: &mut Control, header: &mut libc::msghdr) {
    let mut used = 0;
    if next.count > 1 {
        used = append(
            control,
            used,
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            &(next.segment as u16).to_ne_bytes(),
        );
    }
    if next.tos != 0 {
        let (level, kind) = if next.to.is_ipv4() {
            (libc::SOL_IP, libc::IP_TOS)
        } else {
            (libc::SOL_IPV6, libc::IPV6_TCLASS)
        };
        used = append(control, used, level, kind, &i32::from(next.tos).to_ne_bytes());
    }
    if used > 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = used as _;
    }
}

/// Appends a control message as cmsg(3) lays it out: length, level, type, data, each message aligned to the size of a long.
fn append(control: &mut Control, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
    let head = size_of::<libc::cmsghdr>();
    let length = head + data.len();
    let place = &mut control.0[at..];
    place[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
    place[head - 8..head - 4].copy_from_slice(&level.to_ne_bytes());
    place[head - 4..head].copy_from_slice(&kind.to_ne_bytes());
    place[head..length].copy_from_slice(data);
    at + length.next_multiple_of(size_of::<usize>())
}
