//! The reference itself. It shares no code with what it checks.

/// The checksum of RFC 1071 over these parts as if they stood behind each other.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum = 0_u32;
    for index in (0..bytes.len()).step_by(2) {
        let low = if index + 1 < bytes.len() {
            bytes[index + 1]
        } else {
            0
        };
        sum += u32::from(bytes[index]) * 256 + u32::from(low);
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    (0xffff - sum) as u16
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) * 256 + usize::from(bytes[at + 1])
}

fn set_word(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at] = (value / 256 % 256) as u8;
    bytes[at + 1] = (value % 256) as u8;
}

/// The pseudo header of the packet with this IP header, for a transport part of that length.
fn pseudo(ip: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    if ip[0] >> 4 == 4 {
        [&ip[12..20], &[0, protocol], &length[2..]].concat()
    } else {
        [&ip[8..40], &length, &[0, 0, 0, protocol]].concat()
    }
}

/// The transport checksum that a packet should have; its checksum field is taken for 0.
pub fn transport_checksum(ip: &[u8], protocol: u8, transport: &[u8]) -> u16 {
    let mut transport = transport.to_vec();
    let place = if protocol == 6 { 16 } else { 6 };
    set_word(&mut transport, place, 0);
    let sum = checksum(&[&pseudo(ip, protocol, transport.len()), &transport]);
    if sum == 0 && protocol == 17 { 0xffff } else { sum }
}

/// What the kernel would make of a super-packet: `start` is where its transport header begins, `segment` the payload of a packet.
/// The lengths were made up by whoever built the packet, and are right.
pub fn cut(packet: &[u8], start: usize, protocol: u8, segment: usize) -> Vec<Vec<u8>> {
    let transport = if protocol == 6 {
        usize::from(packet[start + 12] / 16) * 4
    } else {
        8
    };
    let (headers, payload) = packet.split_at(start + transport);
    let pieces: Vec<&[u8]> = if payload.is_empty() {
        vec![payload]
    } else {
        payload.chunks(segment).collect()
    };
    let mut packets = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let mut packet = headers.to_vec();
        packet.extend(*piece);
        let total = packet.len();
        if packet[0] >> 4 == 4 {
            set_word(&mut packet, 2, total);
            let id = (word(&packet, 4) + index) % 65_536;
            set_word(&mut packet, 4, id);
            set_word(&mut packet, 10, 0);
            let length = usize::from(packet[0] % 16) * 4;
            let sum = checksum(&[&packet[..length]]);
            set_word(&mut packet, 10, sum.into());
        } else {
            set_word(&mut packet, 4, total - 40);
        }
        if protocol == 6 {
            let old = u32::from_be_bytes([
                packet[start + 4],
                packet[start + 5],
                packet[start + 6],
                packet[start + 7],
            ]);
            let sequence = old.wrapping_add((index * segment) as u32);
            packet[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 < pieces.len() {
                packet[start + 13] &= 0b1111_0110;
            }
            if index > 0 {
                packet[start + 13] &= 0b0111_1111;
            }
        } else {
            set_word(&mut packet, start + 4, total - start);
        }
        let sum = transport_checksum(&packet, protocol, &packet[start..]);
        set_word(
            &mut packet,
            start + if protocol == 6 { 16 } else { 6 },
            sum.into(),
        );
        packets.push(packet);
    }
    packets
}

/// Whether a complete packet is whole: lengths, header checksum and transport checksum.
pub fn is_whole(packet: &[u8]) -> bool {
    if packet.is_empty() {
        return false;
    }
    let (start, protocol, length) = if packet[0] >> 4 == 4 {
        let start = usize::from(packet[0] % 16) * 4;
        if checksum(&[&packet[..start]]) != 0 {
            return false;
        }
        (start, packet[9], word(packet, 2))
    } else {
        (40, packet[6], word(packet, 4) + 40)
    };
    let place = if protocol == 6 { 16 } else { 6 };
    length == packet.len()
        && (protocol != 6 && protocol != 17
            || word(packet, start + place)
                == usize::from(transport_checksum(packet, protocol, &packet[start..])))
}
