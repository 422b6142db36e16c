//! The devices that are ours, by their names.

use std::fmt;

use flannel_model::IpFamily;

/// A device of ours. Its name, which is flannel's, is the mark that it is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// `flannel.<VNI>` or, for IPv6, `flannel-v6.<VNI>`.
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// What it carries, and what carries it.
        family: IpFamily,
    },
    /// `flannel.ipip`.
    Ipip,
    /// `flannel0`, the TUN device of the udp backend; the daemon itself makes it.
    Tun,
    /// `flannel-wg`, or `flannel-wg-v6` for IPv6 where each family has a device of its own.
    Wireguard {
        /// What the name stands for.
        family: IpFamily,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan {
                vni,
                family: IpFamily::V4,
            } => write!(f, "flannel.{vni}"),
            Self::Vxlan {
                vni,
                family: IpFamily::V6,
            } => write!(f, "flannel-v6.{vni}"),
            Self::Ipip => f.write_str("flannel.ipip"),
            Self::Tun => f.write_str("flannel0"),
            Self::Wireguard { family: IpFamily::V4 } => f.write_str("flannel-wg"),
            Self::Wireguard { family: IpFamily::V6 } => f.write_str("flannel-wg-v6"),
        }
    }
}
