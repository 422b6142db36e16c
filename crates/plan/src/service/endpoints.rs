//! Which endpoints take a port's traffic on this node.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use flannel_model::{EndpointSlice, EndpointState, ServicePort};

use super::facts::EndpointFacts;
use super::frontend::{Backend, Backends};
use super::node::ServiceNode;

/// The endpoints of one port and family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// For policy Cluster: of all nodes, as far as hints do not name nearer ones.
    pub cluster: Backends,
    /// For policy Local: those of this node.
    pub local: Backends,
    /// How many endpoints on this node are ready.
    pub local_ready: usize,
}

/// An endpoint, with what decides whether it is used.
struct Candidate<'a> {
    state: EndpointState,
    backend: Backend,
    for_zones: &'a [String],
    for_nodes: &'a [String],
}

/// Chooses as Kubernetes does: those that are ready, and where none is, those that still answer while they terminate
/// (ProxyTerminatingEndpoints), for all nodes and for this one separately. `unready_too` takes every endpoint for ready.
pub(super) fn choose(
    facts: &EndpointFacts,
    port: &ServicePort,
    ipv4: bool,
    unready_too: bool,
    node: &ServiceNode,
) -> Choice {
    let mut candidates = candidates(facts, port, ipv4, node);
    if unready_too {
        candidates.iter_mut().for_each(|c| c.state = EndpointState::Ready);
    }
    let of = |state: EndpointState| candidates.iter().filter(move |c| c.state == state);
    let ready: Vec<&Candidate<'_>> = of(EndpointState::Ready).collect();
    let local_ready = ready.iter().filter(|c| c.backend.local).count();
    let cluster: Vec<Backend> = if ready.is_empty() {
        of(EndpointState::Terminating).map(|c| c.backend).collect()
    } else {
        nearest(&ready, node)
    };
    let local: Vec<Backend> = if local_ready == 0 {
        let terminating = of(EndpointState::Terminating).map(|c| c.backend);
        terminating.filter(|b| b.local).collect()
    } else {
        let ready = ready.iter().map(|c| c.backend);
        ready.filter(|b| b.local).collect()
    };
    let cluster: Backends = cluster.into();
    let local = if *cluster == *local {
        cluster.clone()
    } else {
        local.into()
    };
    Choice {
        cluster,
        local,
        local_ready,
    }
}

/// Why an endpoint takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is not ready.
    NotReady,
    /// It is on its way out.
    Terminating,
    /// It is ready, and others are chosen.
    Elsewhere {
        /// Whether it runs on this node.
        local: bool,
    },
}

/// The endpoints of a port and family that are not among `used`.
pub(super) fn unused(
    facts: &EndpointFacts,
    port: &ServicePort,
    ipv4: bool,
    used: &BTreeSet<SocketAddr>,
    node: &ServiceNode,
) -> Vec<(SocketAddr, Why)> {
    let candidates = candidates(facts, port, ipv4, node).into_iter();
    let left = candidates.filter(|candidate| !used.contains(&candidate.backend.address));
    left.map(|candidate| {
        let local = candidate.backend.local;
        let why = match candidate.state {
            EndpointState::NotReady => Why::NotReady,
            EndpointState::Terminating => Why::Terminating,
            EndpointState::Ready => Why::Elsewhere { local },
        };
        (candidate.backend.address, why)
    })
    .collect()
}

/// The ready endpoints that hints give to this node: by its name first, then by its zone. A kind of hint counts only where every
/// ready endpoint has it and one is for this node; otherwise the hints are incomplete, and all are used.
fn nearest(ready: &[&Candidate<'_>], node: &ServiceNode) -> Vec<Backend> {
    let by_node = hinted(ready, |c| c.for_nodes, Some(&node.name));
    let chosen = by_node.or_else(|| hinted(ready, |c| c.for_zones, node.zone.as_ref()));
    chosen.unwrap_or_else(|| ready.iter().map(|c| c.backend).collect())
}

fn hinted<'a>(
    ready: &[&'a Candidate<'a>],
    hints: impl Fn(&'a Candidate<'a>) -> &'a [String],
    own: Option<&String>,
) -> Option<Vec<Backend>> {
    let own = own?;
    if ready.iter().any(|c| hints(c).is_empty()) {
        return None;
    }
    let fitting = ready.iter().filter(|c| hints(c).contains(own));
    let fitting: Vec<Backend> = fitting.map(|c| c.backend).collect();
    (!fitting.is_empty()).then_some(fitting)
}

/// Every endpoint of `port` and family once, in the order of their addresses and in its best state: a slice and its successor may both
/// hold it for a while. Among equals the one with a key of its own counts, for its weight.
fn candidates<'a>(
    facts: &'a EndpointFacts,
    port: &'a ServicePort,
    ipv4: bool,
    node: &'a ServiceNode,
) -> Vec<Candidate<'a>> {
    let single = facts.single.iter().filter(|((name, _), _)| *name == port.name);
    let single = single.map(|((_, at), endpoint)| Candidate {
        state: endpoint.state,
        backend: Backend {
            address: *at,
            weight: endpoint.weight,
            local: node.is_local(endpoint.node.as_deref(), at.ip()),
        },
        for_zones: &[],
        for_nodes: &[],
    });
    let sliced = facts
        .slices
        .iter()
        .flat_map(|(_, slice)| of_slice(slice, port, node));
    let of_family = |c: &Candidate<'_>| c.backend.address.is_ipv4() == ipv4;
    let mut out: Vec<Candidate<'a>> = single.chain(sliced).filter(of_family).collect();
    // stable: among equals the first stays
    out.sort_by_key(|c| (c.backend.address, c.state));
    out.dedup_by_key(|c| c.backend.address);
    out
}

/// Endpoints of a slice for the Service port that its own port of that name and protocol belongs to.
fn of_slice<'a>(
    slice: &'a EndpointSlice,
    port: &'a ServicePort,
    node: &'a ServiceNode,
) -> impl Iterator<Item = Candidate<'a>> {
    let ports = slice
        .ports
        .iter()
        .filter(|p| p.name == port.name && p.protocol == port.protocol);
    ports.flat_map(move |p| {
        slice.endpoints.iter().map(move |e| Candidate {
            state: e.state,
            backend: Backend {
                address: SocketAddr::new(e.address, p.port),
                weight: e.weight,
                local: node.is_local(e.node.as_deref(), e.address),
            },
            for_zones: e.hints.as_ref().map_or(&[], |h| &h.for_zones),
            for_nodes: e.hints.as_ref().map_or(&[], |h| &h.for_nodes),
        })
    })
}
