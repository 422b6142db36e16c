//! Brings key, port and peers of a WireGuard device in order.

use crate::observed::{ObservedWireguard, ObservedWireguardPeer};
use crate::op::Op;
use crate::overlay::{Tunnel, WireguardPeer};

/// The changes that make the device know what it should. A subnet belongs to one peer at a time, and goes over to the one that
/// is written last: peers that lose one go first.
pub(super) fn ops(tunnel: &Tunnel, observed: Option<&ObservedWireguard>, ops: &mut Vec<Op>) {
    let Some(wanted) = &tunnel.wireguard else { return };
    let device = tunnel.link.device;
    let nothing = ObservedWireguard::default();
    let observed = observed.unwrap_or(&nothing);
    if observed.public != Some(wanted.public) || observed.port != wanted.port {
        ops.push(Op::WireguardIdentity {
            device,
            private: wanted.private,
            port: wanted.port,
        });
    }
    let gone = observed
        .peers
        .keys()
        .filter(|key| !wanted.peers.contains_key(key));
    ops.extend(gone.map(|key| Op::WireguardPeerRemove { device, key: *key }));
    let changed = wanted.peers.iter().filter_map(|(key, peer)| {
        let endpoint = endpoint_differs(peer, observed.peers.get(key))?;
        Some(Op::WireguardPeerSet {
            device,
            key: *key,
            peer: peer.clone(),
            endpoint,
        })
    });
    ops.extend(changed);
}

/// Whether the endpoint is to be written as well; `None` when nothing is to be written at all.
///
/// A peer that is heard from is where it was heard from, whatever its lease says: it may be behind a NAT. Only when the lease
/// has changed since it was written, or nothing is heard, does the lease count.
fn endpoint_differs(wanted: &WireguardPeer, observed: Option<&ObservedWireguardPeer>) -> Option<bool> {
    let Some(observed) = observed else {
        return Some(true);
    };
    let moved = match observed.written {
        Some(written) => written != wanted.endpoint,
        None => !observed.is_live && observed.endpoint != Some(wanted.endpoint),
    };
    let rest = observed.preshared == wanted.preshared
        && observed.keepalive == wanted.keepalive
        && observed.allowed == wanted.allowed;
    (moved || !rest).then_some(moved)
}
