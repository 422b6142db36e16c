//! Why a record is not used.

use std::fmt;
use std::net::IpAddr;

use flannel_model::{LeaseKey, LeaseKeyError};

use crate::Identity;

/// Why a record is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RejectReason {
    /// The key is no lease key.
    Key(LeaseKeyError),
    /// The value is no lease value. If an earlier one was good, that one stays in use.
    Value(String),
    /// It has no subnet of a family that is on.
    Families,
    /// A subnet is not one of the Network.
    OutsideNetwork {
        /// The config's name for the Network.
        field: &'static str,
        /// The Network.
        network: String,
    },
    /// A subnet has another length than SubnetLen.
    Length {
        /// The config's name for the length.
        field: &'static str,
        /// The length.
        length: u8,
    },
    /// A subnet lies before SubnetMin or behind SubnetMax.
    NotHandedOut {
        /// The config's names for the bounds.
        fields: &'static str,
        /// The first subnet.
        min: String,
        /// The last one.
        max: String,
    },
    /// It claims our subnet.
    OwnSubnet,
    /// It claims a subnet that this node had, and pods of this node still live in it.
    Stranded,
    /// It is an earlier lease of this node.
    OwnLease,
    /// Another node claims our address.
    OwnAddress(Identity),
    /// Its address can be no node's.
    Address(IpAddr, &'static str),
    /// Its subnet would lead an address astray that this node depends on.
    Covers(IpAddr, &'static str),
    /// An older record holds the same subnet.
    Duplicate(LeaseKey),
    /// A restored store brought it back, and its owner did not confirm it yet.
    Unconfirmed,
}

impl RejectReason {
    /// A word for counting.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Value(_) => "value",
            Self::Families => "families",
            Self::OutsideNetwork { .. } => "outside-network",
            Self::Length { .. } => "length",
            Self::NotHandedOut { .. } => "not-handed-out",
            Self::OwnSubnet => "own-subnet",
            Self::Stranded => "stranded",
            Self::OwnLease => "own-lease",
            Self::OwnAddress(_) => "own-address",
            Self::Address(..) => "address",
            Self::Covers(..) => "covers",
            Self::Duplicate(_) => "duplicate",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(error) => write!(f, "the key {error}"),
            Self::Value(error) => f.write_str(error),
            Self::Families => f.write_str("it has no subnet of an address family that is on here"),
            Self::OutsideNetwork { field, network } => {
                write!(f, "the subnet is not inside {field} {network}")
            }
            Self::Length { field, length } => {
                write!(f, "the subnet is not a /{length}, as {field} asks for")
            }
            Self::NotHandedOut { fields, min, max } => {
                write!(f, "the subnet is not among those that {fields} hand out, {min} to {max}")
            }
            Self::OwnSubnet => f.write_str("it claims the subnet of this node"),
            Self::Stranded => f.write_str(
                "pods of this node still live in the subnet, which is another node's now: they reach each other, \
                 but not the new owner's pods, until they are created anew",
            ),
            Self::OwnLease => f.write_str("it is an earlier lease of this node; it ends by itself"),
            Self::OwnAddress(other) => write!(
                f,
                "another node publishes this node's own address as {other}; give each one its own with --public-ip or --iface"
            ),
            Self::Address(address, what) => {
                write!(f, "its PublicIP {address} is {what}; expected a node's unicast address")
            }
            Self::Covers(address, what) => {
                write!(f, "its subnet covers {address}, {what}; a route to it would cut this node off")
            }
            Self::Duplicate(key) => write!(f, "the older record {key} holds the same subnet"),
            Self::Unconfirmed => f.write_str(
                "etcd was restored from a backup that has this record; it counts once its owner confirms it",
            ),
        }
    }
}

/// A record that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Its key behind `<prefix>/subnets/`, shortened.
    pub key: String,
    /// Why.
    pub reason: RejectReason,
}
