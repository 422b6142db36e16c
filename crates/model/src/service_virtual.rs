//! What a client of a Service talks to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Transport protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceProtocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
}

/// Why a text is no protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a protocol; expected TCP, UDP or SCTP")]
pub struct ServiceProtocolError(String);

impl ServiceProtocol {
    /// Number in the IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this number in the IP header.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for ServiceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl FromStr for ServiceProtocol {
    type Err = ServiceProtocolError;

    /// Reads Kubernetes' spelling, in capitals.
    fn from_str(text: &str) -> Result<Self, ServiceProtocolError> {
        match text {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            other => Err(ServiceProtocolError(other.to_owned())),
        }
    }
}

/// Protocol, address and port of a virtual server: its identity in IPVS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualAddress {
    /// Transport protocol.
    pub protocol: ServiceProtocol,
    /// Virtual address (VIP).
    pub address: IpAddr,
    /// Port that clients use.
    pub port: u16,
}

impl fmt::Display for VirtualAddress {
    /// The form of `ipvsadm -Ln`: `TCP 10.96.0.10:80`, `UDP [fd00::a]:53`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.protocol,
            SocketAddr::new(self.address, self.port)
        )
    }
}

/// What identifies a virtual server in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerKey {
    /// Protocol, address and port.
    Address(VirtualAddress),
    /// Packets that carry a firewall mark.
    Mark {
        /// Whether it serves IPv6.
        ipv6: bool,
        /// The mark.
        mark: u32,
    },
}

impl ServerKey {
    /// Whether it serves IPv6.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Address(at) => at.address.is_ipv6(),
            Self::Mark { ipv6, .. } => *ipv6,
        }
    }
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Mark { ipv6: false, mark } => write!(f, "FWM {mark}"),
            Self::Mark { ipv6: true, mark } => write!(f, "FWM {mark} IPv6"),
        }
    }
}
