//! The 10 bytes in front of each packet of a TUN device with IFF_VNET_HDR (virtio 1.2 §5.1.6, in native byte order).

/// Length of the header as the kernel's TUN device has it by default.
pub const LENGTH: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// A flag on the type: the first segment carries CWR (RFC 3168 §6.1.2).
const GSO_ECN: u8 = 0x80;

/// How the kernel cuts a packet, or wants it cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// Not at all.
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of one length.
    Udp,
}

/// What the kernel says of a packet, or is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VnetHeader {
    /// The transport checksum holds only the pseudo header's sum; it is to be completed over everything from `checksum_start`.
    pub needs_checksum: bool,
    /// The transport checksum was verified.
    pub verified: bool,
    /// How it is cut.
    pub gso: Gso,
    /// TCP with CWR on its first segment.
    pub ecn: bool,
    /// Bytes of all headers, a hint.
    pub header_length: u16,
    /// Payload bytes of each segment but the last.
    pub segment: u16,
    /// Where the checksummed part begins.
    pub checksum_start: u16,
    /// Where the checksum is, from there.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// A packet that is complete.
    pub const PLAIN: Self = Self {
        needs_checksum: false,
        verified: false,
        gso: Gso::None,
        ecn: false,
        header_length: 0,
        segment: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Reads a header; `None` for a kind of segmentation that was never asked for.
    #[must_use]
    pub fn parse(bytes: &[u8; LENGTH]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: bytes[0] & F_NEEDS_CSUM != 0,
            verified: bytes[0] & F_DATA_VALID != 0,
            gso,
            ecn: bytes[1] & GSO_ECN != 0,
            header_length: word(2),
            segment: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; LENGTH] {
        let flags = if self.needs_checksum {
            F_NEEDS_CSUM
        } else if self.verified {
            F_DATA_VALID
        } else {
            0
        };
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        let mut bytes = [0; LENGTH];
        bytes[0] = flags;
        bytes[1] = gso | if self.ecn { GSO_ECN } else { 0 };
        let words = [
            self.header_length,
            self.segment,
            self.checksum_start,
            self.checksum_offset,
        ];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let header = VnetHeader {
            needs_checksum: true,
            gso: Gso::TcpV4,
            ecn: true,
            header_length: 52,
            segment: 1408,
            checksum_start: 20,
            checksum_offset: 16,
            ..VnetHeader::PLAIN
        };
        assert_eq!(&header.bytes()[..2], [1, 0x81]);
        assert_eq!(VnetHeader::parse(&header.bytes()), Some(header));
        assert_eq!(VnetHeader::PLAIN.bytes(), [0; LENGTH]);
    }

    #[test]
    fn segmentation_that_nobody_asked_for() {
        // 3 is the old UDP fragmentation offload.
        assert_eq!(VnetHeader::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
