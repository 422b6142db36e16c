//! IP in IP (RFC 2003): the least overhead of all tunnels, IPv4 only (flannel's `ipip`).

use flannel_lease::Peer as LeasePeer;

use super::{Backend, FamilyFacts, Useless, reached};
use crate::device::Device;
use crate::overlay::{DesiredOverlay, IpipLink, LinkKind, Way};

/// Bytes of the outer IPv4 header.
pub const IPIP_OVERHEAD: u32 = 20;

/// One tunnel device; each route names the node at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Ipip {
    /// Plain routes to nodes on the same link.
    pub direct_routing: bool,
}

impl Backend for Ipip {
    fn overlay(&self, facts: &FamilyFacts<'_>, peers: &[&LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
        let mtu = facts.carrier.mtu.saturating_sub(IPIP_OVERHEAD);
        let mut overlay = facts.empty(mtu);
        let link = IpipLink {
            local: facts.carrier.address,
        };
        let mut tunnel = facts.tunnel(Device::Ipip, mtu, LinkKind::Ipip(link));
        let (found, useless) = reached(peers, facts.family(), "ipip");
        for peer in found {
            tunnel.senders.insert(peer.sender());
            let way = if self.direct_routing && facts.is_neighbour(peer.public_ip) {
                Way::direct(facts.carrier.ifindex, peer.public_ip)
            } else {
                Way::tunnel(peer.public_ip)
            };
            overlay.routes.insert(peer.subnet, way);
        }
        overlay.peers = overlay.routes.len();
        overlay.tunnel = Some(tunnel);
        (overlay, useless)
    }
}
