//! Between plans and WireGuard's netlink: devices as facts, and operations as requests. No decision is made here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use flannel_model::{IpSubnet, WireguardPublicKey};
use flannel_netlink::NetlinkError;
use flannel_netlink::generic::{AllowedIp, PeerSpec, PeerState, Wireguard, WireguardDevice};
use flannel_plan::{DesiredOverlay, Device, ObservedWireguard, ObservedWireguardPeer, Op, WireguardPeer};

/// A session is not used for longer than this after its handshake (REJECT_AFTER_TIME, WireGuard whitepaper §6.1).
const SESSION: Duration = Duration::from_secs(180);

/// The endpoints that were written last.
pub type Written = BTreeMap<(Device, WireguardPublicKey), SocketAddr>;

/// What the WireGuard device of an overlay knows; `None` when there is none.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn observe(
    desired: &DesiredOverlay,
    written: &Written,
) -> Result<Option<ObservedWireguard>, NetlinkError> {
    let Some(device) = wireguard_device(desired) else {
        return Ok(None);
    };
    let Some(mut wireguard) = Wireguard::open()? else {
        return Ok(None);
    };
    let state = wireguard.device(&device.to_string())?;
    Ok(state.map(|state| observed(device, state, written, SystemTime::now())))
}

fn wireguard_device(desired: &DesiredOverlay) -> Option<Device> {
    let tunnel = desired.tunnel.as_ref()?;
    tunnel.wireguard.as_ref().map(|_| tunnel.link.device)
}

fn observed(device: Device, state: WireguardDevice, written: &Written, now: SystemTime) -> ObservedWireguard {
    let peers = state.peers.into_iter().map(|(key, peer)| {
        let written = written.get(&(device, key)).copied();
        (key, observed_peer(peer, written, now))
    });
    ObservedWireguard {
        public: state.public_key,
        port: state.port,
        peers: peers.collect(),
    }
}

fn observed_peer(peer: PeerState, written: Option<SocketAddr>, now: SystemTime) -> ObservedWireguardPeer {
    // A handshake in the future is one before the clock was set back.
    let age = peer.handshake.map(|at| now.duration_since(at).unwrap_or(SESSION));
    ObservedWireguardPeer {
        endpoint: peer.endpoint,
        written,
        is_live: age.is_some_and(|age| age < SESSION),
        preshared: peer.preshared,
        keepalive: peer.keepalive,
        allowed: peer
            .allowed
            .iter()
            .filter_map(|(address, length)| IpSubnet::around(*address, *length))
            .collect(),
    }
}

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
