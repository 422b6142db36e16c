//! What a kernel has of an overlay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flannel_model::{IpSubnet, Mac, WireguardPublicKey, WireguardSecret};

use crate::overlay::Way;
use crate::setting::Setting;

/// The number that marks our routes (the kernel's `rtm_protocol`).
pub const OUR_PROTOCOL: u8 = 70;
/// The number of flannel's routes (RTPROT_BOOT), which it shares with routes made by hand.
const PROTOCOL_BOOT: u8 = 3;

/// What a kernel has of the overlay of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedOverlay {
    /// The device of the tunnel's name, of whatever kind.
    pub link: Option<ObservedLink>,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The permanent entries of its forwarding table that have an outer destination of the family and
    /// nothing special.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// Its settings, as far as this kernel has them.
    pub settings: BTreeMap<Setting, String>,
    /// Key and peers of a WireGuard device.
    pub wireguard: Option<ObservedWireguard>,
    /// The unicast routes of table main with one next hop that lead over the tunnel, and those inside the network that lead
    /// elsewhere.
    pub routes: Vec<ObservedRoute>,
    /// Our routes inside the network that drop what no better route takes.
    pub blackholes: BTreeSet<IpSubnet>,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// What it is.
    pub kind: ObservedKind,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Set up.
    pub up: bool,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedKind {
    /// A VXLAN device.
    Vxlan(ObservedVxlan),
    /// An IPIP device.
    Ipip(ObservedIpip),
    /// A WireGuard device.
    Wireguard,
    /// Another kind, by the kernel's name for it; empty for hardware.
    Other(String),
}

/// What makes a VXLAN device what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// VXLAN network identifier.
    pub id: u32,
    /// Index of the interface that carries it.
    pub underlay: Option<u32>,
    /// Source address of outer packets.
    pub local: Option<IpAddr>,
    /// UDP port.
    pub port: u16,
    /// It learns source addresses.
    pub learning: bool,
    /// It carries the group policy extension.
    pub gbp: bool,
}

/// What makes an IPIP device what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedIpip {
    /// Source address of outer packets.
    pub local: Option<IpAddr>,
    /// The one other end that it has, if it is bound to one.
    pub remote: Option<IpAddr>,
}

/// What a WireGuard device knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedWireguard {
    /// Its public key; `None` before it has a private one.
    pub public: Option<WireguardPublicKey>,
    /// UDP port.
    pub port: u16,
    /// Its peers.
    pub peers: BTreeMap<WireguardPublicKey, ObservedWireguardPeer>,
}

/// A peer of a WireGuard device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedWireguardPeer {
    /// Where packets for it go: what was written, or where it was heard from last.
    pub endpoint: Option<SocketAddr>,
    /// What this process wrote last; `None` when it has not yet.
    pub written: Option<SocketAddr>,
    /// It was heard from within the lifetime of a session, so that `endpoint` is known to be right.
    pub is_live: bool,
    /// A key that is mixed into the handshake.
    pub preshared: Option<WireguardSecret>,
    /// Seconds between empty packets; 0 for none.
    pub keepalive: u16,
    /// What it may send, and what is sent to it.
    pub allowed: BTreeSet<IpSubnet>,
}

/// A route as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedRoute {
    /// Where to.
    pub destination: IpSubnet,
    /// How.
    pub way: Way,
    /// Who made it.
    pub protocol: u8,
    /// Its priority; 0 for the family's default.
    pub metric: u32,
}

impl ObservedRoute {
    /// Whether it bears our mark.
    pub fn is_marked(&self) -> bool {
        self.protocol == OUR_PROTOCOL
    }

    /// Whether it is as routes are that flannel or an operator makes: no mark, no priority.
    pub fn is_plain_boot(&self) -> bool {
        self.protocol == PROTOCOL_BOOT && self.metric == 0
    }
}
