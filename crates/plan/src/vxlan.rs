//! The VXLAN overlay that a node should have: one for each family, with a device, addresses and routes of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use flannel_model::{IpFamily, IpSubnet, Mac, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, VxlanOptions};

/// Another node, as its lease describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its pods.
    pub subnet: IpSubnet,
    /// Where outer packets for it go.
    pub public_ip: IpAddr,
    /// Ethernet address of its VTEP.
    pub vtep_mac: Mac,
}

/// The interface that carries the tunnels of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrier {
    /// Index.
    pub ifindex: u32,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its address, from which outer packets come.
    pub address: IpAddr,
}

/// All that the overlay of one family of a node follows from. Everything in it is of that family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayFacts {
    /// The node's own subnet.
    pub own_subnet: IpSubnet,
    /// The pool of all subnets.
    pub network: IpSubnet,
    /// What the network config says.
    pub options: VxlanOptions,
    /// The interface that carries the tunnels.
    pub carrier: Carrier,
    /// Ethernet address of the node's own VTEP.
    pub vtep_mac: Mac,
    /// All other nodes. No two have the same subnet, and none has a VTEP address that another one has elsewhere.
    pub peers: Vec<Peer>,
}

/// The device `flannel.<VNI>` or, for IPv6, `flannel-v6.<VNI>`. Its name is the mark that it is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// VXLAN network identifier.
    pub vni: u32,
    /// What it carries, and what carries it.
    pub family: IpFamily,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            IpFamily::V4 => write!(f, "flannel.{}", self.vni),
            IpFamily::V6 => write!(f, "flannel-v6.{}", self.vni),
        }
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
    pub local: IpAddr,
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
    /// Its address, with the longest prefix: the first of the own subnet.
    pub address: IpAddr,
    /// Other addresses of the device inside this network are leftovers of ours.
    pub network: IpSubnet,
    /// Ethernet address of each peer's first address.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Where each Ethernet address is.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// The gateway, on link, of each peer's subnet.
    pub routes: BTreeMap<IpSubnet, IpAddr>,
}

impl OverlayFacts {
    /// The device that the overlay needs.
    pub fn device(&self) -> Device {
        Device {
            vni: self.options.vni,
            family: IpFamily::of(self.own_subnet.network()),
        }
    }
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
        carrier,
        vtep_mac,
        peers,
    } = facts;
    let mut overlay = DesiredOverlay {
        link: VxlanLink {
            device: facts.device(),
            id: options.vni,
            underlay: carrier.ifindex,
            local: carrier.address,
            port: options.port,
            mtu: overlay_mtu(options, carrier),
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

/// Largest packet of pods of the family, in bytes: what the underlay, or the config where that is less, carries beside the
/// 50 bytes of VXLAN over IPv4 or the 70 over IPv6. More than the underlay carries is cut to what it carries, as the kernel
/// would cut it.
pub fn overlay_mtu(options: &VxlanOptions, carrier: &Carrier) -> u32 {
    let overhead = match IpFamily::of(carrier.address) {
        IpFamily::V4 => VXLAN_OVERHEAD_V4,
        IpFamily::V6 => VXLAN_OVERHEAD_V6,
    };
    options
        .mtu
        .unwrap_or(carrier.mtu)
        .min(carrier.mtu)
        .saturating_sub(overhead)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> OverlayFacts {
        let peer = |n: u8| Peer {
            subnet: format!("10.5.{n}.0/24").parse().unwrap(),
            public_ip: IpAddr::from([192, 0, 2, n]),
            vtep_mac: Mac::new([2, 0, 0, 0, 0, n]),
        };
        OverlayFacts {
            own_subnet: "10.5.1.0/24".parse().unwrap(),
            network: "10.5.0.0/16".parse().unwrap(),
            options: VxlanOptions::default(),
            carrier: Carrier {
                ifindex: 2,
                mtu: 1500,
                address: IpAddr::from([192, 0, 2, 1]),
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
        let gateway = IpAddr::from([10, 5, 2, 0]);
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
            mut carrier,
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
            carrier.mtu = interface;
            assert_eq!(overlay_mtu(&options, &carrier), expected);
        }
    }

    #[test]
    fn ipv6_has_a_device_and_an_overhead_of_its_own() {
        let facts = OverlayFacts {
            own_subnet: "fd00:5:0:1::/64".parse().unwrap(),
            network: "fd00:5::/48".parse().unwrap(),
            carrier: Carrier {
                address: "2001:db8::1".parse().unwrap(),
                ..facts().carrier
            },
            peers: vec![Peer {
                subnet: "fd00:5:0:2::/64".parse().unwrap(),
                public_ip: "2001:db8::2".parse().unwrap(),
                vtep_mac: Mac::new([2, 0, 0, 0, 0, 2]),
            }],
            ..facts()
        };
        let overlay = desired_overlay(&facts);
        assert_eq!(overlay.link.device.to_string(), "flannel-v6.1");
        assert_eq!(overlay.link.mtu, 1430);
        assert_eq!(overlay.address.to_string(), "fd00:5:0:1::");
        let gateway: IpAddr = "fd00:5:0:2::".parse().unwrap();
        assert_eq!(overlay.routes[&"fd00:5:0:2::/64".parse().unwrap()], gateway);
        assert!(overlay.neighbours.contains_key(&gateway));
    }
}
