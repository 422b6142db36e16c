//! What is known about the Services of the cluster, and which endpoints take a port's traffic.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use flannel_model::{
    EndpointSlice, EndpointState, Ipv4Subnet, ServiceEndpoint, ServiceKey, ServiceName, ServicePort,
    ServiceRecord, ServiceSpec, ServicesConfig,
};

/// What matters about the node itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceNode {
    /// Its own address, the source of what it sends to virtual servers.
    pub address: Ipv4Addr,
    /// The pod network of the cluster.
    pub network: Ipv4Subnet,
    /// The pods of this node.
    pub subnet: Ipv4Subnet,
}

/// A spec and the etcd revision that created its key: the older of two rivals wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFact {
    /// The spec.
    pub spec: ServiceSpec,
    /// Revision in which the key was made.
    pub create_revision: i64,
}

/// Endpoints of one Service, from all their sources.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointFacts {
    /// Slices by their name.
    pub slices: BTreeMap<String, EndpointSlice>,
    /// Endpoints with keys of their own, by port name and address.
    pub single: BTreeMap<(String, SocketAddr), ServiceEndpoint>,
}

/// Everything known about the Services of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFacts {
    /// The node.
    pub node: ServiceNode,
    /// What holds for all Services.
    pub config: ServicesConfig,
    /// The Services.
    pub specs: BTreeMap<ServiceName, SpecFact>,
    /// Their endpoints.
    pub endpoints: BTreeMap<ServiceName, EndpointFacts>,
}

impl ServiceFacts {
    /// Nothing but the node is known yet.
    pub fn new(node: ServiceNode) -> Self {
        Self {
            node,
            config: ServicesConfig::default(),
            specs: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        }
    }

    /// Files one record under what its key says. A record of another kind than its key is dropped.
    pub fn add(&mut self, key: ServiceKey, record: ServiceRecord, create_revision: i64) {
        match (key, record) {
            (ServiceKey::Config, ServiceRecord::Config(config)) => self.config = config,
            (ServiceKey::Spec(name), ServiceRecord::Spec(spec)) => {
                self.specs.insert(
                    name,
                    SpecFact {
                        spec,
                        create_revision,
                    },
                );
            }
            (ServiceKey::Slice { service, slice }, ServiceRecord::Slice(value)) => {
                self.endpoints
                    .entry(service)
                    .or_default()
                    .slices
                    .insert(slice, value);
            }
            (
                ServiceKey::Endpoint {
                    service,
                    port_name,
                    address,
                },
                ServiceRecord::Endpoint(value),
            ) => {
                self.endpoints
                    .entry(service)
                    .or_default()
                    .single
                    .insert((port_name, address), value);
            }
            (
                _,
                ServiceRecord::Config(_)
                | ServiceRecord::Spec(_)
                | ServiceRecord::Slice(_)
                | ServiceRecord::Endpoint(_),
            ) => {}
        }
    }

    /// The IPv4 endpoints that take the traffic of `port`, with their weights: those that are ready, and where none is, those
    /// that still answer while they terminate (Kubernetes' ProxyTerminatingEndpoints).
    pub(crate) fn choose(&self, service: &ServiceName, port: &ServicePort) -> BTreeMap<SocketAddr, u32> {
        let Some(endpoints) = self.endpoints.get(service) else {
            return BTreeMap::new();
        };
        let candidates = endpoints.candidates(port);
        let of = |wanted: EndpointState| -> BTreeMap<SocketAddr, u32> {
            let fitting = candidates.iter().filter(|(_, (state, _))| *state == wanted);
            fitting.map(|(at, (_, weight))| (*at, *weight)).collect()
        };
        let ready = of(EndpointState::Ready);
        if ready.is_empty() {
            of(EndpointState::Terminating)
        } else {
            ready
        }
    }
}

impl EndpointFacts {
    /// Every endpoint of `port` once, in its best state. Among equals the one with a key of its own counts, for its weight.
    fn candidates(&self, port: &ServicePort) -> BTreeMap<SocketAddr, (EndpointState, u32)> {
        let mut out: BTreeMap<SocketAddr, (EndpointState, u32)> = BTreeMap::new();
        let single = self.single.iter().filter(|((name, _), _)| *name == port.name);
        let single = single.map(|((_, at), endpoint)| (*at, endpoint.state, endpoint.weight));
        let sliced = self.slices.values().flat_map(|slice| of_slice(slice, port));
        for (at, state, weight) in single.chain(sliced).filter(|(at, _, _)| at.is_ipv4()) {
            let entry = out.entry(at).or_insert((state, weight));
            if state < entry.0 {
                *entry = (state, weight);
            }
        }
        out
    }
}

/// Endpoints of a slice for the Service port that its own port of that name and protocol belongs to.
fn of_slice<'a>(
    slice: &'a EndpointSlice,
    port: &'a ServicePort,
) -> impl Iterator<Item = (SocketAddr, EndpointState, u32)> + 'a {
    let ports = slice
        .ports
        .iter()
        .filter(|p| p.name == port.name && p.protocol == port.protocol);
    ports.flat_map(|p| {
        slice
            .endpoints
            .iter()
            .map(|e| (SocketAddr::new(e.address, p.port), e.state, 1))
    })
}
