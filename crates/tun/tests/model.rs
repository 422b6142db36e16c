//! The packet code beside a slow reference, on random packets and random bytes.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod reference;

use flannel_tun::codec::coalesce::{Coalescer, Takes};
use flannel_tun::codec::header::Header;
use flannel_tun::codec::train::{Piece, couple};
use flannel_tun::table::{PeerIndex, Table};
use proptest::prelude::*;
use reference::build::{Choices, Plan};
use reference::{inbound, merge, outbound};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn super_packets_are_cut_as_the_reference_cuts(data in prop::collection::vec(any::<u8>(), 0..64)) {
        outbound::check_right(&data);
    }

    #[test]
    fn any_bytes_with_any_claims(data in prop::collection::vec(any::<u8>(), 0..200), v6 in any::<bool>()) {
        outbound::check_any(&data);
        let mut data = data;
        if let Some(first) = data.get_mut(10) {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        outbound::check_any(&data);
    }

    #[test]
    fn datagrams_are_judged_as_the_reference_judges(data in prop::collection::vec(any::<u8>(), 0..200)) {
        inbound::check(&data);
    }

    #[test]
    fn what_is_merged_and_cut_again_is_what_came(data in prop::collection::vec(any::<u8>(), 0..600)) {
        merge::check(&data);
    }
}

fn plan(tcp: bool) -> Plan {
    Plan {
        tcp,
        v6: false,
        ttl: 64,
        tos: 0,
        flags: 0x10,
        dont_fragment: true,
        options: 12,
        payload: vec![7; 1000],
        ..Plan::new(&mut Choices(&[]))
    }
}

/// Packets of the stream that `change` makes of a plain one; how many writes they become.
fn writes(tcp: bool, count: usize, change: impl Fn(usize, &mut Plan)) -> usize {
    let mut packets = Vec::new();
    let mut next = plan(tcp);
    for index in 0..count {
        let mut now = next.clone();
        change(index, &mut now);
        packets.push(now.packet());
        next.sequence = now.sequence.wrapping_add(now.payload.len() as u32);
        next.id = now.id.wrapping_add(1);
    }
    let mut coalescer = Coalescer::new(Takes { tcp: true, udp: true }, count);
    for packet in &packets {
        coalescer.push(packet, &Header::parse(packet).unwrap());
    }
    coalescer.groups().len()
}

#[test]
fn merged_where_the_kernels_gro_merges_and_nowhere_else() {
    assert_eq!(writes(true, 10, |_, _| {}), 1);
    assert_eq!(writes(false, 10, |_, _| {}), 1);
    let second = |index: usize| index == 1;
    // A PSH is the last of its super-packet.
    assert_eq!(
        writes(true, 4, |n, p| p.flags |= if second(n) { 8 } else { 0 }),
        2
    );
    assert_eq!(writes(true, 4, |n, p| p.flags |= if n == 3 { 8 } else { 0 }), 1);
    // SYN, RST and URG never.
    for flag in [0x02, 0x04, 0x20] {
        assert_eq!(
            writes(true, 3, |n, p| p.flags |= if second(n) { flag } else { 0 }),
            3
        );
    }
    // A shorter one is the last.
    assert_eq!(
        writes(true, 4, |n, p| p.payload.truncate(if second(n) {
            10
        } else {
            1000
        })),
        2
    );
    assert_eq!(
        writes(false, 4, |n, p| p.payload.truncate(if second(n) {
            10
        } else {
            1000
        })),
        2
    );
    // TTL, TOS, DF, options, window, sequence and id.
    assert_eq!(writes(true, 3, |n, p| p.ttl = if second(n) { 63 } else { 64 }), 3);
    assert_eq!(writes(true, 3, |n, p| p.tos = if second(n) { 3 } else { 2 }), 3);
    assert_eq!(writes(false, 3, |n, p| p.dont_fragment = !second(n)), 3);
    assert_eq!(
        writes(true, 3, |n, p| p.options = if second(n) { 8 } else { 12 }),
        3
    );
    assert_eq!(
        writes(true, 3, |n, p| p.sequence += if second(n) { 1 } else { 0 }),
        2
    );
    assert_eq!(writes(true, 3, |n, p| p.id += if second(n) { 1 } else { 0 }), 2);
    // CWR begins a super-packet.
    assert_eq!(
        writes(true, 3, |n, p| p.flags |= if second(n) { 0x80 } else { 0 }),
        2
    );
    // At most 64 datagrams, and 64 KiB.
    assert_eq!(writes(false, 100, |_, p| p.payload.truncate(100)), 2);
    assert_eq!(writes(true, 100, |_, _| {}), 2);
    // The longest that TCP sends in one piece is one piece again: 65,536 bytes less its room for headers (sk_gso_max_size).
    let full = |count| writes(true, count, |_, plan| plan.payload = vec![7; 1420]);
    assert_eq!([full(46), full(47)], [1, 2]);
}

#[test]
fn a_device_without_super_packets_gets_packets() {
    let packets: Vec<Vec<u8>> = (0..3)
        .map(|n| {
            Plan {
                sequence: n * 1000,
                ..plan(true)
            }
            .packet()
        })
        .collect();
    let mut coalescer = Coalescer::new(
        Takes {
            tcp: false,
            udp: false,
        },
        3,
    );
    for packet in &packets {
        coalescer.push(packet, &Header::parse(packet).unwrap());
    }
    let delivered: Vec<Vec<u8>> = coalescer.groups().iter().flat_map(merge::delivered).collect();
    assert_eq!(delivered, packets);
}

fn peers() -> (PeerIndex, PeerIndex) {
    let table = outbound::table();
    let first = table.sender("192.0.2.2:8285".parse().unwrap()).unwrap();
    let specs: Vec<_> = ["192.0.2.2:8285", "192.0.2.3:8285"]
        .iter()
        .map(|endpoint| flannel_tun::table::PeerSpec {
            endpoint: endpoint.parse().unwrap(),
            subnets: Vec::new(),
            any_port: false,
            ecn: false,
        })
        .collect();
    let table = Table::new(table.own().clone(), &specs, &Table::default());
    (first, table.sender("192.0.2.3:8285".parse().unwrap()).unwrap())
}

#[test]
fn trains_have_one_peer_one_length_and_an_order() {
    let (a, b) = peers();
    let bytes = [0_u8; 1400];
    let piece = |peer, length: usize, tos| Piece {
        peer,
        tos,
        headers: 0..0,
        body: &bytes[..length],
    };
    let mut pieces = vec![
        piece(a, 1400, 0),
        piece(b, 90, 0),
        piece(a, 1400, 0),
        piece(a, 200, 0),
        piece(a, 200, 0),
        piece(b, 90, 0),
        piece(b, 90, 4),
    ];
    let mut trains = Vec::new();
    couple(&mut pieces, &mut trains);
    let told: Vec<_> = trains
        .iter()
        .map(|t| (t.peer == a, t.segment, t.pieces.len(), t.tos))
        .collect();
    assert_eq!(
        told,
        [
            (true, 1400, 3, 0),
            (true, 200, 1, 0),
            (false, 90, 2, 0),
            (false, 90, 1, 4)
        ]
    );
    let mut many = vec![piece(a, 100, 0); 130];
    couple(&mut many, &mut trains);
    assert_eq!(
        trains.iter().map(|t| t.pieces.len()).collect::<Vec<_>>(),
        [64, 64, 2]
    );
    let mut long = vec![piece(a, 1400, 0); 60];
    couple(&mut long, &mut trains);
    assert_eq!(trains.iter().map(|t| t.bytes).max(), Some(46 * 1400));
}
