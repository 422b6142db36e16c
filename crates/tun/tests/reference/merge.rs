//! From the wire to the device: whatever is merged, cut again it is what came, byte for byte and in order.

use flannel_tun::codec::coalesce::{Coalescer, Group, Takes};
use flannel_tun::codec::header::Header;
use flannel_tun::codec::virtio::{Gso, VnetHeader};
use flannel_tun::forward::inbound;

use super::build::{Choices, Plan};
use super::outbound::table;
use super::slow;

/// What the kernel makes of a group: the packets that it cuts, or the one that it takes as it is.
pub fn delivered(group: &Group<'_>) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let vnet = group.finish(&mut bytes);
    if let Some(packet) = group.alone_packet() {
        assert_eq!(
            vnet,
            VnetHeader {
                verified: vnet.verified,
                ..VnetHeader::PLAIN
            }
        );
        return vec![packet.to_vec()];
    }
    for payload in group.payloads() {
        bytes.extend(*payload);
    }
    assert!(bytes.len() <= 65_535);
    let header = Header::parse(&bytes).unwrap();
    assert_eq!(header.total, bytes.len());
    let protocol = match vnet.gso {
        Gso::Udp => 17,
        Gso::TcpV4 | Gso::TcpV6 => 6,
        Gso::None => panic!("merged, and not to be cut"),
    };
    assert!(vnet.needs_checksum && header.protocol == protocol);
    let packets = slow::cut(&bytes, vnet.checksum_start.into(), protocol, vnet.segment.into());
    assert_eq!(packets.len(), group.count());
    packets
}

/// A few flows with packets that mostly follow each other, and faults now and then. Returns how many packets went in and how many
/// writes came out.
pub fn check(data: &[u8]) -> (usize, usize) {
    let mut choices = Choices(data);
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while !choices.is_empty() && packets.len() < 60 {
        let mut plan = Plan::new(&mut choices);
        for _ in 0..=choices.below(12) {
            let mut packet = plan.packet();
            damage(&mut packet, &mut choices);
            packets.push(packet);
            plan.sequence = plan.sequence.wrapping_add(plan.payload.len() as u32);
            plan.id = plan.id.wrapping_add(u16::from(!choices.one_in(16)));
            if choices.one_in(16) {
                plan.payload.truncate(plan.payload.len() / 2);
            }
            if choices.one_in(16) {
                plan.window += 1;
            }
        }
    }
    let takes = Takes { tcp: true, udp: true };
    let table = table();
    let sender = table.sender("192.0.2.2:8285".parse().unwrap()).unwrap();
    let headers: Vec<Option<Header>> = packets
        .iter_mut()
        .map(|packet| inbound(packet, sender, 0, &table).ok())
        .collect();
    let mut coalescer = Coalescer::new(takes, packets.len());
    let mut admitted = Vec::new();
    for (packet, header) in packets.iter().zip(&headers) {
        if let Some(header) = header {
            coalescer.push(packet, header);
            admitted.push(packet[..header.total].to_vec());
        }
    }
    let delivered: Vec<Vec<u8>> = coalescer.groups().iter().flat_map(delivered).collect();
    assert_eq!(delivered.len(), admitted.len());
    for flow in flows(&admitted) {
        let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            packets
                .iter()
                .filter(|packet| flow_of(packet) == flow)
                .map(|packet| without_free_id(packet))
                .collect()
        };
        assert_eq!(of_flow(&delivered), of_flow(&admitted), "flow {flow:?}");
    }
    (admitted.len(), coalescer.groups().len())
}

fn damage(packet: &mut Vec<u8>, choices: &mut Choices<'_>) {
    match choices.byte() {
        1 => {
            let at = choices.below(packet.len());
            packet[at] ^= choices.byte();
        }
        2 => packet.truncate(choices.below(packet.len())),
        3 => packet.extend([0; 7]),
        _ => {}
    }
}

/// Addresses, protocol and ports; a packet without ports is a flow with its like.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    let header = Header::parse(packet).unwrap();
    let ports = packet.get(header.length..header.length + 4).unwrap_or_default();
    let addresses = if header.is_v4() {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    [addresses, &[header.protocol], ports].concat()
}

fn flows(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut flows: Vec<Vec<u8>> = packets.iter().map(|packet| flow_of(packet)).collect();
    flows.sort();
    flows.dedup();
    flows
}

/// The id of a UDP packet with DF means nothing (RFC 6864 §4.1), and the header checksum with it.
fn without_free_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] == 0x45 && packet[9] == 17 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}
