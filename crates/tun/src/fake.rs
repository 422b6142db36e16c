//! A device without a kernel, and packets for it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::codec::checksum::Sum;
use crate::codec::coalesce::Takes;
use crate::codec::virtio::{self, VnetHeader};
use crate::device::Tun;
use crate::memory::Memory;
use crate::offloads::Offloads;
use crate::socket::Socket;
use crate::table::{Net, Own, PeerSpec, Table};

/// What it hands over, and what was written to it.
#[derive(Debug)]
pub struct FakeTun {
    pub waiting: Mutex<VecDeque<(VnetHeader, Vec<u8>)>>,
    pub written: Mutex<Vec<Vec<u8>>>,
    descriptor: File,
}

impl FakeTun {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            written: Mutex::default(),
            descriptor: File::open("/dev/null").unwrap(),
        })
    }
}

impl AsFd for FakeTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Tun for FakeTun {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some((vnet, packet)) = self.waiting.lock().unwrap().pop_front() else {
            return Ok(None);
        };
        buffer[..virtio::LENGTH].copy_from_slice(&vnet.bytes());
        buffer[virtio::LENGTH..virtio::LENGTH + packet.len()].copy_from_slice(&packet);
        Ok(Some(packet.len()))
    }

    fn send(&self, _: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.written.lock().unwrap().push(bytes);
        Ok(())
    }

    fn takes(&self) -> Takes {
        Takes { tcp: true, udp: true }
    }
}

/// Both ends of a forwarder: what it reads and writes, the peer that it talks to, and the memory that outlives it.
pub struct Scene {
    pub memory: Memory,
    pub tun: Arc<FakeTun>,
    pub socket: Arc<Socket>,
    pub peer: UdpSocket,
    pub table: Table,
}

pub fn scene() -> Scene {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let local = "127.0.0.1:0".parse().unwrap();
    let socket = Socket::bind(local, 1, Offloads::ALL).unwrap().remove(0);
    peer.connect(socket.local()).unwrap();
    Scene {
        memory: Memory::new(1).unwrap(),
        tun: FakeTun::new(),
        socket: Arc::new(socket),
        table: table(&[peer.local_addr().unwrap()]),
        peer,
    }
}

/// A UDP packet with right checksums; `number` is its id and payload.
pub fn packet(from: [u8; 4], to: [u8; 4], ttl: u8, number: u16) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let mut packet = vec![0x45, 0, 0, 30, high, low, 0, 0, ttl, 17, 0, 0];
    packet.extend(from.into_iter().chain(to));
    packet.extend([0x9c, 0x40, 0, 80, 0, 10, 0, 0, high, low]);
    let sum = Sum::default().bytes(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let sum = pseudo(&packet).bytes(&packet[20..]).checksum();
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The sum over the pseudo header of such a packet.
pub fn pseudo(packet: &[u8]) -> Sum {
    let address = |at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]].into();
    Sum::default().pseudo(address(12), address(16), 17, packet.len() as u32 - 20)
}

/// A node with 10.5.1.0/24, whose peers have 10.5.2.0/24 and so on, one each.
pub fn table(peers: &[std::net::SocketAddr]) -> Table {
    let net = |third: u8| Net::new([10, 5, third, 0].into(), 24);
    let spec = |(third, endpoint): (u8, &std::net::SocketAddr)| PeerSpec {
        endpoint: *endpoint,
        subnets: vec![net(third)],
        any_port: false,
        ecn: false,
    };
    let own = Own {
        subnets: vec![net(1)],
        v4: Some([10, 5, 1, 0].into()),
        v6: None,
    };
    let specs: Vec<PeerSpec> = (2..).zip(peers).map(spec).collect();
    Table::new(own, &specs, &Table::default())
}
