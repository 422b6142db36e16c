//! Why a lease is of no use to a backend.

use std::fmt;

use flannel_model::{LeaseKey, Mac};

/// Why a lease is of no use to a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reject {
    /// It is a lease of another backend.
    OtherBackend {
        /// The one that it names.
        theirs: Option<String>,
        /// The one of this network.
        ours: &'static str,
    },
    /// Its backend data cannot be read.
    Data {
        /// The field.
        field: &'static str,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// It has an IPv6 subnet and no address to reach it by.
    NoPublicIpv6,
    /// It uses another VXLAN network.
    Vni {
        /// Its VNI.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// Its VTEP address can be no station's.
    NotUnicast(Mac),
    /// It claims the address of our VTEP.
    OwnMac(Mac),
    /// An older record with another PublicIP has the same VTEP address; the forwarding table can hold one.
    SharedMac {
        /// The address.
        mac: Mac,
        /// The older record.
        holder: LeaseKey,
    },
    /// It has an IPv4 subnet and no address to reach it by.
    NoPublicIpv4,
    /// It claims our WireGuard key.
    OwnKey,
    /// An older record with another address has the same WireGuard key.
    SharedKey {
        /// The older record.
        holder: LeaseKey,
    },
    /// It is not on the same link, and the backend reaches only what is.
    NotConnected(std::net::IpAddr),
}

impl Reject {
    /// Whether it is of no use only because of another record, and may be of use when that one changes.
    pub fn is_because_of_another(&self) -> bool {
        match self {
            Self::SharedMac { .. } | Self::SharedKey { .. } => true,
            Self::OtherBackend { .. }
            | Self::Data { .. }
            | Self::NoPublicIpv6
            | Self::Vni { .. }
            | Self::NotUnicast(_)
            | Self::OwnMac(_)
            | Self::NoPublicIpv4
            | Self::OwnKey
            | Self::NotConnected(_) => false,
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherBackend {
                theirs: Some(theirs),
                ours,
            } => {
                write!(f, "it is a lease of backend {theirs:?}; this node speaks {ours}")
            }
            Self::OtherBackend { theirs: None, ours } => {
                write!(
                    f,
                    "it names no backend (udp and alloc do not); this node speaks {ours}"
                )
            }
            Self::Data { field, problem } => write!(f, "{field}: {problem}"),
            Self::NoPublicIpv6 => f.write_str("it has an IPv6 subnet and no PublicIPv6"),
            Self::Vni { theirs, ours } => write!(f, "its VNI is {theirs}; this network's is {ours}"),
            Self::NotUnicast(mac) => write!(f, "its VtepMAC {mac} is not a unicast address"),
            Self::OwnMac(mac) => write!(f, "its VtepMAC {mac} is this node's own"),
            Self::SharedMac { mac, holder } => write!(
                f,
                "its VtepMAC {mac} is that of the older record {holder}, which has another PublicIP"
            ),
            Self::NoPublicIpv4 => f.write_str("it has no PublicIP to reach it by"),
            Self::OwnKey => f.write_str("its PublicKey is this node's own"),
            Self::SharedKey { holder } => {
                write!(
                    f,
                    "its PublicKey is that of the older record {holder}, which has another address"
                )
            }
            Self::NotConnected(address) => write!(
                f,
                "its node {address} is behind a router; host-gw reaches only nodes on the same link (use vxlan with DirectRouting)"
            ),
        }
    }
}
