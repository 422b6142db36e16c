//! Between plans and WireGuard's netlink: devices as facts, and operations as requests. No decision is made here.

use std::collections::BTreeSet;

use flannel_netlink::NetlinkError;
use flannel_netlink::generic::{AllowedIp, PeerSpec, Wireguard};
use flannel_netlink::overlay::Written;
use flannel_plan::{Op, WireguardPeer};

/// Whether an operation is carried out here.
pub fn concerns(op: &Op) -> bool {
    matches!(
        op,
        Op::WireguardIdentity { .. } | Op::WireguardPeerSet { .. } | Op::WireguardPeerRemove { .. }
    )
}

/// Carries out the operations on WireGuard devices, and says what became of each.
pub fn apply(ops: &[&Op]) -> Vec<Result<(), NetlinkError>> {
    if ops.is_empty() {
        return Vec::new();
    }
    match Wireguard::open() {
        Ok(Some(mut wireguard)) => ops.iter().map(|op| carry_out(&mut wireguard, op)).collect(),
        Ok(None) => {
            let missing = |op: &&Op| {
                let explanation = "this kernel has no WireGuard (module wireguard)";
                Err(NetlinkError::unsupported(op.to_string(), explanation))
            };
            ops.iter().map(missing).collect()
        }
        Err(error) => ops.iter().map(|_| Err(error.clone())).collect(),
    }
}

fn carry_out(wireguard: &mut Wireguard, op: &Op) -> Result<(), NetlinkError> {
    let result = match op {
        Op::WireguardIdentity {
            device,
            private,
            port,
        } => wireguard.set_identity(&device.to_string(), private, *port),
        Op::WireguardPeerSet {
            device,
            key,
            peer,
            endpoint,
        } => wireguard.set_peers(&device.to_string(), [(key, &spec(peer, *endpoint))]),
        Op::WireguardPeerRemove { device, key } => wireguard.remove_peers(&device.to_string(), [key]),
        _ => Ok(()),
    };
    result.map_err(|error| NetlinkError {
        what: op.to_string(),
        ..error
    })
}

fn spec(peer: &WireguardPeer, endpoint: bool) -> PeerSpec {
    let allowed: BTreeSet<AllowedIp> = peer.allowed.iter().map(|s| (s.network(), s.length())).collect();
    PeerSpec {
        endpoint: endpoint.then_some(peer.endpoint),
        preshared: peer.preshared,
        keepalive: peer.keepalive,
        allowed,
    }
}

/// Remembers the endpoints that were written, and forgets those of peers that are gone.
pub fn remember(written: &mut Written, op: &Op) {
    match op {
        Op::WireguardPeerSet {
            device,
            key,
            peer,
            endpoint: true,
        } => {
            written.insert((*device, *key), peer.endpoint);
        }
        Op::WireguardPeerRemove { device, key } => {
            written.remove(&(*device, *key));
        }
        Op::LinkCreate(link) => written.retain(|(device, _), _| *device != link.device),
        _ => {}
    }
}
