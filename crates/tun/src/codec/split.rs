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
        let (transport, protocol) = match (vnet.gso, header.is_v4()) {
            (Gso::TcpV4, true) | (Gso::TcpV6, false) => (Transport::Tcp, protocol::TCP),
            (Gso::Udp, _) => (Transport::Udp, protocol::UDP),
            (Gso::TcpV4 | Gso::TcpV6 | Gso::None, _) => return Err(Malformed::Segmentation),
        };
        // Extension headers of IPv6 stand between; in IPv4 nothing does.
        let direct = start == header.length && header.protocol == protocol;
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
        Ok(Self {
            header: *header,
            headers,
            payload,
            transport,
            start,
            segment: vnet.segment.into(),
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
        let place = match self.transport {
            Transport::Tcp => {
                write_tcp(transport, offset, index == 0, index + 1 == self.count());
                16
            }
            Transport::Udp => {
                let length = (transport.len() + payload.len()) as u16;
                transport[4..6].copy_from_slice(&length.to_be_bytes());
                6
            }
        };
        self.write_checksum(transport, place, payload);
        payload
    }

    fn write_ip(&self, headers: &mut [u8], index: usize, payload: usize) {
        let total = headers.len() + payload;
        if self.header.is_v4() {
            headers[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            let id = u16::from_be_bytes([headers[4], headers[5]]).wrapping_add(index as u16);
            headers[4..6].copy_from_slice(&id.to_be_bytes());
            headers[10..12].fill(0);
            let sum = Sum::default().bytes(&headers[..self.header.length]).checksum();
            headers[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let length = total - self.header.length;
            headers[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        }
    }

    fn write_checksum(&self, transport: &mut [u8], place: usize, payload: &[u8]) {
        transport[place..place + 2].fill(0);
        let (protocol, none) = match self.transport {
            Transport::Tcp => (protocol::TCP, 0),
            // Zero would say that there is no checksum (RFC 768).
            Transport::Udp => (protocol::UDP, 0xffff),
        };
        let length = (transport.len() + payload.len()) as u32;
        let sum = Sum::default()
            .pseudo(self.header.source, self.header.destination, protocol, length)
            .bytes(transport)
            .bytes(payload);
        let checksum = match sum.checksum() {
            0 => none,
            sum => sum,
        };
        transport[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn write_tcp(tcp: &mut [u8], offset: usize, first: bool, last: bool) {
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(offset as u32);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    if !last {
        tcp[13] &= !FIN_PSH;
    }
    if !first {
        tcp[13] &= !CWR;
    }
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
