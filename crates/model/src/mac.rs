//! Ethernet addresses of VTEPs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

/// Why a text is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address; expected six hexadecimal bytes like 8a:55:6f:01:02:03")]
pub struct MacError(String);

impl Mac {
    /// The address with these bytes, as they are.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// A locally administered unicast address out of random bytes (bit 1 set, bit 0 clear of the first byte; IEEE 802).
    pub fn local_unicast(mut random: [u8; 6]) -> Self {
        random[0] = (random[0] & 0xfe) | 0x02;
        Self(random)
    }

    /// The six bytes in wire order.
    pub const fn bytes(&self) -> [u8; 6] {
        self.0
    }

    /// Whether frames to it reach exactly one station: neither multicast nor all zero.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = MacError;

    /// Reads the three forms that Go's `net.ParseMAC` takes for 48 bits: `:` or `-` between bytes, `.` between 16-bit groups.
    fn from_str(text: &str) -> Result<Self, MacError> {
        parse(text).map(Self).ok_or_else(|| MacError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let digits: String = match text.as_bytes() {
        b if b.len() == 17 && (b[2] == b':' || b[2] == b'-') => grouped(text, b[2], 2, 6)?,
        b if b.len() == 14 && b[4] == b'.' => grouped(text, b'.', 4, 3)?,
        _ => return None,
    };
    let mut bytes = [0; 6];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// The hexadecimal digits of `count` groups of `width` digits, all parted by `separator`.
fn grouped(text: &str, separator: u8, width: usize, count: usize) -> Option<String> {
    let groups: Vec<&str> = text.split(char::from(separator)).collect();
    let sound = groups.len() == count
        && groups
            .iter()
            .all(|g| g.len() == width && g.bytes().all(|b| b.is_ascii_hexdigit()));
    sound.then(|| groups.concat())
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_go_is_read() {
        let mac = Mac::new([0x8a, 0x55, 0x6f, 1, 2, 3]);
        for text in ["8a:55:6f:01:02:03", "8A-55-6F-01-02-03", "8a55.6f01.0203"] {
            assert_eq!(text.parse::<Mac>().unwrap(), mac, "{text}");
        }
        assert_eq!(mac.to_string(), "8a:55:6f:01:02:03");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "8a:55:6f:01:02",
            "8a:55:6f:01:02:0g",
            "8a-55:6f:01:02:03",
            "8a:55:6f:01:02:03:04:05",
            "+a:55:6f:01:02:03",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_local_and_unicast() {
        let mac = Mac::local_unicast([0xff; 6]);
        assert!(mac.is_unicast());
        assert_eq!(mac.bytes()[0] & 2, 2);
        assert!(!Mac::new([0; 6]).is_unicast() && !Mac::new([0xff; 6]).is_unicast());
    }
}
