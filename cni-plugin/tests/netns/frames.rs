//! Ethernet frames by hand, and sockets that send and see them as they are.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::lab::Space;

pub type Mac = [u8; 6];
pub const BROADCAST: Mac = [0xff; 6];

/// A packet socket on `eth0` of a space.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn new(space: &Space) -> Self {
        space.inside(Self::open)
    }

    fn open() -> Self {
        let protocol = u16::to_be(u16::try_from(libc::ETH_P_ALL).unwrap());
        // SAFETY: no memory is passed.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol.into(),
            )
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the name ends with a zero and lives through the call.
        let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
        assert!(index > 0, "{}", io::Error::last_os_error());
        // SAFETY: all bytes zero are a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(index).unwrap();
        let length = u32::try_from(size_of_val(&address)).unwrap();
        // SAFETY: pointer and length are those of one address.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(5)),
        )
        .unwrap();
        Self(socket)
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: pointer and length are those of the frame.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(
            sent,
            isize::try_from(frame.len()).unwrap(),
            "{}",
            io::Error::last_os_error()
        );
    }

    /// Everything that comes, up to and with `last`.
    pub fn until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        loop {
            let mut buffer = [0; 2048];
            let received = rustix::net::recv(&self.0, &mut buffer[..], rustix::net::RecvFlags::empty());
            assert!(received.is_ok(), "the last frame did not come: {received:?}");
            let (_, length) = received.unwrap();
            seen.push(buffer[..length].to_vec());
            if seen.last().unwrap() == last {
                return seen;
            }
        }
    }
}

fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.as_slice(), &from, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

pub fn other(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    ethernet(to, from, kind, &[7; 50])
}

/// `kind` 1 asks, 2 answers.
pub fn arp(from: Mac, kind: u8, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, kind];
    let body = [&sender.0[..], &sender.1.octets(), &[0; 6], &target.octets()].concat();
    ethernet(BROADCAST, from, 0x0806, &[&head[..], &body].concat())
}

pub fn udp4(to: Mac, from: Mac, source: Ipv4Addr, target: Ipv4Addr, port: u16, mark: u8) -> Vec<u8> {
    // As long as the shortest frame: what is behind the packet, a bridge cuts off.
    let mut ip = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(source.octets());
    ip.extend(target.octets());
    ip.extend(port.to_be_bytes());
    ip.extend([0x30, 0x39, 0, 26, 0, 0]);
    ip.extend([mark; 18]);
    rechecked(ethernet(to, from, 0x0800, &ip))
}

/// An ICMP message of `kind`, without what should follow.
pub fn icmp4(to: Mac, from: Mac, source: Ipv4Addr, target: Ipv4Addr, kind: u8) -> Vec<u8> {
    let mut frame = udp4(to, from, source, target, 0, 7);
    frame[14 + 9] = 1;
    frame[34] = kind;
    rechecked(frame)
}

/// Puts the right checksum into the IPv4 header.
pub fn rechecked(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = internet_sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// RFC 1071.
fn internet_sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// The same UDP packet, to another port.
pub fn to_port(mut frame: Vec<u8>, port: u16) -> Vec<u8> {
    let ip = if frame[12..14] == [0x86, 0xdd] { 40 } else { 20 };
    frame[14 + ip + 2..14 + ip + 4].copy_from_slice(&port.to_be_bytes());
    frame
}

/// A router advertisement that makes `source` a default router for half an hour (RFC 4861).
pub fn advertisement(from: Mac, source: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    // RFC 8200, 8.1: addresses, length and protocol count.
    let pseudo = [
        &source.octets()[..],
        &all.octets(),
        &[0, 0, 0, 16, 0, 0, 0, 58],
        &message,
    ]
    .concat();
    message[2..4].copy_from_slice(&internet_sum(&pseudo).to_be_bytes());
    ip6(from, source, 58, &message)
}

pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// An ICMPv6 message of `kind` with 4 bytes of flags and then a target; its checksum is nobody's business on the way.
pub fn icmp6(from: Mac, source: Ipv6Addr, kind: u8, target: Ipv6Addr) -> Vec<u8> {
    ip6(
        from,
        source,
        58,
        &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat(),
    )
}

pub fn udp6(from: Mac, source: Ipv6Addr, port: u16) -> Vec<u8> {
    let port = port.to_be_bytes();
    ip6(
        from,
        source,
        17,
        &[port[0], port[1], 2, 2, 0, 12, 0, 0, 9, 9, 9, 9],
    )
}

fn ip6(from: Mac, source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [0x60, 0, 0, 0, length[0], length[1], next, 255];
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let packet = [&head[..], &source.octets(), &all.octets(), payload].concat();
    ethernet([0x33, 0x33, 0, 0, 0, 1], from, 0x86dd, &packet)
}
