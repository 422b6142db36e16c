//! One frontend as elements.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use flannel_model::{IpSubnet, Scheduler};

use super::OUTSIDE_SLOTS;
use super::chains::{PickChain, Place, Spread};
use super::element::{Key, NftData, NftElement, NftSet, endpoint};
use super::slots::{keep_places, wanted};
use crate::service::frontend::{Backend, Frontend, FrontendKey, FrontendKind};

/// A frontend in the terms of this programmer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    spread: Spread,
    affinity: Option<u32>,
    source_ranges: Option<Arc<[IpSubnet]>>,
    masquerade: Masquerade,
    /// What stands in the slots for everybody, or for clients inside. None: refused.
    inside: Box<[SocketAddr]>,
    /// What stands in the slots for clients outside, where it differs.
    outside: Option<Box<[SocketAddr]>>,
}

/// Whose source address is replaced by the node's, apart from pods that reach themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Masquerade {
    /// That of everybody but pods, as the rule for service CIDRs says.
    ByCidr,
    /// That of everybody but pods.
    All,
    /// That of the node itself: clients outside stay visible.
    Node,
}

/// Translates a frontend. What stood in the slots before keeps its slot where it can.
pub fn translate(frontend: &Frontend, before: Option<&Translated>) -> Translated {
    let spread = Spread::of(&frontend.scheduler, frontend.flags);
    let slots = |backends: &[Backend], old: Option<&[SocketAddr]>| {
        place(backends, &frontend.scheduler, spread, old.unwrap_or_default())
    };
    let masquerade = match (frontend.kind, frontend.keep_source) {
        (FrontendKind::ClusterIp, _) => Masquerade::ByCidr,
        (_, true) => Masquerade::Node,
        (_, false) => Masquerade::All,
    };
    let differs = frontend.inside != frontend.outside;
    Translated {
        spread,
        affinity: frontend.affinity,
        source_ranges: frontend.source_ranges.clone(),
        masquerade,
        inside: slots(&frontend.inside, before.map(|b| &*b.inside)),
        outside: differs.then(|| slots(&frontend.outside, before.and_then(|b| b.outside.as_deref()))),
    }
}

/// Nodes agree about what is drawn by a hash: there the order is that of the addresses.
fn place(
    backends: &[Backend],
    scheduler: &Scheduler,
    spread: Spread,
    old: &[SocketAddr],
) -> Box<[SocketAddr]> {
    let wanted = wanted(backends, scheduler);
    match spread {
        Spread::Random => keep_places(old, wanted).into(),
        Spread::Source | Spread::SourcePort | Spread::Destination => wanted.into(),
    }
}

impl Translated {
    /// With nothing but what stands in the slots: what a listing of the kernel's tells.
    pub(super) fn with_slots(inside: Vec<SocketAddr>, outside: Option<Vec<SocketAddr>>) -> Self {
        Self {
            spread: Spread::Random,
            affinity: None,
            source_ranges: None,
            masquerade: Masquerade::ByCidr,
            inside: inside.into(),
            outside: outside.map(Into::into),
        }
    }

    /// The endpoints that take new connections, for whomever.
    pub fn endpoints(&self) -> BTreeSet<SocketAddr> {
        let outside = self.outside.iter().flatten();
        self.inside.iter().chain(outside).copied().collect()
    }

    /// Seconds for which a client keeps its endpoint.
    pub fn affinity(&self) -> Option<u32> {
        self.affinity
    }

    /// The chains that its elements name.
    pub fn chains(&self, key: &FrontendKey) -> impl Iterator<Item = PickChain> + use<> {
        let chain =
            |slots: &[SocketAddr], outside| (!slots.is_empty()).then(|| self.chain(key, slots, outside));
        let inside = chain(&self.inside, false);
        let outside = self.outside.as_deref().and_then(|slots| chain(slots, true));
        inside.into_iter().chain(outside)
    }

    fn chain(&self, key: &FrontendKey, slots: &[SocketAddr], outside: bool) -> PickChain {
        PickChain {
            place: match key {
                FrontendKey::Address(_) => Place::Address,
                FrontendKey::NodePort(_) => Place::NodePort,
            },
            outside,
            spread: self.spread,
            sticky: self.affinity.is_some(),
            slots: u32::try_from(slots.len()).unwrap_or(1),
        }
    }
}

/// Name of the chain that remembers a client for so many seconds.
pub fn remember_chain(seconds: u32) -> String {
    format!("remember-{seconds}")
}

/// The key by which a packet finds a frontend.
pub(super) fn frontend_key(key: &FrontendKey) -> Key {
    match key {
        FrontendKey::Address(at) => Key::default().ip(at.address).protocol(at.protocol).port(at.port),
        FrontendKey::NodePort(at) => Key::default().protocol(at.protocol).port(at.port),
    }
}

/// The key under which a frontend stands in the maps of frontends, or of node ports.
pub fn entrance(key: &FrontendKey) -> Vec<u8> {
    frontend_key(key).0
}

/// The sets of frontends by address, or those of node ports.
struct Sets {
    frontends: NftSet,
    outside: NftSet,
    backends: NftSet,
    refused: NftSet,
    refused_outside: NftSet,
    external: NftSet,
    affine: NftSet,
    /// What counts packets, each way.
    carried: [NftSet; 2],
}

impl Sets {
    fn of(key: &FrontendKey) -> Self {
        match key {
            FrontendKey::Address(_) => Self {
                frontends: NftSet::Frontends,
                outside: NftSet::FrontendsOutside,
                backends: NftSet::Backends,
                refused: NftSet::Refused,
                refused_outside: NftSet::RefusedOutside,
                external: NftSet::External,
                affine: NftSet::Affine,
                carried: [NftSet::Received, NftSet::Sent],
            },
            FrontendKey::NodePort(_) => Self {
                frontends: NftSet::NodePorts,
                outside: NftSet::NodePortsOutside,
                backends: NftSet::NodePortBackends,
                refused: NftSet::RefusedPorts,
                refused_outside: NftSet::RefusedPortsOutside,
                external: NftSet::ExternalPorts,
                affine: NftSet::AffinePorts,
                carried: [NftSet::ReceivedPorts, NftSet::SentPorts],
            },
        }
    }
}

/// All elements of a frontend, in its family's table.
pub fn elements(key: &FrontendKey, frontend: &Translated) -> BTreeSet<NftElement> {
    let sets = Sets::of(key);
    let at = frontend_key(key);
    // whoever answers, so that the counts outlive a time without endpoints
    let mut out = BTreeSet::from(sets.carried.map(|set| NftElement::new(set, at.0.clone())));
    if frontend.inside.is_empty() && frontend.masquerade == Masquerade::ByCidr {
        // the guard refuses whatever is left of the service CIDRs
    } else if frontend.inside.is_empty() {
        out.insert(NftElement::new(sets.refused, at.0.clone()));
    } else {
        let chain = frontend.chain(key, &frontend.inside, false).name();
        out.insert(NftElement::mapping(
            sets.frontends,
            at.0.clone(),
            NftData::Goto(chain),
        ));
        out.extend(slots(&sets, &at, &frontend.inside, 0));
    }
    match frontend.outside.as_deref() {
        None => {}
        Some([]) => {
            // accept: those for clients inside are not for them; the guard refuses
            out.insert(NftElement::mapping(sets.outside, at.0.clone(), NftData::Accept));
            out.insert(NftElement::new(sets.refused_outside, at.0.clone()));
        }
        Some(outside) => {
            let chain = frontend.chain(key, outside, true).name();
            out.insert(NftElement::mapping(
                sets.outside,
                at.0.clone(),
                NftData::Goto(chain),
            ));
            out.extend(slots(&sets, &at, outside, OUTSIDE_SLOTS));
        }
    }
    let masquerade = match frontend.masquerade {
        Masquerade::ByCidr => None,
        Masquerade::All => Some("masquerade-all"),
        Masquerade::Node => Some("masquerade-node"),
    };
    let chain = |name: &str| NftData::Goto(name.to_owned());
    out.extend(masquerade.map(|name| NftElement::mapping(sets.external, at.0.clone(), chain(name))));
    let remember = frontend.affinity.map(remember_chain);
    out.extend(remember.map(|name| NftElement::mapping(sets.affine, at.0.clone(), chain(&name))));
    if let (FrontendKey::Address(_), Some(ranges)) = (key, &frontend.source_ranges) {
        out.insert(NftElement::new(NftSet::Restricted, at.0.clone()));
        out.extend(outermost(ranges, key.is_ipv4()).map(|range| NftElement {
            key_end: Some(at.clone().ip(range.last()).0),
            ..NftElement::new(NftSet::Allowed, at.clone().ip(range.network()).0)
        }));
    }
    out
}

/// The kernel refuses ranges that overlap.
fn outermost(ranges: &[IpSubnet], ipv4: bool) -> impl Iterator<Item = &IpSubnet> {
    let inside_another = |r: &IpSubnet| ranges.iter().any(|other| other != r && other.contains(r));
    ranges
        .iter()
        .filter(move |r| r.is_ipv4() == ipv4 && !inside_another(r))
}

fn slots(sets: &Sets, at: &Key, slots: &[SocketAddr], first: u32) -> impl Iterator<Item = NftElement> {
    (first..).zip(slots).map(|(slot, address)| {
        NftElement::mapping(sets.backends, at.clone().slot(slot).0, endpoint(*address))
    })
}

/// What leads from one state of a frontend to another: elements to delete, then elements to add.
pub fn changes(
    key: &FrontendKey,
    before: Option<&Translated>,
    after: Option<&Translated>,
) -> (Vec<NftElement>, Vec<NftElement>) {
    let all = |frontend: Option<&Translated>| frontend.map(|f| elements(key, f)).unwrap_or_default();
    let (before, after) = (all(before), all(after));
    let delete = before.difference(&after).cloned().collect();
    let add = after.difference(&before).cloned().collect();
    (delete, add)
}
