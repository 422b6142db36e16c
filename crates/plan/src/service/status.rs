//! Frontends in the words in which nodes tell of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use flannel_model::{EndpointStatus, Explanation, FrontendStatus, StatusNote, UnusedEndpoint};

use super::explain::Explained;
use super::frontend::{Frontend, FrontendKey, FrontendKind};

/// A frontend as it should be; nothing is counted.
pub fn frontend_status(key: &FrontendKey, frontend: &Frontend) -> FrontendStatus {
    let kind = match frontend.kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::NodePort => "NodePort",
    };
    let (address, port) = place(key);
    let ranges = frontend.source_ranges.as_ref();
    FrontendStatus {
        namespace: frontend.service.namespace().to_owned(),
        name: frontend.service.name().to_owned(),
        port_name: frontend.port_name.clone(),
        kind: kind.to_owned(),
        family: if key.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        protocol: key.protocol().to_string(),
        address,
        port,
        scheduler: frontend.scheduler.to_string(),
        affinity: frontend.affinity,
        source_ranges: ranges.map(|ranges| ranges.iter().map(ToString::to_string).collect()),
        keep_source: frontend.keep_source,
        traffic: None,
        endpoints: endpoints(frontend),
    }
}

/// Its address, none for a node port, and its port.
fn place(key: &FrontendKey) -> (Option<IpAddr>, u16) {
    match key {
        FrontendKey::Address(at) => (Some(at.address), at.port),
        FrontendKey::NodePort(at) => (None, at.port),
    }
}

fn endpoints(frontend: &Frontend) -> Vec<EndpointStatus> {
    let mut all: BTreeMap<SocketAddr, EndpointStatus> = BTreeMap::new();
    let inside = frontend.inside.iter().map(|b| (b, true));
    for (backend, is_inside) in inside.chain(frontend.outside.iter().map(|b| (b, false))) {
        let endpoint = all.entry(backend.address).or_insert(EndpointStatus {
            address: backend.address,
            weight: backend.weight,
            local: backend.local,
            inside: false,
            outside: false,
            active: None,
            inactive: None,
        });
        if is_inside {
            endpoint.inside = true;
        } else {
            endpoint.outside = true;
        }
    }
    all.into_values().collect()
}

impl Explained {
    /// The same for whoever asked; nothing is counted, and the node says who it is itself.
    pub fn to_status(&self) -> Explanation {
        let unused = self.unused.iter().map(|unused| UnusedEndpoint {
            service: unused.service.to_string(),
            port_name: unused.port_name.clone(),
            address: unused.address,
            reason: unused.reason.clone(),
        });
        let notes = self.notes.iter().map(|note| StatusNote {
            subject: note.subject.clone(),
            text: note.text.clone(),
        });
        let services = self.frontends.iter();
        Explanation {
            verdict: self.verdict.clone(),
            services: services
                .map(|(key, frontend)| frontend_status(key, frontend))
                .collect(),
            unused: unused.collect(),
            notes: notes.collect(),
            ..Explanation::default()
        }
    }
}
