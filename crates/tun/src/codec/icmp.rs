//! Errors that a router owes the sender of a packet (RFC 792, RFC 1812 §4.3, RFC 4443).

use std::net::IpAddr;

use super::checksum::Sum;
use super::header::{Header, IPV4_HEADER, IPV6_HEADER, protocol};

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// No peer has the destination.
    NoRoute,
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// The packet is too long for the path and must not be fragmented; the longest that goes, in bytes of an inner packet.
    TooBig {
        /// Longest inner packet.
        mtu: u16,
    },
}

/// An error to IPv4 has 576 bytes at the most (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// An error to IPv6 fits the smallest MTU (RFC 4443 §2.4 c).
const LONGEST_V6: usize = 1280;
const ICMP_HEADER: usize = 8;
/// Initial TTL of what the node says itself.
const TTL: u8 = 64;

/// Builds the error for `packet`, from `from`, into `out`; false if none may be sent (RFC 1122 §3.2.2, RFC 4443 §2.4 e): about
/// another error, a later fragment, a group or an address that is no single host's.
pub fn build(problem: Problem, packet: &[u8], header: &Header, from: IpAddr, out: &mut Vec<u8>) -> bool {
    out.clear();
    if !may_answer(packet, header) {
        return false;
    }
    match (from, header.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (kind, code, rest) = match problem {
                Problem::NoRoute => (3, 0, 0),
                Problem::TimeExceeded => (11, 0, 0),
                Problem::TooBig { mtu } => (3, 4, u32::from(mtu)),
            };
            let quoted = quote(packet, header, LONGEST_V4 - IPV4_HEADER - ICMP_HEADER);
            let total = (IPV4_HEADER + ICMP_HEADER + quoted.len()) as u16;
            out.extend_from_slice(&[0x45, 0xc0]);
            out.extend_from_slice(&total.to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 0, TTL, protocol::ICMP, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            let sum = Sum::default().bytes(out).checksum();
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            message(out, Sum::default(), (kind, code, rest), quoted);
            true
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (kind, code, rest) = match problem {
                Problem::NoRoute => (1, 0, 0),
                Problem::TimeExceeded => (3, 0, 0),
                Problem::TooBig { mtu } => (2, 0, u32::from(mtu)),
            };
            let quoted = quote(packet, header, LONGEST_V6 - IPV6_HEADER - ICMP_HEADER);
            let length = (ICMP_HEADER + quoted.len()) as u16;
            out.extend_from_slice(&[0x60, 0, 0, 0]);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&[protocol::ICMPV6, TTL]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            let sum = Sum::default().pseudo(from.into(), to.into(), protocol::ICMPV6, length.into());
            message(out, sum, (kind, code, rest), quoted);
            true
        }
        _ => false,
    }
}

fn message(out: &mut Vec<u8>, sum: Sum, (kind, code, rest): (u8, u8, u32), quoted: &[u8]) {
    let at = out.len();
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&rest.to_be_bytes());
    out.extend_from_slice(quoted);
    let checksum = sum.bytes(&out[at..]).checksum();
    out[at + 2..at + 4].copy_from_slice(&checksum.to_be_bytes());
}

fn quote<'a>(packet: &'a [u8], header: &Header, most: usize) -> &'a [u8] {
    let packet = packet.get(..header.total).unwrap_or(packet);
    &packet[..packet.len().min(most)]
}

fn may_answer(packet: &[u8], header: &Header) -> bool {
    let bad_source = match header.source {
        IpAddr::V4(source) => {
            source.is_unspecified() || source.is_multicast() || source.is_broadcast() || source.is_loopback()
        }
        IpAddr::V6(source) => source.is_unspecified() || source.is_multicast() || source.is_loopback(),
    };
    let bad_destination = match header.destination {
        IpAddr::V4(destination) => destination.is_multicast() || destination.is_broadcast(),
        // Packet-too-big is owed to multicast too, but nobody sends that into the overlay.
        IpAddr::V6(destination) => destination.is_multicast(),
    };
    !(bad_source || bad_destination || header.later_fragment || is_error(packet, header))
}

/// Whether it is an ICMP error itself. A message whose type did not arrive is taken for one.
fn is_error(packet: &[u8], header: &Header) -> bool {
    let kind = packet
        .get(..header.total)
        .and_then(|packet| packet.get(header.length));
    match header.protocol {
        // Echo, router discovery, time stamps and address masks are no errors (RFC 1122 §3.2.2).
        protocol::ICMP if header.is_v4() => kind.is_none_or(|kind| !matches!(kind, 0 | 8..=10 | 13..=18)),
        // Errors have the high bit clear (RFC 4443 §2.1).
        protocol::ICMPV6 if !header.is_v4() => kind.is_none_or(|kind| *kind < 128),
        _ => false,
    }
}

/// How many errors may be sent: a bucket as the kernel's own (net.ipv4.icmp_msgs_per_sec 1000, icmp_msgs_burst 50).
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    tokens: u32,
    last_ms: u64,
}

impl Bucket {
    const A_SECOND: u64 = 1000;
    const BURST: u32 = 50;

    /// A full one.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            tokens: Self::BURST,
            last_ms: now_ms,
        }
    }

    /// Whether one more may be sent now.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let earned = now_ms.saturating_sub(self.last_ms) * Self::A_SECOND / 1000;
        if earned > 0 {
            self.last_ms = now_ms;
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(Self::BURST);
        }
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }
}
