//! Subnets that are always network-normalised: `10.5.1.7/24` cannot exist as a value of these types.

use std::fmt;
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::IpSubnet;

/// What the subnets of both families have in common, for code that treats them alike.
pub trait Subnet:
    Copy + Ord + Hash + fmt::Debug + fmt::Display + FromStr<Err = SubnetError> + Send + Sync + 'static
{
    /// An address of the family.
    type Address: Copy + Ord + Hash + fmt::Debug + fmt::Display + FromStr + DeserializeOwned + Send + Sync;

    /// The subnet of `length` bits that holds `address`; host bits are cleared. `None` when `length` is out of range.
    fn new(address: Self::Address, length: u8) -> Option<Self>;
    /// Network address: the first address of the subnet.
    fn network(&self) -> Self::Address;
    /// Last address of the subnet.
    fn last(&self) -> Self::Address;
    /// Prefix length in bits.
    fn length(&self) -> u8;
    /// Whether `address` lies inside.
    fn holds(&self, address: Self::Address) -> bool;
    /// Whether every address of `other` lies inside.
    fn contains(&self, other: &Self) -> bool;
    /// Whether the two share an address.
    fn overlaps(&self, other: &Self) -> bool;
    /// The subnet of the same length right behind this one; `None` at the end of the address space.
    fn next(&self) -> Option<Self>;
    /// How many subnets of this length lie between this one and `later` of the same length; 0 when it does not lie behind.
    fn steps_to(&self, later: &Self) -> u128;
}

/// Why a text is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an {family} subnet; expected a form like {example}")]
pub struct SubnetError {
    text: String,
    family: &'static str,
    example: &'static str,
}

macro_rules! subnet_type {
    ($name:ident, $net:ty, $addr:ty, $bits:ty, $max:expr, $family:expr, $example:expr) => {
        impl $name {
            /// The subnet of `length` bits that holds `address`; host bits are cleared. `None` when `length` is out of range.
            pub fn new(address: $addr, length: u8) -> Option<Self> {
                let net = <$net>::new(address, length).ok()?;
                <$net>::new(net.network(), length).ok().map(Self)
            }

            /// Network address: the first address of the subnet.
            pub fn network(&self) -> $addr {
                self.0.network()
            }

            /// Last address of the subnet (the broadcast address in IPv4).
            pub fn last(&self) -> $addr {
                self.0.broadcast()
            }

            /// Prefix length in bits.
            pub fn length(&self) -> u8 {
                self.0.prefix()
            }

            /// The network address plus one: the gateway that flannel writes into subnet.env.
            pub fn first_host(&self) -> $addr {
                <$addr>::from(<$bits>::from(self.network()).saturating_add(1))
            }

            /// Whether `address` lies inside.
            pub fn holds(&self, address: $addr) -> bool {
                self.0.contains(address)
            }

            /// Whether every address of `other` lies inside.
            pub fn contains(&self, other: &Self) -> bool {
                self.length() <= other.length() && self.holds(other.network())
            }

            /// Whether the two share an address.
            pub fn overlaps(&self, other: &Self) -> bool {
                self.contains(other) || other.contains(self)
            }

            /// The subnet of the same length right behind this one; `None` at the end of the address space.
            pub fn next(&self) -> Option<Self> {
                let after = <$bits>::from(self.last()).checked_add(1)?;
                Self::new(<$addr>::from(after), self.length())
            }
        }

        impl Subnet for $name {
            type Address = $addr;

            fn new(address: $addr, length: u8) -> Option<Self> {
                Self::new(address, length)
            }
            fn network(&self) -> $addr {
                self.network()
            }
            fn last(&self) -> $addr {
                self.last()
            }
            fn length(&self) -> u8 {
                self.length()
            }
            fn holds(&self, address: $addr) -> bool {
                self.holds(address)
            }
            fn contains(&self, other: &Self) -> bool {
                self.contains(other)
            }
            fn overlaps(&self, other: &Self) -> bool {
                self.overlaps(other)
            }
            fn next(&self) -> Option<Self> {
                self.next()
            }
            fn steps_to(&self, later: &Self) -> u128 {
                let addresses = <$bits>::from(later.network()).saturating_sub(<$bits>::from(self.network()));
                // A /0 has no second subnet, and a shift by all bits is not defined.
                addresses
                    .checked_shr(u32::from($max - self.length()))
                    .unwrap_or(0)
                    .into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.network(), self.length())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = SubnetError;

            /// Reads `address/length`. Host bits are cleared, as flannel does with `Network`.
            fn from_str(text: &str) -> Result<Self, SubnetError> {
                let error = || SubnetError {
                    text: text.to_owned(),
                    family: $family,
                    example: $example,
                };
                let (address, length) = text.split_once('/').ok_or_else(error)?;
                let address: $addr = address.parse().map_err(|_| error())?;
                let plain = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
                let length: u8 = length
                    .parse()
                    .ok()
                    .filter(|l| plain && *l <= $max)
                    .ok_or_else(error)?;
                Self::new(address, length).ok_or_else(error)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// An IPv4 subnet without host bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Subnet(Ipv4Network);

/// An IPv6 subnet without host bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv6Subnet(Ipv6Network);

impl From<Ipv4Subnet> for IpSubnet {
    fn from(subnet: Ipv4Subnet) -> Self {
        Self::V4(subnet)
    }
}

impl From<Ipv6Subnet> for IpSubnet {
    fn from(subnet: Ipv6Subnet) -> Self {
        Self::V6(subnet)
    }
}

subnet_type!(Ipv4Subnet, Ipv4Network, Ipv4Addr, u32, 32, "IPv4", "10.5.1.0/24");
subnet_type!(
    Ipv6Subnet,
    Ipv6Network,
    Ipv6Addr,
    u128,
    128,
    "IPv6",
    "fd00:5::/64"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(
            "10.5.1.7/24".parse::<Ipv4Subnet>().unwrap().to_string(),
            "10.5.1.0/24"
        );
        assert_eq!(
            "fd00::5/64".parse::<Ipv6Subnet>().unwrap().to_string(),
            "fd00::/64"
        );
    }

    #[test]
    fn malformed_text_is_refused_and_quoted() {
        for bad in [
            "",
            "10.5.1.0",
            "10.5.1.0/33",
            "10.5.1/24",
            "10.5.1.0/+4",
            "10.5.1.0/",
            "a/8",
            "10.5.1.0/24/1",
        ] {
            let error = bad.parse::<Ipv4Subnet>().unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn neighbours_and_edges() {
        let last: Ipv4Subnet = "255.255.255.0/24".parse().unwrap();
        assert_eq!(last.next(), None);
        let s: Ipv4Subnet = "10.5.255.0/24".parse().unwrap();
        assert_eq!(s.next().unwrap().to_string(), "10.6.0.0/24");
        assert_eq!(s.first_host().to_string(), "10.5.255.1");
        let all: Ipv4Subnet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(&s) && all.overlaps(&s) && s.overlaps(&all) && !s.contains(&all));
        assert_eq!(all.steps_to(&all), 0);
    }

    #[test]
    fn steps_are_counted_in_both_families() {
        let v4 = |text: &str| text.parse::<Ipv4Subnet>().unwrap();
        assert_eq!(v4("10.5.1.0/24").steps_to(&v4("10.5.255.0/24")), 254);
        assert_eq!(v4("10.5.255.0/24").steps_to(&v4("10.5.1.0/24")), 0);
        let v6 = |text: &str| text.parse::<Ipv6Subnet>().unwrap();
        assert_eq!(v6("fd00:5::/64").steps_to(&v6("fd00:5:0:ffff::/64")), 0xffff);
    }
}
