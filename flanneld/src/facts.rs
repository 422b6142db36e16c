//! From the lease, the config and the checked peers to the facts of each family's overlay.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use flannel_lease::{Peer, PeerChange};
use flannel_model::{Families, IpFamily, IpSubnet, LeaseKey, Mac};
use flannel_plan::backend::{Backend, FamilyFacts, Reject};
use flannel_plan::{DesiredOverlay, Exchange, Underlay};

use crate::backends::Chosen;
use crate::config_wait::Usable;
use crate::overlay::{Facts, Step, Steps};
use crate::udp::UdpFacts;

/// What the node is, beside its peers.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// The network config.
    pub usable: &'a Usable,
    /// The backend.
    pub backend: &'a Chosen,
    /// The interface for the tunnels.
    pub underlay: &'a Underlay,
    /// The lease.
    pub key: LeaseKey,
    /// Ethernet address of the VTEP of each family, for a backend that has them.
    pub macs: Option<Families<Mac, Mac>>,
    /// Packets to addresses of the own subnet that no pod has are dropped.
    pub blackhole: bool,
}

/// A record that is of no use to the backend: its key, and why.
pub type Useless = (String, String);

/// What follows from the peers.
#[derive(Debug)]
pub struct Worked {
    /// The facts.
    pub facts: Facts,
    /// The peers that are of no use in a family.
    pub useless: Vec<Useless>,
    /// Some of them are of no use only because of others.
    pub contested: bool,
}

/// The overlays of these peers.
struct Overlays {
    overlays: Families<DesiredOverlay, DesiredOverlay>,
    useless: Vec<(LeaseKey, Reject)>,
}

/// The facts. `None` when the lease does not have the families of the network, which only lasts until another lease is taken.
pub fn facts(own: Own<'_>, peers: &[&Peer]) -> Option<Worked> {
    let Overlays { overlays, useless } = overlays(own, peers)?;
    let contested = useless.iter().any(|(_, reject)| reject.is_because_of_another());
    let texts = useless
        .into_iter()
        .map(|(key, reject)| (key.to_string(), reject.to_string()));
    let mut useless: Vec<Useless> = texts.collect();
    // One record may be of no use in both families.
    useless.sort();
    useless.dedup();
    let both = [IpFamily::V4, IpFamily::V6];
    let carriers = both.into_iter().filter_map(|family| own.underlay.carrier(family));
    let facts = Facts {
        own: own.key,
        addresses: carriers.map(|carrier| carrier.address).collect(),
        carriers: BTreeSet::from([own.underlay.ifindex]),
        nodes: peers.iter().flat_map(|peer| node_addresses(peer)).collect(),
        udp: udp(own, peers),
        overlays,
        steps: Steps::default(),
    };
    Some(Worked {
        facts,
        useless,
        contested,
    })
}

/// What follows from the change of single peers for each family. `None` where that takes a look at all of them.
pub fn step(own: Own<'_>, changes: &[PeerChange]) -> Option<Step> {
    // The data path of udp takes the peers as a whole.
    own.backend.udp().is_none().then_some(())?;
    let before: Vec<&Peer> = changes
        .iter()
        .filter_map(|change| change.before.as_deref())
        .collect();
    let after: Vec<&Peer> = changes
        .iter()
        .filter_map(|change| change.after.as_deref())
        .collect();
    let (before, after) = (overlays(own, &before)?, overlays(own, &after)?);
    (before.useless.is_empty() && after.useless.is_empty()).then_some(())?;
    let (before4, before6) = split(before.overlays);
    let (after4, after6) = split(after.overlays);
    let pairs = [before4.zip(after4), before6.zip(after6)];
    let exchanges = pairs.into_iter().flatten();
    Some(Step {
        exchanges: exchanges
            .map(|(before, after)| Exchange { before, after })
            .collect(),
        ..Step::default()
    })
}

fn split<T>(families: Families<T, T>) -> (Option<T>, Option<T>) {
    match families {
        Families::Ipv4(ipv4) => (Some(ipv4), None),
        Families::Ipv6(ipv6) => (None, Some(ipv6)),
        Families::Dual(ipv4, ipv6) => (Some(ipv4), Some(ipv6)),
    }
}

fn overlays(own: Own<'_>, peers: &[&Peer]) -> Option<Overlays> {
    let backend = own.backend.backend(own.macs)?;
    let mut useless = Vec::new();
    let ipv4 = overlay(own, &*backend, IpFamily::V4, peers, &mut useless);
    let ipv6 = overlay(own, &*backend, IpFamily::V6, peers, &mut useless);
    let overlays = Families::new(ipv4, ipv6)?;
    let same = overlays.same_families(&own.usable.pools);
    same.then_some(Overlays { overlays, useless })
}

/// What the udp backend's data path needs, for a network with that backend. What is of no use was told by the overlays.
fn udp(own: Own<'_>, peers: &[&Peer]) -> Option<UdpFacts> {
    let backend = own.backend.udp()?;
    let address = own.underlay.carrier(backend.carried_by)?.address;
    let of = |family| backend.peers(family, peers).0;
    Some(UdpFacts {
        listen: SocketAddr::new(address, backend.options.port),
        peers: of(IpFamily::V4).into_iter().chain(of(IpFamily::V6)).collect(),
    })
}

/// Addresses under which a node is reached.
pub fn node_addresses(peer: &Peer) -> impl Iterator<Item = IpAddr> {
    let ipv4 = Some(IpAddr::from(peer.value.public_ip)).filter(|ip| !ip.is_unspecified());
    ipv4.into_iter().chain(peer.value.public_ipv6.map(IpAddr::from))
}

fn overlay(
    own: Own<'_>,
    backend: &dyn Backend,
    family: IpFamily,
    peers: &[&Peer],
    useless: &mut Vec<(LeaseKey, Reject)>,
) -> Option<DesiredOverlay> {
    let pools = &own.usable.pools;
    let (network, own_subnet): (IpSubnet, IpSubnet) = match family {
        IpFamily::V4 => (pools.ipv4()?.network.into(), own.key.ipv4()?.into()),
        IpFamily::V6 => (pools.ipv6()?.network.into(), own.key.ipv6()?.into()),
    };
    let facts = FamilyFacts {
        network,
        own_subnet,
        carrier: own.underlay.carrier(family)?,
        connected: &own.underlay.connected,
    };
    let (mut overlay, rejects) = backend.overlay(&facts, peers);
    if own.blackhole {
        overlay.blackholes.insert(own_subnet);
    }
    useless.extend(rejects);
    Some(overlay)
}
