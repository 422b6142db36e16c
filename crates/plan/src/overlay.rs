//! What a node should have for the pods of one family, whatever the backend.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use flannel_model::{IpFamily, IpSubnet, Mac, WireguardPublicKey, WireguardSecret};

use crate::device::Device;

/// The interface that carries the traffic between nodes in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrier {
    /// Index.
    pub ifindex: u32,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its address, from which outer packets come.
    pub address: IpAddr,
}

/// The overlay that should be there, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredOverlay {
    /// The pool of all subnets. Nothing outside it is touched.
    pub network: IpSubnet,
    /// The node's own subnet.
    pub own_subnet: IpSubnet,
    /// Largest packet of pods, in bytes.
    pub mtu: u32,
    /// The tunnel device; `None` for a backend that sends pods' packets as they are.
    pub tunnel: Option<Tunnel>,
    /// How each peer's subnet is reached.
    pub routes: BTreeMap<IpSubnet, Way>,
    /// Where packets are dropped that no better route takes.
    pub blackholes: BTreeSet<IpSubnet>,
    /// Peers that it was made for.
    pub peers: usize,
}

/// A tunnel device and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The device.
    pub link: TunnelLink,
    /// Its address, with the longest prefix. Its other addresses inside the network are leftovers of ours.
    pub address: IpAddr,
    /// Ethernet address of each peer's first address.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Where each Ethernet address is.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// Key and peers of a WireGuard device.
    pub wireguard: Option<WireguardTunnel>,
    /// Who may send through it, where the device itself does not know: for VXLAN and IPIP.
    pub senders: BTreeSet<Sender>,
    /// The Ethernet addresses that VXLAN peers claim, also those that are reached without the tunnel, and how many leases do.
    pub vteps: BTreeMap<Mac, usize>,
}

/// A node that sends through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sender {
    /// Where its outer packets come from.
    pub address: IpAddr,
    /// Where its inner packets come from, beside that address.
    pub subnet: IpSubnet,
}

/// What a WireGuard device knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardTunnel {
    /// The node's private key.
    pub private: WireguardSecret,
    /// The public key that belongs to it.
    pub public: WireguardPublicKey,
    /// UDP port.
    pub port: u16,
    /// The other nodes by their keys.
    pub peers: BTreeMap<WireguardPublicKey, WireguardPeer>,
}

/// A node at the other end of a WireGuard tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Where its lease says that it is reached.
    pub endpoint: SocketAddr,
    /// A key that all nodes share.
    pub preshared: Option<WireguardSecret>,
    /// Seconds between empty packets; 0 for none.
    pub keepalive: u16,
    /// Its pods: what it may send, and what is sent to it.
    pub allowed: BTreeSet<IpSubnet>,
}

/// A tunnel device that should be there, up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelLink {
    /// Its name.
    pub device: Device,
    /// Largest inner packet in bytes.
    pub mtu: u32,
    /// What makes it the device that it is.
    pub kind: LinkKind,
}

/// What kind of device a tunnel is, with what belongs to that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// VXLAN (RFC 7348).
    Vxlan(VxlanLink),
    /// IP in IP (RFC 2003).
    Ipip(IpipLink),
    /// WireGuard. What it is beside its name comes afterwards ([`WireguardTunnel`]).
    Wireguard,
    /// A TUN device. It is not made by a change: whoever reads its packets opens it.
    Tun,
}

/// What makes a VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanLink {
    /// VXLAN network identifier.
    pub id: u32,
    /// Index of the interface that carries it.
    pub underlay: u32,
    /// Source address of outer packets.
    pub local: IpAddr,
    /// UDP port.
    pub port: u16,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Learn source addresses from received packets.
    pub learning: bool,
    /// Carry the group policy extension.
    pub gbp: bool,
    /// Outer packets over IPv4 have a UDP checksum. The kernel takes it when the device is made, and never again.
    pub udp_checksum: bool,
}

/// What makes an IPIP device. It has no remote end of its own: each route names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpipLink {
    /// Source address of outer packets.
    pub local: IpAddr,
}

/// How a subnet is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// By which device packets leave.
    pub out: Out,
    /// The next router; none where the device itself knows.
    pub gateway: Option<IpAddr>,
    /// The gateway is taken to be on the link although no address says so.
    pub onlink: bool,
}

/// The device by which packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Out {
    /// The overlay's tunnel.
    Tunnel,
    /// Another interface, by its index.
    Interface(u32),
}

impl DesiredOverlay {
    /// The family of its pods.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.own_subnet.network())
    }

    /// The tunnel device, if the backend has one.
    pub fn device(&self) -> Option<Device> {
        self.tunnel.as_ref().map(|tunnel| tunnel.link.device)
    }
}

impl Way {
    /// Over the tunnel to the first address of a peer's subnet, or to the peer itself.
    pub fn tunnel(gateway: IpAddr) -> Self {
        Self {
            out: Out::Tunnel,
            gateway: Some(gateway),
            onlink: true,
        }
    }

    /// Over the tunnel, which itself knows where everything is.
    pub fn device() -> Self {
        Self {
            out: Out::Tunnel,
            gateway: None,
            onlink: false,
        }
    }

    /// As it is, by an interface to a node on the same link.
    pub fn direct(ifindex: u32, gateway: IpAddr) -> Self {
        Self {
            out: Out::Interface(ifindex),
            gateway: Some(gateway),
            onlink: false,
        }
    }
}

/// A way and the name of the tunnel, as an argument of `ip route`.
pub(crate) struct WayText<'a>(pub &'a Way, pub Option<Device>);

impl fmt::Display for WayText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(way, tunnel) = self;
        if let Some(gateway) = way.gateway {
            write!(f, "via {gateway} ")?;
        }
        match (way.out, tunnel) {
            (Out::Tunnel, Some(device)) => write!(f, "dev {device}")?,
            (Out::Tunnel, None) => f.write_str("dev (none)")?,
            // As iproute2 writes a link whose name it does not know.
            (Out::Interface(index), _) => write!(f, "dev if{index}")?,
        }
        f.write_str(if way.onlink { " onlink" } else { "" })
    }
}
