//! Plain routes: every node is on one link, and is the gateway of its pods (flannel's `host-gw`).

use flannel_lease::Peer as LeasePeer;

use super::{Backend, FamilyFacts, Reject, Useless, reached};
use crate::overlay::{DesiredOverlay, Way};

/// Plain routes to nodes on the same link.
#[derive(Debug, Clone, Copy)]
pub struct HostGw;

impl Backend for HostGw {
    fn overlay(&self, facts: &FamilyFacts<'_>, peers: &[&LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
        let mut overlay = facts.empty(facts.carrier.mtu);
        let (found, mut useless) = reached(peers, facts.family(), "host-gw");
        for peer in found {
            if facts.is_neighbour(peer.public_ip) {
                let way = Way::direct(facts.carrier.ifindex, peer.public_ip);
                overlay.routes.insert(peer.subnet, way);
            } else {
                useless.push((peer.lease.key, Reject::NotConnected(peer.public_ip)));
            }
        }
        overlay.peers = overlay.routes.len();
        (overlay, useless)
    }
}
