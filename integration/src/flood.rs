//! Right packets of a peer, as many as one processor sends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Packets of a call.
const BURST: usize = 64;

/// Sends inner UDP packets from `source` to `target` in datagrams from `local` to `address`, and prints how many. No two packets in a row are of
/// one flow, so that the receiver has all the work that a packet can be.
///
/// # Errors
/// When an argument is none, or the socket cannot be had.
pub fn flood(local: &str, address: &str, source: &str, target: &str, milliseconds: &str) -> Result<()> {
    let socket = UdpSocket::bind(local).context("bad local address")?;
    socket.connect(address.parse::<SocketAddr>().context("bad address")?)?;
    let (source, target): (Ipv4Addr, Ipv4Addr) = (source.parse()?, target.parse()?);
    let time = Duration::from_millis(milliseconds.parse().context("bad time")?);
    let mut packets: Vec<Vec<u8>> = (0..BURST).map(|n| packet(source, target, n as u16)).collect();
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        sent += send(&socket, &mut packets).unwrap_or(0);
    }
    println!("{sent}");
    Ok(())
}

fn packet(source: Ipv4Addr, target: Ipv4Addr, number: u16) -> Vec<u8> {
    // 20 bytes of IP, 8 of UDP without a checksum, 36 of payload; no listener at port 9.
    let mut packet = vec![0x45, 0, 0, 64, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(target.octets());
    let words = packet
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend((20_000 + number).to_be_bytes());
    packet.extend([0, 9, 0, 44, 0, 0]);
    packet.resize(64, b'f');
    packet
}

fn send(socket: &UdpSocket, packets: &mut [Vec<u8>]) -> io::Result<u64> {
    let mut parts: Vec<libc::iovec> = packets
        .iter_mut()
        .map(|packet| libc::iovec {
            iov_base: packet.as_mut_ptr().cast(),
            iov_len: packet.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: every field is a number or a pointer, for which zero bytes are valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = messages.len() as libc::c_uint;
    // SAFETY: the messages point to the parts and these to the packets, all of which live until the call returns; the kernel reads them.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    u64::try_from(sent).map_err(|_| io::Error::last_os_error())
}
