//! What the packets on the wire must be, byte for byte, given the packets and super-packets of the pod: computed from the headers alone
//! (RFC 791, 768, 9293), with nothing of the code that is tested.

use anyhow::{Context, Result, ensure};

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// One IPv4 packet without options, on the wire or at the pod.
#[derive(Debug, Clone, Copy)]
struct Packet<'a> {
    bytes: &'a [u8],
    /// Bytes of all headers.
    headers: usize,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

impl<'a> Packet<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        ensure!(bytes.len() >= 28 && bytes[0] == 0x45, "not IPv4: {bytes:02x?}");
        let headers = match bytes[9] {
            TCP => 20 + usize::from(bytes[32] >> 4) * 4,
            _ => 28,
        };
        ensure!(headers <= bytes.len(), "cut off: {bytes:02x?}");
        // Ethernet pads short frames.
        let total = usize::from(word(bytes, 2)).max(headers);
        let bytes = bytes.get(..total).context("shorter than it says")?;
        Ok(Self { bytes, headers })
    }

    fn payload(&self) -> &'a [u8] {
        &self.bytes[self.headers..]
    }

    fn sequence(&self) -> u32 {
        u32::from_be_bytes([self.bytes[24], self.bytes[25], self.bytes[26], self.bytes[27]])
    }

    /// What every segment of one super-packet has in common: addresses, protocol, TOS, DF, ports or ICMP type; acknowledgement, window and
    /// options of TCP.
    fn common(&self) -> Vec<u8> {
        let bytes = self.bytes;
        let mut common = [&bytes[..2], &bytes[6..8], &bytes[9..10], &bytes[12..24]].concat();
        if bytes[9] == TCP {
            common.extend([&bytes[28..33], &bytes[34..36], &bytes[38..self.headers]].concat());
        }
        common
    }

    /// Where the payload of `part` is in this one's.
    fn place_of(&self, part: &Packet<'_>) -> Option<usize> {
        if self.common() != part.common() {
            return None;
        }
        let (all, part_payload) = (self.payload(), part.payload());
        let at = match self.bytes[9] {
            TCP => part.sequence().wrapping_sub(self.sequence()) as usize,
            // The words of a train are numbered; other datagrams travel alone.
            UDP if all.len() > part_payload.len() => {
                (0..all.len()).find(|at| all[*at..].starts_with(part_payload))?
            }
            UDP => 0,
            // ICMP: checksum, id and number are in the header, and must be the same.
            _ if self.bytes[20..28] == part.bytes[20..28] => 0,
            _ => return None,
        };
        (all.get(at..)?.get(..part_payload.len())? == part_payload).then_some(at)
    }

    /// The segment at `at` of `length` bytes as it must look when the first one had `segment`.
    fn cut(&self, at: usize, length: usize, segment: usize, hops: i16) -> Vec<u8> {
        let (first, last) = (at == 0, at + length == self.payload().len());
        let index = at.checked_div(segment).unwrap_or(0) as u16;
        let mut packet = [&self.bytes[..self.headers], &self.payload()[at..at + length]].concat();
        let total = packet.len() as u16;
        set_word(&mut packet, 2, total);
        let id = word(&packet, 4).wrapping_add(index);
        set_word(&mut packet, 4, id);
        packet[8] = (i16::from(packet[8]) - hops) as u8;
        match packet[9] {
            TCP => {
                let sequence = self.sequence().wrapping_add(at as u32);
                packet[24..28].copy_from_slice(&sequence.to_be_bytes());
                packet[33] &= if last { 0xff } else { !FIN_PSH };
                packet[33] &= if first { 0xff } else { !CWR };
            }
            UDP => set_word(&mut packet, 24, total - 20),
            _ => {}
        }
        complete(&mut packet);
        packet
    }
}

/// Writes every checksum.
fn complete(packet: &mut [u8]) {
    set_word(packet, 10, 0);
    let header = sum(&[&packet[..20]]);
    set_word(packet, 10, header);
    let length = (packet.len() - 20) as u16;
    let (place, pseudo) = match packet[9] {
        TCP => (36, true),
        UDP => (26, true),
        _ => (22, false),
    };
    set_word(packet, place, 0);
    let pseudo = match pseudo {
        true => [&packet[12..20], &[0, packet[9]], &length.to_be_bytes()].concat(),
        false => Vec::new(),
    };
    let checksum = match sum(&[&pseudo, &packet[20..]]) {
        0 if packet[9] == UDP => 0xffff,
        checksum => checksum,
    };
    set_word(packet, place, checksum);
}

/// The checksum of RFC 1071 over parts of even length but the last.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// What was compared.
#[derive(Debug, Default, Clone, Copy)]
pub struct Compared {
    /// Packets on the wire.
    pub packets: usize,
    /// Of them those that are parts of a longer one at the pod.
    pub parts: usize,
}

/// Looks at every packet on the wire: one of the pod's packets (or a part of one) with `hops` taken from its TTL, every byte of it. A
/// negative number of hops is for what the pod received.
pub fn compare(of_pod: &[Vec<u8>], on_wire: &[Vec<u8>], hops: i16) -> Result<Compared> {
    let whole = of_pod
        .iter()
        .map(|bytes| Packet::new(bytes))
        .collect::<Result<Vec<_>>>()?;
    let mut compared = Compared::default();
    // Packets keep their order in a flow, so the search begins where the last one was found.
    let mut last = 0;
    for bytes in on_wire {
        let wire = Packet::new(bytes)?;
        ensure!(
            wire.bytes.len() == bytes.len(),
            "more bytes than the packet has: {bytes:02x?}"
        );
        let order = (last..whole.len()).chain(0..last);
        let (found, at) = order
            .filter_map(|index| Some((index, whole[index].place_of(&wire)?)))
            .find(|(index, at)| is_cut(&whole[*index], &wire, *at, hops))
            .with_context(|| {
                format!(
                    "no packet of the pod's becomes {:02x?}",
                    &bytes[..bytes.len().min(80)]
                )
            })?;
        last = found;
        compared.packets += 1;
        compared.parts += usize::from(wire.payload().len() < whole[found].payload().len());
        ensure!(
            at == 0 || wire.payload().len() <= at,
            "a longer packet behind a shorter one"
        );
    }
    Ok(compared)
}

fn is_cut(whole: &Packet<'_>, wire: &Packet<'_>, at: usize, hops: i16) -> bool {
    let length = wire.payload().len();
    // All but the last are equal, so the length of one that is not the last is that of the first; the last one's place is a multiple of it.
    let is_last = at + length == whole.payload().len();
    let segments: Vec<usize> = match (at, is_last) {
        (0, _) => vec![length.max(1)],
        (_, false) => vec![length],
        (_, true) => (length..=at)
            .filter(|segment| at.is_multiple_of(*segment))
            .collect(),
    };
    let fits = |segment: &usize| {
        let mut expected = whole.cut(at, length, *segment, hops);
        let free_id = expected[9] == UDP && expected[6] & 0x40 != 0;
        if free_id && expected[4..6] != wire.bytes[4..6] {
            // With DF the id of a packet that was merged means nothing (RFC 6864 §4.1).
            expected[4..6].copy_from_slice(&wire.bytes[4..6]);
            complete(&mut expected);
        }
        at.is_multiple_of(*segment) && expected == wire.bytes
    };
    segments.iter().any(fits)
}
