//! From the wire: what the node decides about any bytes of a peer's, beside a slow router that reads them one byte after the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_tun::counters::DropReason;
use flannel_tun::forward::inbound;

use super::build::{Choices, Plan};
use super::outbound::table;
use super::slow;

/// Any bytes, or a right packet with other addresses, fragment bits and faults, below an outer header with any TOS.
pub fn check(data: &[u8]) {
    let mut choices = Choices(data);
    let outer = choices.byte();
    let packet = if choices.one_in(4) {
        choices.0.to_vec()
    } else {
        strange(&mut choices)
    };
    let expected = decide(&packet, outer);
    let mut found = packet.clone();
    let table = table();
    let sender = table.sender("192.0.2.2:8285".parse().unwrap()).unwrap();
    match (inbound(&mut found, sender, outer, &table), expected) {
        (Ok(header), Ok(expected)) => {
            assert_eq!(header.total, expected.len(), "{packet:02x?}");
            assert_eq!(
                &found[..header.total],
                expected,
                "{packet:02x?} below {outer:02x}"
            );
        }
        (Err(reason), Err(expected)) => assert_eq!(reason, expected, "{packet:02x?} below {outer:02x}"),
        (found, expected) => panic!("{found:?} for {expected:?}: {packet:02x?} below {outer:02x}"),
    }
}

fn strange(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut plan = Plan::new(choices);
    plan.payload.truncate(80);
    let mut packet = plan.packet();
    for _ in 0..choices.below(4) {
        // Mostly in the header, where decisions are made.
        let at = choices.below(packet.len().min(48));
        packet[at] = choices.byte();
    }
    match choices.byte() % 8 {
        1 => packet.truncate(choices.below(packet.len() + 1)),
        2 => packet.extend([0; 5]),
        _ => {}
    }
    packet
}

/// The packet as it goes on, or why it does not.
fn decide(packet: &[u8], outer: u8) -> Result<Vec<u8>, DropReason> {
    let version = packet.first().ok_or(DropReason::Malformed)? / 16;
    let (length, source, destination) = match version {
        4 => v4(packet),
        6 => v6(packet),
        _ => None,
    }
    .ok_or(DropReason::Malformed)?;
    let of_peer = |address: IpAddr| inside(address, [10, 5, 2], 2);
    let ours = |address: IpAddr| inside(address, [10, 5, 1], 1);
    if !of_peer(source) {
        return Err(DropReason::SourceNotOfSender);
    }
    if !ours(destination) {
        return Err(DropReason::DestinationNotOurs);
    }
    let mut packet = packet[..length].to_vec();
    if outer % 4 == 3 {
        let inner = if version == 4 {
            packet[1] % 4
        } else {
            packet[1] / 16 % 4
        };
        if inner == 0 {
            return Err(DropReason::CongestionNotEct);
        }
        mark(&mut packet, version);
    }
    Ok(packet)
}

fn v4(packet: &[u8]) -> Option<(usize, IpAddr, IpAddr)> {
    if packet.len() < 20 {
        return None;
    }
    let header = usize::from(packet[0] % 16) * 4;
    let total = usize::from(packet[2]) * 256 + usize::from(packet[3]);
    let right = header >= 20 && header <= total && total <= packet.len();
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    right.then(|| (total, address(12).into(), address(16).into()))
}

fn v6(packet: &[u8]) -> Option<(usize, IpAddr, IpAddr)> {
    if packet.len() < 40 {
        return None;
    }
    let total = 40 + usize::from(packet[4]) * 256 + usize::from(packet[5]);
    let address = |at: usize| {
        let octets: [u8; 16] = packet[at..at + 16].try_into().unwrap();
        IpAddr::from(Ipv6Addr::from(octets))
    };
    (total <= packet.len()).then(|| (total, address(8), address(24)))
}

fn inside(address: IpAddr, v4: [u8; 3], node: u16) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == v4,
        IpAddr::V6(address) => address.segments()[..4] == [0xfd00, 5, 0, node],
    }
}

/// Sets both ECN bits. The checksum of the header moves with them, right or wrong as it was (RFC 1624).
fn mark(packet: &mut [u8], version: u8) {
    if version == 6 {
        packet[1] |= 0x30;
        return;
    }
    let before = [packet[0], packet[1]];
    packet[1] |= 3;
    let new = [packet[0], packet[1]];
    let complement = |bytes: [u8; 2]| [!bytes[0], !bytes[1]];
    let old_sum = complement([packet[10], packet[11]]);
    // HC' = ~(~HC + ~m + m'), the third equation of RFC 1624.
    let sum = slow::checksum(&[&old_sum, &complement(before), &new]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
