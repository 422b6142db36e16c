//! Super-packets from the kernel into the packets that travel: each whole, with its own lengths, id and checksums.

use super::checksum::Sum;
use super::header::{Header, Malformed, protocol};
use super::virtio::{Gso, VnetHeader};

/// Longest headers of a packet that is cut: the largest IPv4 and TCP ones are 60 bytes each, IPv6 may have extension headers.
pub const LONGEST_HEADERS: usize = 256;

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn protocol(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
        }
    }
}

/// A super-packet whose lengths were checked.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a> {
    header: Header,
    headers: &'a [u8],
    payload: &'a [u8],
    transport: Transport,
    /// Where the transport header begins.
    start: usize,
    segment: usize,
    /// What is the same in every packet's IPv4 header checksum, and in that of its transport.
    of_ip: Sum,
    of_transport: Sum,
}

impl<'a> Split<'a> {
    /// Takes what the kernel says of the packet for what it is: a claim.
    ///
    /// # Errors
    /// [`Malformed::Segmentation`] when it does not fit the packet.
    pub fn new(vnet: &VnetHeader, packet: &'a [u8], header: &Header) -> Result<Self, Malformed> {
        let packet = packet.get(..header.total).ok_or(Malformed::Length)?;
        let start = if vnet.needs_checksum {
            vnet.checksum_start.into()
        } else {
            header.length
        };
        let transport = match (vnet.gso, header.is_v4()) {
            (Gso::TcpV4, true) | (Gso::TcpV6, false) => Transport::Tcp,
            (Gso::Udp, _) => Transport::Udp,
            (Gso::TcpV4 | Gso::TcpV6 | Gso::None, _) => return Err(Malformed::Segmentation),
        };
        // Extension headers of IPv6 stand between; in IPv4 nothing does.
        let direct = start == header.length && header.protocol == transport.protocol();
        let extended = !header.is_v4() && start > header.length;
        let of_transport = match (transport, packet.get(start..)) {
            (Transport::Tcp, Some(rest)) if rest.len() >= TCP_HEADER => usize::from(rest[12] >> 4) * 4,
            (Transport::Udp, Some(rest)) if rest.len() >= UDP_HEADER => UDP_HEADER,
            _ => return Err(Malformed::Segmentation),
        };
        let headers = start + of_transport;
        let lies = of_transport < UDP_HEADER
            || transport == Transport::Tcp && of_transport < TCP_HEADER
            || headers > packet.len().min(LONGEST_HEADERS)
            || vnet.segment == 0
            || header.fragment
            || !(direct || extended);
        if lies {
            return Err(Malformed::Segmentation);
        }
        let (headers, payload) = packet.split_at(headers);
        let (of_ip, of_transport) = common(header, headers, start, transport);
        Ok(Self {
            header: *header,
            headers,
            payload,
            transport,
            start,
            segment: vnet.segment.into(),
            of_ip,
            of_transport,
        })
    }

    /// Number of packets it becomes, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.segment).max(1)
    }

    /// Bytes of the longest packet it becomes.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.headers.len() + self.segment.min(self.payload.len())
    }

    /// Appends the headers of packet `index` to `out`, and gives its payload.
    pub fn packet(&self, index: usize, out: &mut Vec<u8>) -> &'a [u8] {
        let offset = index * self.segment;
        let payload = self.payload.get(offset..).unwrap_or_default();
        let payload = &payload[..payload.len().min(self.segment)];
        let at = out.len();
        out.extend_from_slice(self.headers);
        let headers = &mut out[at..];
        self.write_ip(headers, index, payload.len());
        let transport = &mut headers[self.start..];
        let length = (transport.len() + payload.len()) as u16;
        // What was just written is not read again: the processor would wait until it is in its cache.
        let sum = self.of_transport.word(length).bytes(payload);
        match self.transport {
            Transport::Tcp => {
                let (sequence, flags) = self.sequence_and_flags(index, offset);
                let sum = sum
                    .word((sequence >> 16) as u16)
                    .word(sequence as u16)
                    .word(u16::from_be_bytes([self.headers[self.start + 12], flags]));
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                transport[13] = flags;
                transport[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
            }
            Transport::Udp => {
                transport[4..6].copy_from_slice(&length.to_be_bytes());
                // Zero would say that there is no checksum (RFC 768).
                let checksum = match sum.word(length).checksum() {
                    0 => 0xffff,
                    sum => sum,
                };
                transport[6..8].copy_from_slice(&checksum.to_be_bytes());
            }
        }
        payload
    }

    fn write_ip(&self, headers: &mut [u8], index: usize, payload: usize) {
        let total = headers.len() + payload;
        if self.header.is_v4() {
            let total = total as u16;
            let id = u16::from_be_bytes([self.headers[4], self.headers[5]]).wrapping_add(index as u16);
            let sum = self.of_ip.word(total).word(id).checksum();
            headers[2..4].copy_from_slice(&total.to_be_bytes());
            headers[4..6].copy_from_slice(&id.to_be_bytes());
            headers[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let length = total - self.header.length;
            headers[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        }
    }

    fn sequence_and_flags(&self, index: usize, offset: usize) -> (u32, u8) {
        let tcp = &self.headers[self.start..];
        let first = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let not_last = if index + 1 == self.count() { 0 } else { FIN_PSH };
        let not_first = if index == 0 { 0 } else { CWR };
        (
            first.wrapping_add(offset as u32),
            tcp[13] & !(not_last | not_first),
        )
    }
}

/// The sum of what all packets have in common of an IPv4 header (all but length, id and checksum), and of pseudo header and transport header
/// (all but lengths and checksum, and of TCP the sequence number and the flags).
fn common(header: &Header, headers: &[u8], start: usize, transport: Transport) -> (Sum, Sum) {
    let (ip, of_transport) = headers.split_at(start);
    let of_ip = if header.is_v4() {
        Sum::default().bytes(&ip[..2]).bytes(&ip[6..10]).bytes(&ip[12..])
    } else {
        Sum::default()
    };
    let (ports, protocol) = (Sum::default().bytes(&of_transport[..4]), transport.protocol());
    let pseudo = ports.pseudo(header.source, header.destination, protocol, 0);
    let of_transport = match transport {
        Transport::Tcp => pseudo
            .bytes(&of_transport[8..12])
            .bytes(&of_transport[14..16])
            .bytes(&of_transport[18..]),
        Transport::Udp => pseudo,
    };
    (of_ip, of_transport)
}

/// Completes the checksum of a packet that is not cut. Who has a packet socket chooses where it is, so the IP header is out of bounds.
///
/// # Errors
/// [`Malformed::Segmentation`] when the place that the kernel names is not inside the packet's payload.
pub fn complete_checksum(vnet: &VnetHeader, header: &Header, packet: &mut [u8]) -> Result<(), Malformed> {
    let (start, offset) = (
        usize::from(vnet.checksum_start),
        usize::from(vnet.checksum_offset),
    );
    if start < header.length {
        return Err(Malformed::Segmentation);
    }
    let part = packet.get_mut(start..).ok_or(Malformed::Segmentation)?;
    if part.len() < offset + 2 {
        return Err(Malformed::Segmentation);
    }
    // Offset 6 is UDP's, whose checksum 0 would say that there is none (RFC 768).
    let checksum = match Sum::default().bytes(part).checksum() {
        0 if offset == 6 => 0xffff,
        sum => sum,
    };
    part[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}
