//! A forwarder for the udp backend by itself: `plain`, with the algorithm of flannel's proxy (one packet a system call, TTL taken
//! down on both sides, the first route that matches, no check of who sends), as the peer of tests and the rival of benchmarks;
//! `checking`, the same that also looks at every byte of what it receives; or `ours`, the data path of flannel-tun without the daemon.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};
use flannel_tun::device;
use flannel_tun::engine::{Engine, Layout};
use flannel_tun::offloads::Offloads;
use flannel_tun::socket::Socket;
use flannel_tun::table::{Net, Own, PeerSpec, Table};
use rustix::event::{PollFd, PollFlags, poll};

const USAGE: &str =
    "usage: udp-forwarder plain|checking|ours DEVICE LOCAL:PORT OWN-SUBNET SUBNET=ADDRESS:PORT…";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("udp-forwarder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [mode, device, local, own, peers @ ..] = arguments else {
        anyhow::bail!(USAGE)
    };
    let local: SocketAddr = local.parse().context("bad local address")?;
    let own = subnet(own)?;
    let routes = peers.iter().map(|peer| route(peer)).collect::<Result<Vec<_>>>()?;
    match mode.as_str() {
        "plain" => plain(device, local, &routes, None),
        "checking" => plain(device, local, &routes, Some(Checker::default())),
        "ours" => ours(device, local, own, &routes),
        _ => anyhow::bail!(USAGE),
    }
}

#[derive(Debug, Clone, Copy)]
struct Subnet {
    address: Ipv4Addr,
    length: u8,
}

#[derive(Debug, Clone, Copy)]
struct Route {
    subnet: Subnet,
    peer: SocketAddr,
}

fn subnet(text: &str) -> Result<Subnet> {
    let (address, length) = text.split_once('/').context("a subnet is ADDRESS/LENGTH")?;
    Ok(Subnet {
        address: address.parse().context("bad address of a subnet")?,
        length: length.parse().context("bad length of a subnet")?,
    })
}

fn route(text: &str) -> Result<Route> {
    let (of, peer) = text.split_once('=').context(USAGE)?;
    Ok(Route {
        subnet: subnet(of)?,
        peer: peer.parse().context("bad peer")?,
    })
}

fn ours(device: &str, local: SocketAddr, own: Subnet, routes: &[Route]) -> Result<()> {
    let queues = std::env::var("QUEUES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    let layout = if std::env::var_os("SEPARATE").is_some() {
        Layout::Separate
    } else {
        Layout::Shared
    };
    let offloads = match std::env::var("OFFLOADS") {
        Ok(text) => text.parse()?,
        Err(_) => Offloads::ALL,
    };
    let tuns = device::open(device, queues, offloads)?;
    let sockets = Socket::bind(local, tuns.len(), offloads)?;
    let net = |subnet: Subnet| Net::new(subnet.address.into(), subnet.length);
    let specs: Vec<PeerSpec> = routes
        .iter()
        .map(|route| PeerSpec {
            endpoint: route.peer,
            subnets: vec![net(route.subnet)],
            any_port: false,
            ecn: false,
        })
        .collect();
    let of_node = Own {
        subnets: vec![net(own)],
        v4: Some(own.address),
        v6: None,
    };
    let table = Table::new(of_node, &specs, &Table::default());
    let _engine = Engine::start(tuns, sockets, None, layout, table)?;
    println!("forwarding");
    loop {
        std::thread::park();
    }
}

fn plain(device: &str, local: SocketAddr, routes: &[Route], mut checker: Option<Checker>) -> Result<()> {
    let interface = tun_tap::Iface::without_packet_info(device, tun_tap::Mode::Tun)
        .context("cannot open the TUN device")?;
    // SAFETY: into_raw_fd gives the descriptor away, so nobody else closes it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(interface.into_raw_fd()) };
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    let mut tun = File::from(descriptor);
    let socket = UdpSocket::bind(local).context("cannot bind")?;
    socket.set_nonblocking(true)?;
    println!("forwarding");
    // flannel's receive buffer has the device's MTU; what is longer is cut off without a word.
    let mut buffer = [0; 65_536];
    let mut routes = routes.to_vec();
    loop {
        poll(
            &mut [
                PollFd::new(&tun, PollFlags::IN),
                PollFd::new(&socket, PollFlags::IN),
            ],
            None,
        )?;
        loop {
            let out = outward(&mut tun, &socket, &mut routes, &mut buffer)?;
            let inward = inward(&mut tun, &socket, &mut buffer, checker.as_mut())?;
            if !out && !inward {
                break;
            }
        }
    }
}

/// One packet from the device to a peer; false when none waits.
fn outward(tun: &mut File, socket: &UdpSocket, routes: &mut [Route], buffer: &mut [u8]) -> Result<bool> {
    let length = match tun.read(buffer) {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error).context("the TUN device cannot be read"),
    };
    let packet = &mut buffer[..length];
    if length < 20 {
        return Ok(true);
    }
    let destination = u32::from_be_bytes([packet[16], packet[17], packet[18], packet[19]]);
    let matching = |route: &Route| {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(route.subnet.length))
            .unwrap_or(0);
        destination & mask == u32::from(route.subnet.address) & mask
    };
    if let Some(found) = routes.iter().position(matching) {
        // flannel moves a hit to the front of its array.
        routes.swap(0, found);
        if take_one_from_ttl(packet) {
            // Sending is best effort, as there.
            socket.send_to(packet, routes[0].peer).ok();
        }
    }
    Ok(true)
}

/// One packet from a peer to the device; false when none waits.
fn inward(
    tun: &mut File,
    socket: &UdpSocket,
    buffer: &mut [u8],
    checker: Option<&mut Checker>,
) -> Result<bool> {
    let length = match socket.recv(buffer) {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error).context("the socket cannot be read"),
    };
    let packet = &mut buffer[..length];
    if let Some(checker) = checker {
        checker.look_at(packet);
    }
    if length >= 20 && take_one_from_ttl(packet) {
        // A packet goes whole or not at all.
        let _ = tun.write_all(packet);
    }
    Ok(true)
}

/// False when that was the last one. The header checksum is patched (RFC 1141).
fn take_one_from_ttl(packet: &mut [u8]) -> bool {
    packet[8] = packet[8].wrapping_sub(1);
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    packet[8] != 0
}

/// Looks whether what arrives is whole packets: one IPv4 packet a datagram, of at most the MTU, every checksum right.
#[derive(Debug, Default)]
struct Checker {
    right: u64,
}

/// flannel's receive buffer on an underlay of 1500 bytes.
const MTU: usize = 1472;

impl Checker {
    fn look_at(&mut self, packet: &[u8]) {
        match fault(packet) {
            None => {
                self.right += 1;
                if self.right.is_multiple_of(1000) {
                    println!("{} packets are right", self.right);
                }
            }
            Some(fault) => println!("wrong packet: {fault}: {:02x?}", &packet[..packet.len().min(60)]),
        }
    }
}

fn fault(packet: &[u8]) -> Option<&'static str> {
    if packet.len() < 20 || packet.len() > MTU {
        return Some("no length of a packet");
    }
    let header = usize::from(packet[0] & 15) * 4;
    if packet[0] >> 4 != 4 || header != 20 {
        return Some("not IPv4 without options");
    }
    if usize::from(u16::from_be_bytes([packet[2], packet[3]])) != packet.len() {
        return Some("total length");
    }
    if sum(&[&packet[..header]]) != 0xffff {
        return Some("header checksum");
    }
    let length = (packet.len() - header) as u16;
    let pseudo = [&packet[12..20], &[0, packet[9]], &length.to_be_bytes()].concat();
    let transport = &packet[header..];
    let right = match packet[9] {
        1 => sum(&[transport]) == 0xffff,
        6 => sum(&[&pseudo, transport]) == 0xffff,
        17 => {
            transport.len() >= 8
                && usize::from(u16::from_be_bytes([transport[4], transport[5]])) == transport.len()
                && (transport[6..8] == [0, 0] || sum(&[&pseudo, transport]) == 0xffff)
        }
        _ => true,
    };
    (!right).then_some("transport checksum or length")
}

/// The ones' complement sum of these parts, each of even length but the last.
fn sum(parts: &[&[u8]]) -> u32 {
    let mut sum = 0_u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum
}
