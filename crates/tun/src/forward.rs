//! What a router decides about one packet, in each direction. Pure.

use crate::codec::header::{self, Header, Malformed};
use crate::codec::icmp::Problem;
use crate::codec::split::complete_checksum;
use crate::codec::virtio::{Gso, VnetHeader};
use crate::counters::DropReason;
use crate::table::{PeerIndex, Table};

/// The ECN bits of TOS and traffic class (RFC 3168 §5).
const ECN: u8 = 0x03;
/// Congestion experienced.
const CE: u8 = 0x03;

/// Every link carries IPv6 packets of that length (RFC 8200 §5); where the path does not, the outer packet is fragmented (RFC 2473 §7.1).
const SMALLEST_V6: usize = 1280;

/// What becomes of a packet that the kernel handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to that peer. TTL is decremented; a packet that is not cut is complete.
    Send {
        /// The peer.
        peer: PeerIndex,
        /// The outer TOS or traffic class.
        tos: u8,
        /// The header as it is now.
        header: Header,
    },
    /// Its sender is told of a problem, if that is allowed.
    Answer {
        /// What is told.
        problem: Problem,
        /// The header.
        header: Header,
        /// How it is counted.
        reason: DropReason,
    },
    /// It is no packet.
    Malformed(Malformed),
}

/// Decides about a packet from the TUN device, and makes it ready: TTL, and its checksum unless it is cut later.
pub fn outbound(packet: &mut [u8], vnet: &VnetHeader, table: &Table) -> Verdict {
    let mut header = match Header::parse(packet) {
        Ok(header) => header,
        Err(malformed) => return Verdict::Malformed(malformed),
    };
    let answer = |problem, reason| Verdict::Answer {
        problem,
        header,
        reason,
    };
    let found = table.lookup(header.destination);
    let Some((peer, index)) = found.and_then(|index| Some((table.get(index)?, index))) else {
        return answer(Problem::NoRoute, DropReason::NoRoute);
    };
    if header.ttl <= 1 {
        return answer(Problem::TimeExceeded, DropReason::TtlExceeded);
    }
    let longest = if header.is_v4() {
        peer.longest()
    } else {
        peer.longest().max(SMALLEST_V6)
    };
    if header.dont_fragment && piece_length(packet, &header, vnet) > longest {
        let mtu = u16::try_from(longest).unwrap_or(u16::MAX);
        return answer(Problem::TooBig { mtu }, DropReason::TooBig);
    }
    if vnet.gso == Gso::None
        && vnet.needs_checksum
        && let Err(malformed) = complete_checksum(vnet, &header, &mut packet[..header.total])
    {
        return Verdict::Malformed(malformed);
    }
    header::decrement_ttl(packet, &mut header);
    // RFC 6040 §4.1: a peer that does not read the outer ECN bits gets Not-ECT, so that routers drop instead of marking in vain.
    let tos = if peer.ecn { header.tos } else { header.tos & !ECN };
    Verdict::Send {
        peer: index,
        tos,
        header,
    }
}

/// Bytes of the longest packet that this one becomes on the wire.
fn piece_length(packet: &[u8], header: &Header, vnet: &VnetHeader) -> usize {
    let transport = match vnet.gso {
        Gso::None => return header.total,
        Gso::Udp => 8,
        Gso::TcpV4 | Gso::TcpV6 => {
            let offset = packet.get(usize::from(vnet.checksum_start) + 12);
            offset.map_or(20, |byte| usize::from(byte >> 4) * 4)
        }
    };
    header
        .total
        .min(usize::from(vnet.checksum_start) + transport + usize::from(vnet.segment))
}

/// Decides about a packet from `sender`, and marks congestion that the underlay met (RFC 6040 §4.2).
///
/// # Errors
/// Why it is dropped.
#[inline]
pub fn inbound(
    packet: &mut [u8],
    sender: PeerIndex,
    outer_tos: u8,
    table: &Table,
) -> Result<Header, DropReason> {
    let Ok(mut header) = Header::parse(packet) else {
        return Err(DropReason::Malformed);
    };
    table.admit(sender, &header)?;
    let reads_ecn = table.get(sender).is_some_and(|peer| peer.ecn);
    if reads_ecn && outer_tos & ECN == CE && !header::mark_congestion(packet, &mut header) {
        return Err(DropReason::CongestionNotEct);
    }
    Ok(header)
}
