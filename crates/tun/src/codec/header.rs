//! The IP header of an inner packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum;

/// Protocol numbers (IANA) that this crate looks into.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// Shortest IPv4 header.
pub const IPV4_HEADER: usize = 20;
/// The IPv6 header.
pub const IPV6_HEADER: usize = 40;

/// Why bytes are no packet that can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not even a header.
    #[error("shorter than an IP header")]
    Short,
    /// Neither IPv4 nor IPv6.
    #[error("IP version is neither 4 nor 6")]
    Version,
    /// IHL below 5 or beyond the packet.
    #[error("IP header length lies")]
    HeaderLength,
    /// The total length is below the header's or beyond the bytes that arrived.
    #[error("IP length lies")]
    Length,
    /// The header checksum is wrong.
    #[error("IPv4 header checksum is wrong")]
    Checksum,
    /// What the kernel says of a super-packet does not fit the packet.
    #[error("segmentation data does not fit the packet")]
    Segmentation,
}

/// What forwarding needs to know of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Bytes of the IP header, options of IPv4 included; 40 for IPv6.
    pub length: usize,
    /// Bytes of the packet as its header says. More may have arrived: Ethernet pads, and nobody forwards padding.
    pub total: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// What follows the header; for IPv6 the first next header.
    pub protocol: u8,
    /// The packet must not be fragmented: DF, and every IPv6 packet.
    pub dont_fragment: bool,
    /// A fragment, the first one included.
    pub fragment: bool,
    /// A fragment behind the first: no transport header.
    pub later_fragment: bool,
}

impl Header {
    /// Reads the header and checks every length against the bytes that are there.
    ///
    /// # Errors
    /// What makes it unusable.
    // In line, because copying it at once behind its single fields costs the processor more than reading them (store forwarding).
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().map(|first| first >> 4) {
            None => Err(Malformed::Short),
            Some(4) => parse_v4(packet),
            Some(6) => parse_v6(packet),
            Some(_) => Err(Malformed::Version),
        }
    }

    /// Whether it is IPv4.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Bytes behind the IP header.
    #[must_use]
    pub fn rest(&self) -> usize {
        self.total - self.length
    }
}

#[inline]
fn parse_v4(packet: &[u8]) -> Result<Header, Malformed> {
    let fixed: &[u8; IPV4_HEADER] = packet.first_chunk().ok_or(Malformed::Short)?;
    let length = usize::from(fixed[0] & 0x0f) * 4;
    if length < IPV4_HEADER || length > packet.len() {
        return Err(Malformed::HeaderLength);
    }
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if total < length || total > packet.len() {
        return Err(Malformed::Length);
    }
    let fragment = u16::from_be_bytes([fixed[6], fixed[7]]);
    let (offset, more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
    Ok(Header {
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        length,
        total,
        ttl: fixed[8],
        tos: fixed[1],
        protocol: fixed[9],
        dont_fragment: fragment & 0x4000 != 0,
        fragment: offset != 0 || more,
        later_fragment: offset != 0,
    })
}

/// The next header that says that a fragment header follows (RFC 8200 §4.5).
const FRAGMENT_HEADER: u8 = 44;

fn parse_v6(packet: &[u8]) -> Result<Header, Malformed> {
    let fixed: &[u8; IPV6_HEADER] = packet.first_chunk().ok_or(Malformed::Short)?;
    let total = IPV6_HEADER + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if total > packet.len() {
        return Err(Malformed::Length);
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&fixed[at..at + 16]);
        IpAddr::from(Ipv6Addr::from(octets))
    };
    let protocol = fixed[6];
    let fragment = protocol == FRAGMENT_HEADER;
    let offset = packet[..total]
        .get(42..44)
        .map_or(0, |word| u16::from_be_bytes([word[0], word[1]]) >> 3);
    Ok(Header {
        source: address(8),
        destination: address(24),
        length: IPV6_HEADER,
        total,
        ttl: fixed[7],
        tos: (fixed[0] << 4) | (fixed[1] >> 4),
        protocol,
        dont_fragment: true,
        fragment,
        later_fragment: fragment && offset != 0,
    })
}

/// Whether an IPv4 header's own checksum is right; true for IPv6, which has none.
#[must_use]
pub fn checksum_holds(packet: &[u8], header: &Header) -> bool {
    let sum = checksum::Sum::default();
    !header.is_v4() || sum.bytes(&packet[..header.length]).checksum() == 0
}

/// Takes one from TTL or hop limit. `packet` was parsed as `header`, whose `ttl` is above 0.
pub fn decrement_ttl(packet: &mut [u8], header: &mut Header) {
    header.ttl = header.ttl.saturating_sub(1);
    if header.is_v4() {
        let old = u16::from_be_bytes([packet[8], packet[9]]);
        packet[8] = header.ttl;
        let new = u16::from_be_bytes([packet[8], packet[9]]);
        let sum = checksum::update(u16::from_be_bytes([packet[10], packet[11]]), old, new);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[7] = header.ttl;
    }
}

/// Marks a packet as having met congestion (RFC 6040 §4.2); false if its transport does not know ECN, and it must be dropped then.
pub fn mark_congestion(packet: &mut [u8], header: &mut Header) -> bool {
    if header.tos & 3 == 0 {
        return false;
    }
    header.tos |= 3;
    if header.is_v4() {
        let old = u16::from_be_bytes([packet[0], packet[1]]);
        packet[1] = header.tos;
        let new = u16::from_be_bytes([packet[0], packet[1]]);
        let sum = checksum::update(u16::from_be_bytes([packet[10], packet[11]]), old, new);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[1] = (packet[1] & 0x0f) | (header.tos << 4);
    }
    true
}
