//! Links (network devices): what is there, and changes to what is there. Making new ones is in [`create`].

mod change;
mod counters;
pub mod create;
pub(crate) mod decode;
mod read;
pub mod released;
mod settings;
mod vlan;
mod wait;

use std::fmt;
use std::net::IpAddr;

use flannel_model::Mac;

pub use change::{
    delete, delete_group, detach, set_alias, set_down, set_hairpin, set_isolated, set_mac, set_master,
    set_mtu, set_up, set_vxlan_learning, set_vxlan_local,
};
pub use counters::{Counters, counters};
pub use create::{
    BridgeSpec, IpipSpec, VethSpec, VxlanSpec, create_bridge, create_ipip, create_veth, create_vxlan,
    create_wireguard,
};
pub use read::{by_index, by_name, dump, get_request};
pub use settings::{Ipv4Setting, PortMarks, mark_port, set_ipv4, set_link_local, set_up_with};
pub use vlan::{PortVlan, add_vlan, remove_vlan, set_vlan_filtering, vlans};
pub use wait::await_running;

/// A network device as the kernel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Index, unique in its network namespace.
    pub ifindex: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// Alternative text that the owner may set; [`create::VethSpec::alias`] and [`set_alias`] write it.
    pub alias: Option<String>,
    /// Largest packet in bytes, 0 when the device does not say.
    pub mtu: u32,
    /// Hardware address, where the device has an Ethernet address.
    pub mac: Option<Mac>,
    /// Set up by the administrator (IFF_UP).
    pub up: bool,
    /// Ready to carry packets (IFF_LOWER_UP).
    pub carrier: bool,
    /// Carries packets right now (IFF_RUNNING): the kernel has acted upon the carrier.
    pub running: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Takes every frame (IFF_PROMISC).
    pub promiscuous: bool,
    /// Group number, 0 unless somebody set one.
    pub group: u32,
    /// The bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// Index of the link that it hangs on; for a veth its other end, in that one's own namespace.
    pub peer: Option<u32>,
    /// Driver kind: `vxlan`, `bridge`, `veth`; empty for hardware.
    pub kind: String,
    /// Details of a VXLAN device.
    pub vxlan: Option<Vxlan>,
    /// Details of an IPIP device.
    pub ipip: Option<Ipip>,
    /// Hairpin mode, where the device is a port of a bridge.
    pub hairpin: Option<bool>,
    /// Isolation from other isolated ports, where the device is a port of a bridge.
    pub isolated: Option<bool>,
    /// VLANs are kept apart, where the device is a bridge of a kernel that can do so.
    pub vlan_filtering: Option<bool>,
    /// Who may change routes by what comes in over the device.
    pub rerouting: Rerouting,
    /// Whether what comes in over the device is forwarded.
    pub forwarding: Forwarding,
}

/// Settings by which others on a link can change this node's routes, or this node theirs; `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rerouting {
    /// `accept_ra` of IPv6 is not 0.
    pub advertisements: Option<bool>,
    /// `accept_redirects` of IPv6 is not 0.
    pub ipv6_redirects: Option<bool>,
    /// `accept_redirects` of IPv4 is not 0.
    pub ipv4_redirects: Option<bool>,
    /// `send_redirects` of IPv4 is not 0.
    pub ipv4_sends: Option<bool>,
}

impl Rerouting {
    /// Nobody can change anything, in either direction.
    pub fn is_closed(self) -> bool {
        let all = [
            self.advertisements,
            self.ipv6_redirects,
            self.ipv4_redirects,
            self.ipv4_sends,
        ];
        all.iter().all(|one| *one == Some(false))
    }
}

/// `forwarding` of a device in each family; `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwarding {
    /// Of IPv4.
    pub ipv4: Option<bool>,
    /// Of IPv6.
    pub ipv6: Option<bool>,
}

/// What makes a VXLAN device what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub id: u32,
    /// Index of the device that carries the tunnel; `None` when it is not bound to one.
    pub underlay: Option<u32>,
    /// Source address of the outer packets.
    pub local: Option<IpAddr>,
    /// UDP destination port.
    pub port: u16,
    /// Source addresses are learned from received packets.
    pub learning: bool,
    /// The group policy extension is on.
    pub gbp: bool,
    /// The device reports unknown MAC addresses to user space.
    pub l2miss: bool,
}

/// What makes an IPIP device what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ipip {
    /// Source address of the outer packets; `None` for any.
    pub local: Option<IpAddr>,
    /// The other end; `None` when each route names one.
    pub remote: Option<IpAddr>,
}

/// Which link a request is about. A name lets one batch make a link and go on with it, before its index is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRef<'a> {
    /// By index.
    Index(u32),
    /// By name.
    Name(&'a str),
}

impl From<u32> for LinkRef<'_> {
    fn from(ifindex: u32) -> Self {
        Self::Index(ifindex)
    }
}

impl<'a> From<&'a str> for LinkRef<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for LinkRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(ifindex) => write!(f, "link {ifindex}"),
            Self::Name(name) => write!(f, "link {name}"),
        }
    }
}
