//! From the lease, the config and the checked peers to the facts of each family's overlay.

use flannel_lease::Peer;
use flannel_model::{Families, IpFamily, IpSubnet, LeaseKey, Mac};
use flannel_plan::{OverlayFacts, Underlay, vxlan_peers};

use crate::config_wait::Usable;
use crate::overlay::Facts;

/// What the node is, beside its peers.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// The network config.
    pub usable: &'a Usable,
    /// The interface for the tunnels.
    pub underlay: &'a Underlay,
    /// The lease.
    pub key: LeaseKey,
    /// Ethernet address of the VTEP of each family.
    pub macs: Families<Mac, Mac>,
}

/// A record that is of no use to the backend: its key, and why.
pub type Useless = (String, String);

/// The facts, and the peers that are of no use in a family. `None` when the lease does not have the families of the network,
/// which only lasts until another lease is taken.
pub fn facts(own: Own<'_>, peers: &[&Peer]) -> Option<(Facts, Vec<Useless>)> {
    let mut useless = Vec::new();
    let ipv4 = overlay(own, IpFamily::V4, peers, &mut useless);
    let ipv6 = overlay(own, IpFamily::V6, peers, &mut useless);
    let overlays = Families::new(ipv4, ipv6)?;
    overlays.same_families(&own.usable.pools).then_some(())?;
    // One record may be of no use in both families.
    useless.sort();
    useless.dedup();
    let facts = Facts {
        own: own.key,
        overlays,
    };
    Some((facts, useless))
}

fn overlay(
    own: Own<'_>,
    family: IpFamily,
    peers: &[&Peer],
    useless: &mut Vec<Useless>,
) -> Option<OverlayFacts> {
    let pools = &own.usable.pools;
    let (network, own_subnet, mac): (IpSubnet, IpSubnet, Mac) = match family {
        IpFamily::V4 => (
            pools.ipv4()?.network.into(),
            own.key.ipv4()?.into(),
            *own.macs.ipv4()?,
        ),
        IpFamily::V6 => (
            pools.ipv6()?.network.into(),
            own.key.ipv6()?.into(),
            *own.macs.ipv6()?,
        ),
    };
    let carrier = own.underlay.carrier(family)?;
    let (peers, rejects) = vxlan_peers(peers.iter().copied(), family, own.usable.vxlan.vni, mac);
    useless.extend(
        rejects
            .into_iter()
            .map(|(key, reason)| (key.to_string(), reason.to_string())),
    );
    Some(OverlayFacts {
        own_subnet,
        network,
        options: own.usable.vxlan,
        carrier,
        vtep_mac: mac,
        peers,
    })
}
