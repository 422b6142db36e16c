//! Packets back into super-packets, only where the kernel's own GRO would have merged (net/ipv4/af_inet.c inet_gro_receive,
//! net/ipv4/tcp_offload.c tcp_gro_receive, net/ipv4/udp_offload.c udp_gro_receive): one flow, headers equal but for what a cut
//! writes anew, consecutive sequence and id, one length but for the last, never behind a PSH. The order within a flow stays.

use super::checksum::Sum;
use super::header::{Header, checksum_holds, protocol};
use super::virtio::{Gso, VnetHeader};

/// Bytes of a super-packet at the most: with the headers of Ethernet and a VLAN it must stay below 65,536, or the first device cuts it again
/// (gso_max_size, net/core/dev.c gso_features_check). What TCP sends in one piece is shorter (MAX_TCP_HEADER), so all of it fits.
const LONGEST: usize = 65_535 - 14 - 4;
/// Packets of a super-packet of UDP at the most (UDP_MAX_SEGMENTS in include/linux/udp.h, before 6.9).
const MOST_DATAGRAMS: usize = 64;
/// Flows that are looked for; a power of two.
const FLOWS: usize = 64;
const NO_GROUP: u16 = u16::MAX;
/// Longest headers that are merged: IPv6 and TCP with all its options.
pub const LONGEST_HEADERS: usize = 100;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

/// What the device takes as super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takes {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

/// A packet, or several that became one.
#[derive(Debug)]
pub struct Group<'a> {
    first: &'a [u8],
    /// Payloads; empty while the packet is alone.
    payloads: Vec<&'a [u8]>,
    shape: Option<Shape>,
    total: usize,
    next_sequence: u32,
    last_id: u16,
    flags: u8,
    closed: bool,
}

/// What is known of a packet that could be merged. Its checksums were verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    header: Header,
    headers: usize,
    tcp: bool,
    sequence: u32,
    id: u16,
    flags: u8,
    slot: usize,
}

impl Shape {
    /// `None` for a packet that GRO leaves alone.
    fn of(packet: &[u8], header: &Header, takes: Takes) -> Option<Self> {
        let plain_ip = header.length == 20 || !header.is_v4();
        if header.fragment || !plain_ip || packet.len() != header.total {
            return None;
        }
        let transport = &packet[header.length..];
        let (tcp, length) = match header.protocol {
            protocol::TCP if takes.tcp && transport.len() > 20 => (true, usize::from(transport[12] >> 4) * 4),
            protocol::UDP if takes.udp && transport.len() > 8 => (false, 8),
            _ => return None,
        };
        if length >= transport.len() || tcp && length < 20 {
            return None;
        }
        if !tcp && usize::from(u16::from_be_bytes([transport[4], transport[5]])) != transport.len() {
            return None;
        }
        let flags = if tcp { transport[13] } else { 0 };
        let no_checksum = !tcp && transport[6..8] == [0, 0];
        if flags & (SYN | RST | URG) != 0 || no_checksum || !verified(packet, header, transport) {
            return None;
        }
        let ports = u32::from_be_bytes([transport[0], transport[1], transport[2], transport[3]]);
        Some(Self {
            header: *header,
            headers: header.length + length,
            tcp,
            sequence: u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]),
            id: if header.is_v4() {
                u16::from_be_bytes([packet[4], packet[5]])
            } else {
                0
            },
            flags,
            slot: slot(packet, header, ports),
        })
    }
}

fn verified(packet: &[u8], header: &Header, transport: &[u8]) -> bool {
    let sum = Sum::default().pseudo(
        header.source,
        header.destination,
        header.protocol,
        transport.len() as u32,
    );
    checksum_holds(packet, header) && sum.bytes(transport).checksum() == 0
}

/// Flows of one slot only close each other's groups.
fn slot(packet: &[u8], header: &Header, ports: u32) -> usize {
    let address =
        |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let (source, destination) = if header.is_v4() {
        (address(12), address(16))
    } else {
        (address(20), address(36))
    };
    let mixed = (ports ^ source.rotate_left(7) ^ destination.rotate_left(13)).wrapping_mul(0x9e37_79b1);
    (mixed >> 26) as usize % FLOWS
}

/// Merges the packets of one batch.
#[derive(Debug)]
pub struct Coalescer<'a> {
    takes: Takes,
    groups: Vec<Group<'a>>,
    open: [u16; FLOWS],
}

impl<'a> Coalescer<'a> {
    /// For a batch of about `packets`.
    #[must_use]
    pub fn new(takes: Takes, packets: usize) -> Self {
        Self {
            takes,
            groups: Vec::with_capacity(packets),
            open: [NO_GROUP; FLOWS],
        }
    }

    /// Takes a packet that was parsed as `header`.
    pub fn push(&mut self, packet: &'a [u8], header: &Header) {
        let packet = packet.get(..header.total).unwrap_or(packet);
        let Some(shape) = Shape::of(packet, header, self.takes) else {
            self.pass(packet, header);
            return;
        };
        let open = self.open[shape.slot];
        if let Some(group) = self.groups.get_mut(usize::from(open))
            && group.merge(packet, &shape)
        {
            return;
        }
        // A PSH or FIN ends what it belongs to.
        let closed = shape.flags & (PSH | FIN) != 0;
        self.open[shape.slot] = u16::try_from(self.groups.len()).unwrap_or(NO_GROUP);
        self.groups.push(Group::alone(packet, Some(shape), closed));
    }

    /// A packet that is not merged itself, but must not be overtaken by what comes later in its flow.
    fn pass(&mut self, packet: &'a [u8], header: &Header) {
        let ports = packet.get(header.length..header.length + 4);
        match (ports, header.later_fragment) {
            (Some(&[a, b, c, d]), false) => {
                self.open[slot(packet, header, u32::from_be_bytes([a, b, c, d]))] = NO_GROUP;
            }
            _ => self.open.fill(NO_GROUP),
        }
        self.groups.push(Group::alone(packet, None, true));
    }

    /// What came of the batch, in order.
    #[must_use]
    pub fn groups(&self) -> &[Group<'a>] {
        &self.groups
    }
}

impl<'a> Group<'a> {
    fn alone(packet: &'a [u8], shape: Option<Shape>, closed: bool) -> Self {
        let payload = shape.map_or(0, |shape| packet.len() - shape.headers);
        Self {
            first: packet,
            payloads: Vec::new(),
            shape,
            total: packet.len(),
            next_sequence: shape.map_or(0, |shape| shape.sequence.wrapping_add(payload as u32)),
            last_id: shape.map_or(0, |shape| shape.id),
            flags: shape.map_or(0, |shape| shape.flags),
            closed,
        }
    }

    /// Payload bytes of each packet but the last.
    fn segment(&self, shape: &Shape) -> usize {
        self.first.len() - shape.headers
    }

    fn merge(&mut self, packet: &'a [u8], new: &Shape) -> bool {
        let Some(first) = self.shape else { return false };
        let payload = &packet[new.headers..];
        let segment = self.segment(&first);
        let count = self.payloads.len().max(1);
        let fits = !self.closed
            && payload.len() <= segment
            && self.total + payload.len() <= LONGEST
            && (first.tcp || count < MOST_DATAGRAMS)
            && same_flow(self.first, packet, &first, new)
            && self.follows(new);
        if !fits {
            // Nothing may join behind a packet that could not.
            self.closed = true;
            return false;
        }
        if self.payloads.is_empty() {
            // As many as may still come, so that the list does not grow step by step.
            let most = LONGEST / segment.max(1) + 1;
            self.payloads.reserve_exact(most.min(MOST_DATAGRAMS));
            self.payloads.push(&self.first[first.headers..]);
        }
        self.payloads.push(payload);
        self.total += payload.len();
        self.next_sequence = self.next_sequence.wrapping_add(payload.len() as u32);
        self.last_id = new.id;
        self.flags |= new.flags & (PSH | FIN);
        self.closed = payload.len() < segment || new.flags & (PSH | FIN) != 0;
        true
    }

    fn follows(&self, new: &Shape) -> bool {
        let next_id = new.id == self.last_id.wrapping_add(1);
        if new.tcp {
            new.sequence == self.next_sequence && (next_id || !new.header.is_v4())
        } else {
            // Without DF the id means something; with it any id will do (RFC 6864 §4.1).
            next_id || !new.header.is_v4() || new.header.dont_fragment && new.id == self.last_id
        }
    }

    /// Number of packets in it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payloads.len().max(1)
    }

    /// Writes the headers of the super-packet into `headers` and says what the kernel is to be told. A packet that stayed alone
    /// has no headers of its own here: it goes as it came.
    pub fn finish(&self, headers: &mut Vec<u8>) -> VnetHeader {
        headers.clear();
        let Some(shape) = self.shape else {
            return VnetHeader::PLAIN;
        };
        if self.payloads.is_empty() {
            return VnetHeader {
                verified: true,
                ..VnetHeader::PLAIN
            };
        }
        headers.extend_from_slice(&self.first[..shape.headers]);
        write_ip(headers, self.total, shape.header.length);
        let length = self.total - shape.header.length;
        let (gso, place) = match (shape.tcp, shape.header.is_v4()) {
            (true, true) => (Gso::TcpV4, 16),
            (true, false) => (Gso::TcpV6, 16),
            (false, _) => (Gso::Udp, 6),
        };
        let transport = &mut headers[shape.header.length..];
        if shape.tcp {
            transport[13] |= self.flags;
        } else {
            transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        }
        let Header {
            source,
            destination,
            protocol,
            ..
        } = shape.header;
        let sum = Sum::default()
            .pseudo(source, destination, protocol, length as u32)
            .folded();
        transport[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        VnetHeader {
            needs_checksum: true,
            verified: false,
            gso,
            ecn: shape.tcp && shape.flags & CWR != 0,
            header_length: shape.headers as u16,
            segment: self.segment(&shape) as u16,
            checksum_start: shape.header.length as u16,
            checksum_offset: place as u16,
        }
    }

    /// The packet as it came, if it stayed alone.
    #[must_use]
    pub fn alone_packet(&self) -> Option<&'a [u8]> {
        self.payloads.is_empty().then_some(self.first)
    }

    /// The payloads behind the headers of [`Group::finish`].
    #[must_use]
    pub fn payloads(&self) -> &[&'a [u8]] {
        &self.payloads
    }
}

fn write_ip(headers: &mut [u8], total: usize, length: usize) {
    if length == 20 {
        headers[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        headers[10..12].fill(0);
        let sum = Sum::default().bytes(&headers[..length]).checksum();
        headers[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        headers[4..6].copy_from_slice(&((total - length) as u16).to_be_bytes());
    }
}

/// Whether all that a cut would copy into each packet is equal.
fn same_flow(first: &[u8], packet: &[u8], a: &Shape, b: &Shape) -> bool {
    if a.headers != b.headers || a.header.length != b.header.length || a.tcp != b.tcp {
        return false;
    }
    // The version says what the length was; total length, id and header checksum of IPv4 and payload length of IPv6 are rewritten.
    let ip = if a.header.is_v4() {
        first[..2] == packet[..2] && first[6..10] == packet[6..10] && first[12..20] == packet[12..20]
    } else {
        first[..4] == packet[..4] && first[6..40] == packet[6..40]
    };
    let at = a.header.length;
    let (x, y) = (&first[at..a.headers], &packet[at..b.headers]);
    let transport = if a.tcp {
        // Ports, acknowledgement, window, urgent pointer and options; of the flags PSH and FIN may come with the last packet.
        // CWR belongs to a first packet only.
        x[..4] == y[..4]
            && x[8..13] == y[8..13]
            && (x[13] ^ y[13]) & !(CWR | FIN | PSH) == 0
            && y[13] & CWR == 0
            && x[14..16] == y[14..16]
            && x[18..] == y[18..]
    } else {
        x[..4] == y[..4]
    };
    ip && transport
}
