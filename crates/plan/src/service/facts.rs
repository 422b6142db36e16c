//! Everything that is known about the Services of the cluster, wherever it came from.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flannel_model::{
    EndpointSlice, ServiceEndpoint, ServiceKey, ServiceName, ServiceRecord, ServiceSpec, ServicesConfig,
};

use super::node::ServiceNode;

/// A spec and its age: the older of two rivals wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFact {
    /// The spec.
    pub spec: ServiceSpec,
    /// Grows with the time of creation: etcd's revision, or the seconds of a creationTimestamp.
    pub created: i64,
}

/// Endpoints of one Service, from all their sources.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointFacts {
    /// Slices with their names, in the order of these. Most Services have one, for which a tree would take a kilobyte.
    pub slices: Vec<(Box<str>, EndpointSlice)>,
    /// Endpoints with keys of their own, by port name and address.
    pub single: BTreeMap<(String, SocketAddr), ServiceEndpoint>,
}

impl EndpointFacts {
    fn put_slice(&mut self, name: &str, slice: EndpointSlice) {
        match self.slices.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(place) => {
                if let Some((_, known)) = self.slices.get_mut(place) {
                    *known = slice;
                }
            }
            Err(place) => {
                self.slices.reserve_exact(1);
                self.slices.insert(place, (name.into(), slice));
            }
        }
    }
}

/// Everything known about the Services of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
            ..Self::default()
        }
    }

    /// Files one record under what its key says. A record of another kind than its key is dropped.
    pub fn add(&mut self, key: ServiceKey, record: ServiceRecord, created: i64) {
        match (key, record) {
            (ServiceKey::Config, ServiceRecord::Config(config)) => self.config = config,
            (ServiceKey::Spec(name), ServiceRecord::Spec(spec)) => {
                self.specs.insert(name, SpecFact { spec, created });
            }
            (ServiceKey::Slice { service, slice }, ServiceRecord::Slice(value)) => {
                self.endpoints
                    .entry(service)
                    .or_default()
                    .put_slice(&slice, value);
            }
            (
                ServiceKey::Endpoint {
                    service,
                    port_name,
                    address,
                },
                ServiceRecord::Endpoint(value),
            ) => {
                let endpoints = self.endpoints.entry(service).or_default();
                endpoints.single.insert((port_name, address), value);
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

    /// Forgets the record of this key. Without its record the config is the default one.
    pub fn remove(&mut self, key: &ServiceKey) {
        match key {
            ServiceKey::Config => self.config = ServicesConfig::default(),
            ServiceKey::Spec(name) => {
                self.specs.remove(name);
            }
            ServiceKey::Slice { service, slice } => self.drop_endpoints(service, |e| {
                e.slices.retain(|(name, _)| **name != **slice);
            }),
            ServiceKey::Endpoint {
                service,
                port_name,
                address,
            } => self.drop_endpoints(service, |e| {
                e.single.remove(&(port_name.clone(), *address));
            }),
        }
    }

    fn drop_endpoints(&mut self, service: &ServiceName, drop: impl FnOnce(&mut EndpointFacts)) {
        let Some(endpoints) = self.endpoints.get_mut(service) else {
            return;
        };
        drop(endpoints);
        if endpoints.slices.is_empty() && endpoints.single.is_empty() {
            self.endpoints.remove(service);
        }
    }
}
