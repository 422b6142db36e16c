//! Packets from bytes: a source of choices, and builders of packets that are right unless told otherwise.

use super::slow;

/// Choices taken from bytes, zeros when they run out.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.word()) % limit.max(1)
    }

    pub fn one_in(&mut self, many: u8) -> bool {
        self.byte() % many == 1
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a packet is built from.
#[derive(Debug, Clone)]
pub struct Plan {
    pub v6: bool,
    pub tcp: bool,
    pub flow: u8,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub sequence: u32,
    pub flags: u8,
    pub window: u16,
    pub options: usize,
    pub payload: Vec<u8>,
}

impl Plan {
    pub fn new(choices: &mut Choices<'_>) -> Self {
        let mut payload = vec![0; choices.below(3000)];
        let seed = choices.byte();
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte = (index as u8).wrapping_mul(seed | 1) ^ seed;
        }
        Self {
            v6: choices.one_in(3),
            tcp: !choices.one_in(2),
            flow: choices.byte() % 3,
            ttl: choices.byte(),
            tos: choices.byte(),
            id: choices.word(),
            dont_fragment: choices.one_in(2),
            sequence: u32::from(choices.word()) << 16 | 0xff00,
            flags: 0x10 | choices.byte() & 0xc9,
            window: 1000,
            options: choices.below(11) * 4,
            payload,
        }
    }

    /// The packet, whole.
    pub fn packet(&self) -> Vec<u8> {
        let protocol = if self.tcp { 6 } else { 17 };
        let mut packet = if self.v6 {
            let mut ip = vec![
                0x60 | self.tos >> 4,
                self.tos << 4,
                0,
                0,
                0,
                0,
                protocol,
                self.ttl,
            ];
            for node in [2, 1] {
                ip.extend([0xfd, 0, 0, 5, 0, 0, 0, node, 0, 0, 0, 0, 0, 0, 0, self.flow]);
            }
            ip
        } else {
            let fragment = if self.dont_fragment { 0x40 } else { 0 };
            let id = self.id.to_be_bytes();
            let mut ip = vec![
                0x45, self.tos, 0, 0, id[0], id[1], fragment, 0, self.ttl, protocol, 0, 0,
            ];
            ip.extend([10, 5, 2, self.flow, 10, 5, 1, self.flow]);
            ip
        };
        let start = packet.len();
        packet.extend([0x9c, 0x40, 0, 80]);
        if self.tcp {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend([0, 0, 0, 7, ((20 + self.options) / 4 * 16) as u8, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0, 0, 0, 0]);
            packet.extend(vec![1; self.options]);
        } else {
            packet.extend([0, 0, 0, 0]);
        }
        packet.extend(&self.payload);
        // One cut into one piece writes every length and checksum.
        slow::cut(&packet, start, protocol, usize::MAX).remove(0)
    }
}
