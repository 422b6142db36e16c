//! Where packets from the device stay until they were sent. After a crash the next process finds here what was read and not sent.

use std::io;

use crate::codec::checksum::Sum;
use crate::codec::header::{Header, protocol};
use crate::codec::virtio::{self, Gso, VnetHeader};
use crate::device::Tun;
use crate::memory::Mapping;

/// Packets and super-packets that are read before anything is sent.
pub const COUNT: usize = 32;
/// Bytes that are read before anything is sent: more would only wait in our memory and leave the cache.
const BATCH_BYTES: usize = 256 << 10;
/// The packet begins at a line of the processor's cache, behind what the kernel says of it.
const PACKET: usize = 64;
const CLAIMS: usize = PACKET - virtio::LENGTH;
/// The TTL that the packet had when it was read; 0 before anything was written to the packet.
const TTL: usize = 0;
/// The longest that the device hands over is 65,535 bytes.
const LENGTH: usize = PACKET + 65_536;

/// Room for one batch.
#[derive(Debug)]
pub struct Slots {
    memory: Mapping,
    read: Vec<Read>,
    left_over: bool,
}

#[derive(Debug, Clone, Copy)]
struct Read {
    slot: usize,
    vnet: VnetHeader,
    length: usize,
}

impl Slots {
    /// Bytes of the memory.
    pub const LENGTH: usize = COUNT * LENGTH;

    /// Over memory that is new, or that an earlier process used.
    pub fn new(mut memory: Mapping) -> Self {
        let slots = memory.bytes_mut().chunks_exact_mut(LENGTH).enumerate();
        let read: Vec<Read> = slots.filter_map(|(slot, bytes)| restore(slot, bytes)).collect();
        let left_over = !read.is_empty();
        Self {
            memory,
            read,
            left_over,
        }
    }

    /// Reads a batch; the first one is what an earlier process had read and not sent. Whether there may be more.
    pub fn fill(&mut self, tun: &dyn Tun) -> io::Result<bool> {
        if std::mem::take(&mut self.left_over) {
            return Ok(true);
        }
        self.read.clear();
        let mut bytes = 0;
        for (slot, room) in self.memory.bytes_mut().chunks_exact_mut(LENGTH).enumerate() {
            // A packet begins with its version, never with 0.
            (room[TTL], room[PACKET]) = (0, 0);
            let Some(length) = tun.receive(&mut room[CLAIMS..])? else {
                return Ok(false);
            };
            // A kind of packet that was never asked for has no length here, and is counted as malformed.
            let (vnet, length) = claims(room).map_or((VnetHeader::PLAIN, 0), |vnet| (vnet, length));
            self.read.push(Read { slot, vnet, length });
            bytes += length;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(true)
    }

    /// Packets of the batch.
    pub fn len(&self) -> usize {
        self.read.len()
    }

    /// Bytes of the batch.
    pub fn bytes(&self) -> usize {
        self.read.iter().map(|read| read.length).sum()
    }

    /// What the kernel said of a packet, and its bytes.
    pub fn get(&self, index: usize) -> Option<(VnetHeader, &[u8])> {
        let read = self.read.get(index)?;
        let from = read.slot * LENGTH + PACKET;
        let packet = self.memory.bytes().get(from..from + read.length)?;
        Some((read.vnet, packet))
    }

    /// The same, to be written to.
    pub fn get_mut(&mut self, index: usize) -> Option<(VnetHeader, &mut [u8])> {
        let read = self.read.get(index)?;
        let room = self.memory.bytes_mut().get_mut(read.slot * LENGTH..)?;
        room[TTL] = room[PACKET + place_of_ttl(room[PACKET])];
        let packet = room.get_mut(PACKET..PACKET + read.length)?;
        Some((read.vnet, packet))
    }

    /// The batch was sent, or counted as dropped.
    pub fn done(&mut self) {
        for read in self.read.drain(..) {
            self.memory.bytes_mut()[read.slot * LENGTH + PACKET] = 0;
        }
    }
}

fn claims(room: &[u8]) -> Option<VnetHeader> {
    let bytes = room.get(CLAIMS..)?.first_chunk()?;
    VnetHeader::parse(bytes)
}

fn place_of_ttl(first: u8) -> usize {
    if first >> 4 == 4 { 8 } else { 7 }
}

/// A packet that a process read and was perhaps about to send when it ended: as it was read. It may travel a second time, as IP allows.
fn restore(slot: usize, room: &mut [u8]) -> Option<Read> {
    if room[PACKET] == 0 {
        return None;
    }
    let ttl = room[TTL];
    let vnet = claims(room).unwrap_or(VnetHeader::PLAIN);
    let packet = &mut room[PACKET..];
    let Ok(header) = Header::parse(packet) else {
        packet[0] = 0;
        return None;
    };
    if ttl != 0 {
        packet[place_of_ttl(packet[0])] = ttl;
        rewrite_checksums(&vnet, &header, packet);
    }
    Some(Read {
        slot,
        vnet,
        length: header.total,
    })
}

/// Makes what the kernel hands over of a packet whose TTL and checksum may have been written, or half written.
fn rewrite_checksums(vnet: &VnetHeader, header: &Header, packet: &mut [u8]) {
    if header.is_v4() {
        packet[10..12].fill(0);
        let sum = Sum::default().bytes(&packet[..header.length]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let (start, offset) = (
        usize::from(vnet.checksum_start),
        usize::from(vnet.checksum_offset),
    );
    let transport = match offset {
        16 => protocol::TCP,
        6 => protocol::UDP,
        2 => protocol::ICMPV6,
        _ => return,
    };
    let inside = start >= header.length && start + offset + 2 <= header.total;
    // One that is cut is not written to.
    if vnet.needs_checksum && vnet.gso == Gso::None && inside {
        let length = (header.total - start) as u32;
        let sum = Sum::default()
            .pseudo(header.source, header.destination, transport, length)
            .folded();
        packet[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
