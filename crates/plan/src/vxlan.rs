//! The VXLAN overlay that a node should have.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use flannel_model::{Ipv4Subnet, Mac, VXLAN_OVERHEAD_V4, VxlanOptions};

use crate::underlay::Underlay;

/// Another node, as its lease describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its pods.
    pub subnet: Ipv4Subnet,
    /// Where outer packets for it go.
    pub public_ip: Ipv4Addr,
    /// Ethernet address of its VTEP.
    pub vtep_mac: Mac,
}

/// All that the overlay of a node follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayFacts {
    /// The node's own subnet.
    pub own_subnet: Ipv4Subnet,
    /// The pool of all subnets.
    pub network: Ipv4Subnet,
    /// What the network config says.
    pub options: VxlanOptions,
    /// The interface that carries the tunnels.
    pub underlay: Underlay,
    /// Ethernet address of the node's own VTEP.
    pub vtep_mac: Mac,
    /// All other nodes. No two have the same subnet, and none has a VTEP address that another one has elsewhere.
    pub peers: Vec<Peer>,
}

/// The device `flannel.<VNI>`. Its name is the mark that it is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// VXLAN network identifier.
    pub vni: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flannel.{}", self.vni)
    }
}

/// The VXLAN device that should be there, up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanLink {
    /// Its name.
    pub device: Device,
    /// VXLAN network identifier.
    pub id: u32,
    /// Index of the interface that carries it.
    pub underlay: u32,
    /// Source address of outer packets.
    pub local: Ipv4Addr,
    /// UDP port.
    pub port: u16,
    /// Largest inner packet in bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Learn source addresses from received packets.
    pub learning: bool,
    /// Carry the group policy extension.
    pub gbp: bool,
}

/// The overlay that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredOverlay {
    /// The device.
    pub link: VxlanLink,
    /// Its address, with a prefix of 32 bits: the first of the own subnet.
    pub address: Ipv4Addr,
    /// Other addresses of the device inside this network are leftovers of ours.
    pub network: Ipv4Subnet,
    /// Ethernet address of each peer's first address.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Where each Ethernet address is.
    pub fdb: BTreeMap<Mac, Ipv4Addr>,
    /// The gateway, on link, of each peer's subnet.
    pub routes: BTreeMap<Ipv4Subnet, Ipv4Addr>,
}

/// The overlay that follows from the facts.
///
/// The device sends from the interface's own address, also when another one is published: the kernel does not send from an
/// address that the host does not have.
pub fn desired_overlay(facts: &OverlayFacts) -> DesiredOverlay {
    let OverlayFacts {
        own_subnet,
        network,
        options,
        underlay,
        vtep_mac,
        peers,
    } = facts;
    let mut overlay = DesiredOverlay {
        link: VxlanLink {
            device: Device { vni: options.vni },
            id: options.vni,
            underlay: underlay.ifindex,
            local: underlay.address,
            port: options.port,
            mtu: overlay_mtu(options, underlay),
            mac: *vtep_mac,
            learning: options.learning,
            gbp: options.gbp,
        },
        address: own_subnet.network(),
        network: *network,
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
        routes: BTreeMap::new(),
    };
    for peer in peers {
        let gateway = peer.subnet.network();
        overlay.neighbours.insert(gateway, peer.vtep_mac);
        overlay.fdb.insert(peer.vtep_mac, peer.public_ip);
        overlay.routes.insert(peer.subnet, gateway);
    }
    overlay
}

/// Largest packet of pods, in bytes: what the underlay, or the config where that is less, carries beside the 50 bytes of
/// VXLAN. More than the underlay carries is cut to what it carries, as the kernel would cut it.
pub fn overlay_mtu(options: &VxlanOptions, underlay: &Underlay) -> u32 {
    options
        .mtu
        .unwrap_or(underlay.mtu)
        .min(underlay.mtu)
        .saturating_sub(VXLAN_OVERHEAD_V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> OverlayFacts {
        let peer = |n: u8| Peer {
            subnet: format!("10.5.{n}.0/24").parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, n),
            vtep_mac: Mac::new([2, 0, 0, 0, 0, n]),
        };
        OverlayFacts {
            own_subnet: "10.5.1.0/24".parse().unwrap(),
            network: "10.5.0.0/16".parse().unwrap(),
            options: VxlanOptions::default(),
            underlay: Underlay {
                ifindex: 2,
                name: "eth0".into(),
                mtu: 1500,
                address: Ipv4Addr::new(192, 0, 2, 1),
                public_ip: Ipv4Addr::new(203, 0, 113, 1),
            },
            vtep_mac: Mac::new([2, 0, 0, 0, 0, 1]),
            peers: vec![peer(2), peer(3)],
        }
    }

    #[test]
    fn every_peer_has_its_three_entries() {
        let overlay = desired_overlay(&facts());
        let link = overlay.link;
        assert_eq!(link.device.to_string(), "flannel.1");
        assert_eq!((link.port, link.mtu, link.underlay), (8472, 1450, 2));
        assert_eq!(link.local.to_string(), "192.0.2.1");
        assert_eq!(overlay.address.to_string(), "10.5.1.0");
        let gateway = Ipv4Addr::new(10, 5, 2, 0);
        let mac = Mac::new([2, 0, 0, 0, 0, 2]);
        assert_eq!(overlay.routes[&"10.5.2.0/24".parse().unwrap()], gateway);
        assert_eq!(overlay.neighbours[&gateway], mac);
        assert_eq!(overlay.fdb[&mac].to_string(), "192.0.2.2");
        assert_eq!(
            (overlay.routes.len(), overlay.neighbours.len(), overlay.fdb.len()),
            (2, 2, 2)
        );
    }

    #[test]
    fn a_node_with_two_subnets_has_one_fdb_entry() {
        let mut facts = facts();
        facts.peers[1] = Peer {
            subnet: facts.peers[1].subnet,
            ..facts.peers[0]
        };
        let overlay = desired_overlay(&facts);
        assert_eq!(
            (overlay.routes.len(), overlay.neighbours.len(), overlay.fdb.len()),
            (2, 2, 1)
        );
    }

    #[test]
    fn the_mtu_is_the_least_of_config_and_underlay_less_the_overhead() {
        let OverlayFacts {
            mut options,
            mut underlay,
            ..
        } = facts();
        for (configured, interface, expected) in [
            (None, 1500, 1450),
            (Some(1400), 1500, 1350),
            (Some(9000), 1500, 1450),
            (None, 9001, 8951),
            (None, 40, 0),
        ] {
            options.mtu = configured;
            underlay.mtu = interface;
            assert_eq!(overlay_mtu(&options, &underlay), expected);
        }
    }
}
