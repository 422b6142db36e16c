//! One or both address families.

use std::net::IpAddr;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Length of an address in bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl std::fmt::Display for IpFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Something that a network, a lease or a node has for IPv4, for IPv6 or for both, and never for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Families<A, B> {
    /// IPv4 alone.
    Ipv4(A),
    /// IPv6 alone.
    Ipv6(B),
    /// Both: dual stack.
    Dual(A, B),
}

impl<A, B> Families<A, B> {
    /// From what there is of each; `None` when there is neither.
    pub fn new(ipv4: Option<A>, ipv6: Option<B>) -> Option<Self> {
        match (ipv4, ipv6) {
            (Some(ipv4), Some(ipv6)) => Some(Self::Dual(ipv4, ipv6)),
            (Some(ipv4), None) => Some(Self::Ipv4(ipv4)),
            (None, Some(ipv6)) => Some(Self::Ipv6(ipv6)),
            (None, None) => None,
        }
    }

    /// What there is for IPv4.
    pub fn ipv4(&self) -> Option<&A> {
        match self {
            Self::Ipv4(ipv4) | Self::Dual(ipv4, _) => Some(ipv4),
            Self::Ipv6(_) => None,
        }
    }

    /// What there is for IPv6.
    pub fn ipv6(&self) -> Option<&B> {
        match self {
            Self::Ipv6(ipv6) | Self::Dual(_, ipv6) => Some(ipv6),
            Self::Ipv4(_) => None,
        }
    }

    /// Which there are.
    pub fn which(&self) -> Families<(), ()> {
        match self {
            Self::Ipv4(_) => Families::Ipv4(()),
            Self::Ipv6(_) => Families::Ipv6(()),
            Self::Dual(..) => Families::Dual((), ()),
        }
    }

    /// Whether both have the same families.
    pub fn same_families<C, D>(&self, other: &Families<C, D>) -> bool {
        matches!(
            (self, other),
            (Self::Ipv4(_), Families::Ipv4(_))
                | (Self::Ipv6(_), Families::Ipv6(_))
                | (Self::Dual(..), Families::Dual(..))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for (ipv4, ipv6) in [(Some(4), None), (None, Some('6')), (Some(4), Some('6'))] {
            let families = Families::new(ipv4, ipv6).unwrap();
            assert_eq!((families.ipv4().copied(), families.ipv6().copied()), (ipv4, ipv6));
            assert!(families.same_families(&families) && families.same_families(&families.which()));
        }
        assert_eq!(Families::<u8, u8>::new(None, None), None);
        assert!(!Families::<u8, u8>::Ipv4(1).same_families(&Families::<u8, u8>::Dual(1, 2)));
    }
}
