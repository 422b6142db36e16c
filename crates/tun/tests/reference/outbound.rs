//! From the device to the wire: whatever the kernel says of a packet, what leaves is whole packets, the ones that the reference cuts.

use flannel_tun::codec::header::Header;
use flannel_tun::codec::icmp;
use flannel_tun::codec::split::Split;
use flannel_tun::codec::virtio::{self, Gso, VnetHeader};
use flannel_tun::forward::{Verdict, outbound};
use flannel_tun::table::{Net, Own, PeerSpec, Table};

use super::build::{Choices, Plan};
use super::slow;

/// A table as on a node with 10.5.1.0/24 whose peer 192.0.2.2 has 10.5.2.0/24, with their IPv6 twins.
pub fn table() -> Table {
    let net = |text: &str, length| Net::new(text.parse().unwrap(), length);
    let spec = PeerSpec {
        endpoint: "192.0.2.2:8285".parse().unwrap(),
        subnets: vec![net("10.5.2.0", 24), net("fd00:5:0:2::", 64)],
        any_port: false,
        ecn: true,
    };
    let own = Own {
        subnets: vec![net("10.5.1.0", 24), net("fd00:5:0:1::", 64)],
        v4: Some([10, 5, 1, 0].into()),
        v6: Some("fd00:5:0:1::".parse().unwrap()),
    };
    Table::new(own, &[spec], &Table::default())
}

/// The same as seen from the other node, for packets that go there.
pub fn table_there() -> Table {
    let net = |text: &str, length| Net::new(text.parse().unwrap(), length);
    let spec = PeerSpec {
        endpoint: "192.0.2.1:8285".parse().unwrap(),
        subnets: vec![net("10.5.1.0", 24), net("fd00:5:0:1::", 64)],
        any_port: false,
        ecn: true,
    };
    let own = Own {
        subnets: vec![net("10.5.2.0", 24), net("fd00:5:0:2::", 64)],
        v4: Some([10, 5, 2, 0].into()),
        v6: None,
    };
    Table::new(own, &[spec], &Table::default())
}

/// A right super-packet: compares every byte of what it is cut into.
pub fn check_right(data: &[u8]) {
    let mut choices = Choices(data);
    let plan = Plan::new(&mut choices);
    let segment = 1 + choices.below(1500);
    let mut packet = plan.packet();
    let start = if plan.v6 { 40 } else { 20 };
    let gso = match (plan.tcp, plan.v6) {
        (true, false) => Gso::TcpV4,
        (true, true) => Gso::TcpV6,
        (false, _) => Gso::Udp,
    };
    let vnet = VnetHeader {
        needs_checksum: true,
        gso,
        ecn: plan.flags & 0x80 != 0,
        segment: segment as u16,
        checksum_start: start as u16,
        checksum_offset: if plan.tcp { 16 } else { 6 },
        ..VnetHeader::PLAIN
    };
    let mut expected = packet.clone();
    let verdict = outbound(&mut packet, &vnet, &table_there());
    let Verdict::Send { tos, header, .. } = verdict else {
        assert!(plan.ttl <= 1, "{plan:?}: {verdict:?}");
        return;
    };
    assert!(plan.ttl > 1 && tos == plan.tos);
    let place = if plan.v6 { 7 } else { 8 };
    expected[place] -= 1;
    let protocol = if plan.tcp { 6 } else { 17 };
    let expected = slow::cut(&expected, start, protocol, segment);
    let split = Split::new(&vnet, &packet, &header).unwrap();
    assert_eq!(split.count(), expected.len());
    for (index, expected) in expected.iter().enumerate() {
        let mut found = Vec::new();
        let payload = split.packet(index, &mut found);
        found.extend(payload);
        assert!(found.len() <= split.longest());
        assert_eq!(&found, expected, "packet {index} of {plan:?}");
    }
}

/// Any bytes, any claims: nothing panics, nothing grows beyond what came in by more than its headers, and errors are whole packets.
pub fn check_any(data: &[u8]) {
    let Some((claims, bytes)) = data.split_first_chunk::<{ virtio::LENGTH }>() else {
        return;
    };
    let Some(vnet) = VnetHeader::parse(claims) else {
        return;
    };
    let mut packet = bytes.to_vec();
    match outbound(&mut packet, &vnet, &table()) {
        Verdict::Send { header, .. } => {
            assert!(header.total <= packet.len());
            assert_eq!(Header::parse(&packet).unwrap(), header);
            if let Ok(split) = Split::new(&vnet, &packet, &header) {
                let mut payloads = 0;
                for index in 0..split.count() {
                    let mut found = Vec::new();
                    payloads += split.packet(index, &mut found).len();
                    assert!(found.len() <= 256);
                }
                assert!(payloads < header.total);
            }
        }
        Verdict::Answer { problem, header, .. } => {
            let mut out = Vec::new();
            let from = if header.is_v4() {
                table().own().v4.unwrap().into()
            } else {
                table().own().v6.unwrap().into()
            };
            if icmp::build(problem, &packet, &header, from, &mut out) {
                assert!(slow::is_whole(&out) && out.len() <= 1280);
                assert_eq!(Header::parse(&out).unwrap().destination, header.source);
            }
        }
        Verdict::Malformed(_) => {}
    }
}
