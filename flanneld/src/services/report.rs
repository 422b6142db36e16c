//! What the node knows of its Services, for whoever asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flannel_model::{EndpointStatus, Explanation, FrontendStatus, ServiceProtocol, TrafficPolicy};
use flannel_plan::{Frontend, FrontendKey, FrontendKind, ServiceNode, frontend_status};
use flannel_telemetry::{Loads, PerFamily, ServiceLoad};

use super::Services;
use super::counts::{FrontendCounts, Wanted};

impl Services {
    /// Every frontend with what the kernel counts of it.
    pub fn report(&mut self) -> Vec<FrontendStatus> {
        let counts = self.counts(&Wanted::Connections(None));
        let node = &self.table.facts().node;
        let all = self.table.frontends().by_key.iter();
        all.map(|(key, frontend)| {
            let mut status = frontend_status(key, frontend);
            count(&mut status, counts.get(key), node);
            status
        })
        .collect()
    }

    /// How many frontends there are.
    pub fn frontends(&self) -> usize {
        self.table.frontends().by_key.len()
    }

    /// Name of the programmer.
    pub fn mode(&self) -> &'static str {
        self.programmer.name()
    }

    /// What happens to packets for `at`, and why; `node` and `summary` stay empty.
    pub fn explain(&mut self, at: SocketAddr, protocol: Option<ServiceProtocol>) -> Explanation {
        let explained = self.table.explain(at, protocol);
        let keys: Vec<FrontendKey> = explained.frontends.iter().map(|(key, _)| *key).collect();
        let counts = self.counts(&Wanted::Connections(Some(keys.iter().copied().collect())));
        let node = &self.table.facts().node;
        let mut explanation = explained.to_status();
        for (key, status) in keys.iter().zip(&mut explanation.services) {
            count(status, counts.get(key), node);
        }
        explanation
    }

    /// What a scrape of the metrics shows of single Services.
    pub fn loads(&mut self) -> Loads {
        let counts = self.counts(&Wanted::Traffic);
        let all = &self.table.frontends().by_key;
        let load = |(key, counts): (&FrontendKey, &FrontendCounts)| {
            let frontend = all.get(key)?;
            let (address, port) = match key {
                FrontendKey::Address(at) => (at.address.to_string(), at.port),
                FrontendKey::NodePort(at) => ("nodePort".to_owned(), at.port),
            };
            Some(ServiceLoad {
                namespace: frontend.service.namespace().to_owned(),
                service: frontend.service.name().to_owned(),
                ipv4: key.is_ipv4(),
                address,
                protocol: key.protocol().to_string(),
                port,
                traffic: counts.traffic?,
            })
        };
        Loads {
            services: counts.iter().filter_map(load).collect(),
            without_local_internal: self.without_local(|f| self.is_without_internal(f)),
            without_local_external: self.without_local(|f| f.keep_source && f.outside.is_empty()),
        }
    }

    /// The families of which Services are programmed: those with service CIDRs.
    pub fn families(&self) -> PerFamily<bool> {
        let cidrs = &self.table.frontends().cidrs;
        PerFamily {
            ipv4: cidrs.iter().any(|cidr| cidr.is_ipv4()),
            ipv6: cidrs.iter().any(|cidr| !cidr.is_ipv4()),
        }
    }

    /// How many Services have a port with the traffic policy Local that no endpoint on this node serves, as `lacks` says.
    fn without_local(&self, lacks: impl Fn(&Frontend) -> bool) -> PerFamily<usize> {
        let (mut ipv4, mut ipv6) = (BTreeSet::new(), BTreeSet::new());
        for (key, frontend) in &self.table.frontends().by_key {
            if lacks(frontend) {
                let services = if key.is_ipv4() { &mut ipv4 } else { &mut ipv6 };
                services.insert(&frontend.service);
            }
        }
        PerFamily {
            ipv4: ipv4.len(),
            ipv6: ipv6.len(),
        }
    }

    /// The external policy shows in a frontend, the internal one in its Service alone.
    fn is_without_internal(&self, frontend: &Frontend) -> bool {
        let spec = || self.table.facts().specs.get(&frontend.service);
        frontend.kind == FrontendKind::ClusterIp
            && frontend.inside.is_empty()
            && spec().is_some_and(|fact| fact.spec.internal_traffic == TrafficPolicy::Local)
    }

    /// What the kernel counts; where it does not answer, nothing was counted.
    fn counts(&mut self, wanted: &Wanted) -> BTreeMap<FrontendKey, FrontendCounts> {
        match self.programmer.counts(wanted) {
            Ok(counts) => counts,
            Err(error) => {
                tracing::debug!(%error, "connections are not counted");
                BTreeMap::new()
            }
        }
    }
}

/// Adds what the kernel counted, with the endpoints that are only left with old connections.
fn count(status: &mut FrontendStatus, counts: Option<&FrontendCounts>, node: &ServiceNode) {
    let Some(counts) = counts else { return };
    status.traffic = counts.traffic;
    let Some(counted) = &counts.endpoints else { return };
    for endpoint in &mut status.endpoints {
        let counts = counted.get(&endpoint.address).copied().unwrap_or_default();
        (endpoint.active, endpoint.inactive) = (Some(counts.active), Some(counts.inactive));
    }
    let known: BTreeSet<SocketAddr> = status.endpoints.iter().map(|e| e.address).collect();
    let leaving = counted.iter().filter(|(address, _)| !known.contains(address));
    status
        .endpoints
        .extend(leaving.map(|(address, counts)| EndpointStatus {
            address: *address,
            weight: 0,
            local: node.pods.iter().any(|pods| pods.holds(address.ip())),
            inside: false,
            outside: false,
            active: Some(counts.active),
            inactive: Some(counts.inactive),
        }));
}
