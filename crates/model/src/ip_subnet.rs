//! Ranges of addresses of either family.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::{Ipv4Subnet, Ipv6Subnet};

/// A range of addresses of either family, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpSubnet {
    /// An IPv4 range.
    V4(Ipv4Subnet),
    /// An IPv6 range.
    V6(Ipv6Subnet),
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of addresses; expected a form like 10.96.0.0/16 or fd00:96::/112")]
pub struct IpSubnetError(String);

impl IpSubnet {
    /// The range of this length around an address; `None` when the family has no such length.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Ipv4Subnet::new(address, length).map(Self::V4),
            IpAddr::V6(address) => Ipv6Subnet::new(address, length).map(Self::V6),
        }
    }

    /// Whether `address` lies inside.
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(net), IpAddr::V4(address)) => net.holds(address),
            (Self::V6(net), IpAddr::V6(address)) => net.holds(address),
            _ => false,
        }
    }

    /// First address.
    pub fn network(&self) -> IpAddr {
        match self {
            Self::V4(net) => net.network().into(),
            Self::V6(net) => net.network().into(),
        }
    }

    /// Last address.
    pub fn last(&self) -> IpAddr {
        match self {
            Self::V4(net) => net.last().into(),
            Self::V6(net) => net.last().into(),
        }
    }

    /// Prefix length in bits.
    pub fn length(&self) -> u8 {
        match self {
            Self::V4(net) => net.length(),
            Self::V6(net) => net.length(),
        }
    }

    /// Whether it is a range of IPv4.
    pub fn is_ipv4(&self) -> bool {
        matches!(self, Self::V4(_))
    }

    /// Whether every address of `other` lies inside.
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::V4(a), Self::V4(b)) => a.contains(b),
            (Self::V6(a), Self::V6(b)) => a.contains(b),
            _ => false,
        }
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl fmt::Display for IpSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(net) => net.fmt(f),
            Self::V6(net) => net.fmt(f),
        }
    }
}

impl FromStr for IpSubnet {
    type Err = IpSubnetError;

    /// Reads `address/length`; host bits are cleared.
    fn from_str(text: &str) -> Result<Self, IpSubnetError> {
        let v4 = text.parse().map(Self::V4);
        v4.or_else(|_| text.parse().map(Self::V6))
            .map_err(|_| IpSubnetError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpSubnet {
        text.parse().unwrap()
    }

    #[test]
    fn families_never_meet() {
        assert!(net("10.96.7.7/16").holds("10.96.3.4".parse().unwrap()));
        assert!(!net("0.0.0.0/0").holds("::1".parse().unwrap()));
        assert!(!net("0.0.0.0/0").overlaps(&net("::/0")));
        assert!(net("fd00::/8").contains(&net("fd00:96::/112")));
        assert_eq!(
            net("fd00:96::/112").last(),
            "fd00:96::ffff".parse::<IpAddr>().unwrap()
        );
        assert!("10.96/16".parse::<IpSubnet>().is_err());
    }
}
