//! Single peers' part of an overlay in the place of another: what changes with them, without a look at all the others.

use std::collections::BTreeMap;

use crate::overlay::{DesiredOverlay, Tunnel, WireguardPeer, WireguardTunnel};

/// What a backend makes of the same few peers alone, before and after they changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The overlay of those peers as they were.
    pub before: DesiredOverlay,
    /// The overlay of those peers as they are.
    pub after: DesiredOverlay,
}

impl DesiredOverlay {
    /// Whether single peers can be exchanged by themselves. They cannot where they meet others: an Ethernet address, a key or a subnet
    /// that somebody else has as well, or had. The backend decides then, with all peers before it. It has to decide also where a record
    /// is of no use because of another one ([`Reject::is_because_of_another`](crate::backend::Reject::is_because_of_another)).
    pub fn admits(&self, exchange: &Exchange) -> bool {
        let Exchange { before, after } = exchange;
        self.is_around(before) && self.is_around(after) && has_room(self, before, after)
    }

    /// Puts what became of single peers in the place of what they were, in an overlay that [`admits`](Self::admits) it.
    pub fn exchange(&mut self, exchange: &Exchange) {
        let Exchange { before, after } = exchange;
        self.peers = (self.peers + after.peers).saturating_sub(before.peers);
        swap(&mut self.routes, &before.routes, &after.routes);
        if let (Some(tunnel), Some(before), Some(after)) = (&mut self.tunnel, &before.tunnel, &after.tunnel) {
            swap_on(tunnel, before, after);
        }
    }

    /// Whether a part is one of this overlay: all that does not depend on peers is the same.
    fn is_around(&self, part: &Self) -> bool {
        let fixed = |overlay: &Self| {
            let tunnel = overlay.tunnel.as_ref().map(|tunnel| {
                let wireguard = tunnel.wireguard.as_ref();
                let identity = wireguard.map(|device| (device.private, device.public, device.port));
                (tunnel.link, tunnel.address, identity)
            });
            (overlay.network, overlay.own_subnet, overlay.mtu, tunnel)
        };
        fixed(self) == fixed(part) && self.blackholes == part.blackholes
    }
}

fn has_room(whole: &DesiredOverlay, before: &DesiredOverlay, after: &DesiredOverlay) -> bool {
    let on_tunnel = match (&whole.tunnel, &before.tunnel, &after.tunnel) {
        (Some(whole), Some(before), Some(after)) => {
            fits(&whole.neighbours, &before.neighbours, &after.neighbours)
                && fits(&whole.fdb, &before.fdb, &after.fdb)
                && fits(&whole.vteps, &before.vteps, &after.vteps)
                && fits(peers(whole), peers(before), peers(after))
                && before.senders.is_subset(&whole.senders)
                && after
                    .senders
                    .difference(&before.senders)
                    .all(|sender| !whole.senders.contains(sender))
        }
        (_, _, _) => true,
    };
    on_tunnel && fits(&whole.routes, &before.routes, &after.routes)
}

/// Whether what there was is there, and no other's, and what comes meets nobody.
fn fits<K: Ord, V: PartialEq>(
    whole: &BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> bool {
    let mut new = after.keys().filter(|key| !before.contains_key(key));
    before.iter().all(|(key, value)| whole.get(key) == Some(value)) && new.all(|key| !whole.contains_key(key))
}

fn swap<K: Ord + Clone, V: Clone>(
    whole: &mut BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) {
    for key in before.keys() {
        whole.remove(key);
    }
    whole.extend(after.iter().map(|(key, value)| (key.clone(), value.clone())));
}

fn swap_on(tunnel: &mut Tunnel, before: &Tunnel, after: &Tunnel) {
    swap(&mut tunnel.neighbours, &before.neighbours, &after.neighbours);
    swap(&mut tunnel.fdb, &before.fdb, &after.fdb);
    swap(&mut tunnel.vteps, &before.vteps, &after.vteps);
    for sender in &before.senders {
        tunnel.senders.remove(sender);
    }
    tunnel.senders.extend(&after.senders);
    if let Some(WireguardTunnel { peers: whole, .. }) = &mut tunnel.wireguard {
        swap(whole, peers(before), peers(after));
    }
}

type Peers = BTreeMap<flannel_model::WireguardPublicKey, WireguardPeer>;

/// The peers of the WireGuard device; none of another.
fn peers(tunnel: &Tunnel) -> &Peers {
    static NONE: Peers = Peers::new();
    tunnel.wireguard.as_ref().map_or(&NONE, |device| &device.peers)
}
