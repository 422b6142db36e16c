//! Keys of leases, byte for byte as flannel writes them (API v3).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::text::shortened;
use crate::{Families, Ipv4Subnet, Ipv6Subnet};

/// Shortest and longest prefix of an IPv4 lease: flannel refuses SubnetLen above 30, and a /0 is no lease.
const IPV4_LENGTHS: std::ops::RangeInclusive<u8> = 1..=30;
/// The same for IPv6 (IPv6SubnetLen ≤ 126).
const IPV6_LENGTHS: std::ops::RangeInclusive<u8> = 1..=126;

/// The last part of a lease's key: `10.5.1.0-24`, or `10.5.3.0-24&2001:cafe:42:3::-64` in dual stack.
///
/// flannel has no form for IPv6 alone; ours is `2001:cafe:42:3::-64`, and it lives in a range of its own
/// ([`EtcdPrefix::leases`](crate::EtcdPrefix::leases)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseKey(Families<Ipv4Subnet, Ipv6Subnet>);

/// Why a key is no lease key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseKeyError {
    /// It does not have the form `a.b.c.d-len`, `a.b.c.d-len&v6-len` or `v6-len`.
    #[error("{0:?} is not of the form 10.5.1.0-24 or 10.5.3.0-24&2001:cafe:42:3::-64")]
    Form(String),
    /// The prefix length can be no lease.
    #[error("{key:?} has prefix length {length}; a lease has 1 to 30 (IPv4) or 1 to 126 (IPv6)")]
    Length {
        /// The key.
        key: String,
        /// The length in it.
        length: u8,
    },
    /// Another text stands for the same subnet, so this one could shadow it.
    #[error("{key:?} is not written as flannel writes it; expected {canonical:?}")]
    NotCanonical {
        /// The key.
        key: String,
        /// The text that flannel would have written.
        canonical: String,
    },
}

impl LeaseKey {
    /// The key of a lease of these subnets.
    pub const fn new(subnets: Families<Ipv4Subnet, Ipv6Subnet>) -> Self {
        Self(subnets)
    }

    /// The key of an IPv4-only lease.
    pub const fn ipv4_only(ipv4: Ipv4Subnet) -> Self {
        Self(Families::Ipv4(ipv4))
    }

    /// Its subnets.
    pub const fn subnets(&self) -> &Families<Ipv4Subnet, Ipv6Subnet> {
        &self.0
    }

    /// The node's IPv4 subnet.
    pub fn ipv4(&self) -> Option<Ipv4Subnet> {
        self.0.ipv4().copied()
    }

    /// The node's IPv6 subnet.
    pub fn ipv6(&self) -> Option<Ipv6Subnet> {
        self.0.ipv6().copied()
    }

    /// Whether a lease of this key and one of `other` share an address, in whichever family.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ipv4 = self.ipv4().zip(other.ipv4());
        let ipv6 = self.ipv6().zip(other.ipv6());
        ipv4.is_some_and(|(one, other)| one.overlaps(&other))
            || ipv6.is_some_and(|(one, other)| one.overlaps(&other))
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ipv4) = self.ipv4() {
            write!(f, "{}-{}", ipv4.network(), ipv4.length())?;
        }
        if let Families::Dual(..) = self.0 {
            f.write_str("&")?;
        }
        if let Some(ipv6) = self.ipv6() {
            write!(f, "{}-{}", ipv6.network(), ipv6.length())?;
        }
        Ok(())
    }
}

impl FromStr for LeaseKey {
    type Err = LeaseKeyError;

    /// Reads the whole text; nothing may stand before or behind it. flannel's own expression is unanchored, and so
    /// takes `junk/10.5.1.0-24` for a lease.
    fn from_str(text: &str) -> Result<Self, LeaseKeyError> {
        let form = || LeaseKeyError::Form(shortened(text));
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (Some(v4), Some(v6)),
            None if text.contains(':') => (None, Some(text)),
            None => (Some(text), None),
        };
        let v4 = v4
            .map(|v4| address_and_length::<Ipv4Addr>(v4).ok_or_else(form))
            .transpose()?;
        let v6 = v6
            .map(|v6| address_and_length::<Ipv6Addr>(v6).ok_or_else(form))
            .transpose()?;
        let ipv4 = match v4 {
            Some((_, length)) if !IPV4_LENGTHS.contains(&length) => return Err(bad_length(text, length)),
            Some((address, length)) => Some(Ipv4Subnet::new(address, length).ok_or_else(form)?),
            None => None,
        };
        let ipv6 = match v6 {
            Some((_, length)) if !IPV6_LENGTHS.contains(&length) => return Err(bad_length(text, length)),
            Some((address, length)) => Some(Ipv6Subnet::new(address, length).ok_or_else(form)?),
            None => None,
        };
        let key = Self(Families::new(ipv4, ipv6).ok_or_else(form)?);
        let canonical = key.to_string();
        if canonical == text {
            return Ok(key);
        }
        Err(LeaseKeyError::NotCanonical {
            key: shortened(text),
            canonical,
        })
    }
}

fn address_and_length<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (address, length) = text.rsplit_once('-')?;
    let digits = (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
    digits.then_some(())?;
    Some((address.parse().ok()?, length.parse().ok()?))
}

fn bad_length(key: &str, length: u8) -> LeaseKeyError {
    LeaseKeyError::Length {
        key: shortened(key),
        length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for (text, ipv4, ipv6) in [
            ("10.5.52.0-24", true, false),
            ("10.5.1.4-30", true, false),
            ("10.5.3.0-24&2001:cafe:42:3::-64", true, true),
            ("2001:cafe:42:3::-64", false, true),
        ] {
            let key: LeaseKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
            assert_eq!((key.ipv4().is_some(), key.ipv6().is_some()), (ipv4, ipv6));
            assert_eq!(LeaseKey::new(*key.subnets()), key);
        }
    }

    #[test]
    fn other_keys_are_refused() {
        for bad in [
            "",
            "foo",
            "10.5.1.0",
            "10.5.1.0/24",
            "10.5.1.0-24/meta",
            "x10.5.1.0-24",
            "10.5.1.0-",
            "10.5.1.0-+4",
            "10.5.1.0-024",
            "10.5.1.0-24&",
            "10.5.1.0-24&fd00::",
            "10.5.1.0-24&FD00::-64",
            "10.5.1.7-24",
            "0.0.0.0-0",
            "10.5.1.0-31",
            "10.5.1.0-32",
            "10.5.1.0-24&fd00::-128",
            "010.5.1.0-24",
            "10.5.1.0-24\n",
            "10.5.1.0-24&fd00:0::-64",
            "fd00::-64&10.5.1.0-24",
            "&fd00::-64",
            "fd00::-128",
            "::-0",
            "fd00::1-64",
            "FD00::-64",
        ] {
            assert!(bad.parse::<LeaseKey>().is_err(), "{bad}");
        }
        let long = "9".repeat(1 << 20);
        assert!(long.parse::<LeaseKey>().unwrap_err().to_string().len() < 400);
    }
}
