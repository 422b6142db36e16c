//! VXLAN (RFC 7348): one device a family; each peer has a route, a neighbour and an FDB entry (flannel's `vxlan`).

use std::collections::HashMap;
use std::net::IpAddr;

use flannel_lease::Peer as LeasePeer;
use flannel_model::{
    Families, IpFamily, LeaseKey, Mac, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, VxlanLeaseData, VxlanOptions,
};

use super::{Backend, FamilyFacts, Reached, Reject, Useless, reached};
use crate::device::Device;
use crate::overlay::{Carrier, DesiredOverlay, LinkKind, VxlanLink, Way};

/// A VXLAN device a family.
#[derive(Debug, Clone, Copy)]
pub struct Vxlan {
    /// What the network config says.
    pub options: VxlanOptions,
    /// Ethernet address of the node's own VTEP of each family.
    pub macs: Families<Mac, Mac>,
    /// Outer packets over IPv4 have a UDP checksum.
    pub udp_checksum: bool,
}

impl Backend for Vxlan {
    fn overlay(&self, facts: &FamilyFacts<'_>, peers: &[&LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
        let mtu = overlay_mtu(&self.options, &facts.carrier);
        let mut overlay = facts.empty(mtu);
        let mac = match facts.family() {
            IpFamily::V4 => self.macs.ipv4(),
            IpFamily::V6 => self.macs.ipv6(),
        };
        // A network has the families that its VTEPs have.
        let Some(mac) = mac.copied() else {
            return (overlay, Vec::new());
        };
        let (found, mut useless) = reached(peers, facts.family(), "vxlan");
        let vteps = vteps(found, self.options.vni, mac, &mut useless);
        let device = Device::Vxlan {
            vni: self.options.vni,
            family: facts.family(),
        };
        let mut tunnel = facts.tunnel(device, mtu, LinkKind::Vxlan(self.link(facts, mac)));
        for (peer, mac) in vteps {
            // One on the same link may still see us behind a router.
            tunnel.senders.insert(peer.sender());
            *tunnel.vteps.entry(mac).or_default() += 1;
            let way = if self.options.direct_routing && facts.is_neighbour(peer.public_ip) {
                Way::direct(facts.carrier.ifindex, peer.public_ip)
            } else {
                let gateway = peer.subnet.network();
                tunnel.neighbours.insert(gateway, mac);
                tunnel.fdb.insert(mac, peer.public_ip);
                Way::tunnel(gateway)
            };
            overlay.routes.insert(peer.subnet, way);
        }
        overlay.peers = overlay.routes.len();
        overlay.tunnel = Some(tunnel);
        (overlay, useless)
    }
}

impl Vxlan {
    /// The device sends from the interface's own address, also when another one is published: the kernel does not send from an
    /// address that the host does not have.
    fn link(&self, facts: &FamilyFacts<'_>, mac: Mac) -> VxlanLink {
        let VxlanOptions {
            vni,
            port,
            learning,
            gbp,
            ..
        } = self.options;
        VxlanLink {
            id: vni,
            underlay: facts.carrier.ifindex,
            local: facts.carrier.address,
            port,
            mac,
            learning,
            gbp,
            udp_checksum: self.udp_checksum,
        }
    }
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

/// The VTEP of each peer. Those that are of no use join `useless`.
fn vteps<'a>(
    found: Vec<Reached<'a>>,
    vni: u32,
    own: Mac,
    useless: &mut Vec<Useless>,
) -> Vec<(Reached<'a>, Mac)> {
    let mut sound: Vec<(Reached<'_>, Mac)> = Vec::with_capacity(found.len());
    for peer in found {
        match vtep(&peer, vni, own) {
            Ok(mac) => sound.push((peer, mac)),
            Err(reject) => useless.push((peer.lease.key, reject)),
        }
    }
    // Oldest first, so that a newcomer cannot take over an address that is in use.
    sound.sort_by_key(|(peer, _)| (peer.lease.revisions.created, peer.lease.key));
    let mut holders: HashMap<Mac, (IpAddr, LeaseKey)> = HashMap::new();
    sound.retain(|(peer, mac)| {
        let (address, holder) = *holders.entry(*mac).or_insert((peer.public_ip, peer.lease.key));
        if address != peer.public_ip {
            useless.push((peer.lease.key, Reject::SharedMac { mac: *mac, holder }));
        }
        address == peer.public_ip
    });
    sound
}

fn vtep(peer: &Reached<'_>, vni: u32, own: Mac) -> Result<Mac, Reject> {
    let value = &peer.lease.value;
    let (field, raw) = match IpFamily::of(peer.public_ip) {
        IpFamily::V4 => ("BackendData", &value.backend_data),
        IpFamily::V6 => ("BackendV6Data", &value.backend_v6_data),
    };
    let bad = |problem: &str| Reject::Data {
        field,
        problem: format!("{problem}; expected VNI and VtepMAC"),
    };
    let raw = raw.as_ref().ok_or_else(|| bad("missing"))?;
    let data = VxlanLeaseData::parse(raw).map_err(|error| bad(&error.to_string()))?;
    match data.vtep_mac {
        _ if data.vni != vni => Err(Reject::Vni {
            theirs: data.vni,
            ours: vni,
        }),
        mac if !mac.is_unicast() => Err(Reject::NotUnicast(mac)),
        mac if mac == own => Err(Reject::OwnMac(mac)),
        mac => Ok(mac),
    }
}
