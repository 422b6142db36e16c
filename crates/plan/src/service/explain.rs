//! Why packets for an address go where they go.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flannel_model::{IpSubnet, ServiceName, ServicePort, ServiceProtocol, ServiceSpec};

use super::endpoints::{Why, unused};
use super::frontend::{Backends, Frontend, FrontendKey, FrontendKind, ServiceNote};
use super::table::ServiceTable;

/// What happens to packets for one address and port, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Explained {
    /// What listens there.
    pub frontends: Vec<(FrontendKey, Arc<Frontend>)>,
    /// What happens, in sentences.
    pub verdict: Vec<String>,
    /// Endpoints that take nothing.
    pub unused: Vec<Unused>,
    /// What is left out of the Services that ask for the address.
    pub notes: Vec<ServiceNote>,
}

/// An endpoint that takes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// Its Service.
    pub service: ServiceName,
    /// Name of the Service's port.
    pub port_name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Why it is not used.
    pub reason: String,
}

impl ServiceTable {
    /// Explains `at`, of one protocol or of all, as of the last refresh.
    pub fn explain(&self, at: SocketAddr, protocol: Option<ServiceProtocol>) -> Explained {
        let frontends = self.listeners(at, protocol);
        let mut out = Explained::default();
        for (key, frontend) in &frontends {
            out.verdict.extend(sentences(key, frontend));
        }
        if frontends.is_empty() {
            out.verdict = self.nobody(at, protocol);
        }
        let mut services: BTreeSet<ServiceName> = self.claimants(at).cloned().collect();
        for (key, frontend) in &frontends {
            services.insert(frontend.service.clone());
            out.unused.extend(self.unused_of(key, frontend));
        }
        let mut names: BTreeSet<String> = services.iter().map(ToString::to_string).collect();
        // a range that is refused takes its addresses with it
        names.insert("config".to_owned());
        let notes = self.notes().into_iter();
        out.notes = notes.filter(|note| names.contains(&note.subject)).collect();
        out.frontends = frontends;
        out
    }

    fn listeners(
        &self,
        at: SocketAddr,
        protocol: Option<ServiceProtocol>,
    ) -> Vec<(FrontendKey, Arc<Frontend>)> {
        let all = self.frontends();
        let fits = |key: &FrontendKey| match key {
            FrontendKey::Address(v) => (v.address, v.port) == (at.ip(), at.port()),
            FrontendKey::NodePort(n) => {
                n.port == at.port() && n.ipv4 == at.is_ipv4() && all.node_addresses.contains(&at.ip())
            }
        };
        let fits = |key: &FrontendKey| fits(key) && protocol.is_none_or(|p| p == key.protocol());
        let found = all.by_key.iter().filter(|(key, _)| fits(key));
        found.map(|(key, frontend)| (*key, frontend.clone())).collect()
    }

    /// The Services that ask for this address or node port, whether they have it or not.
    fn claimants(&self, at: SocketAddr) -> impl Iterator<Item = &ServiceName> {
        let node = &self.facts().node;
        let own = node.addresses.contains(&at.ip()) || node.primary.contains(&at.ip());
        let asks = move |spec: &ServiceSpec| {
            let mut ips = spec
                .cluster_ips
                .iter()
                .chain(&spec.external_ips)
                .chain(&spec.load_balancer_ips);
            ips.any(|ip| *ip == at.ip()) || own && spec.ports.iter().any(|p| p.node_port == Some(at.port()))
        };
        let specs = self.facts().specs.iter();
        specs
            .filter(move |(_, fact)| asks(&fact.spec))
            .map(|(name, _)| name)
    }

    /// What happens where nothing listens.
    fn nobody(&self, at: SocketAddr, protocol: Option<ServiceProtocol>) -> Vec<String> {
        let (all, node) = (self.frontends(), &self.facts().node);
        let what = protocol.map_or_else(|| at.to_string(), |p| format!("{p} {at}"));
        let others: Vec<String> = all
            .by_key
            .keys()
            .filter_map(|key| match key {
                FrontendKey::Address(v) if v.address == at.ip() => Some(format!("{} {}", v.protocol, v.port)),
                FrontendKey::Address(_) | FrontendKey::NodePort(_) => None,
            })
            .collect();
        if let Some(cidr) = holder(&all.cidrs, at.ip()) {
            let ports = match others.as_slice() {
                [] => format!("{} belongs to no Service that is programmed", at.ip()),
                ports => format!("the Service at {} has {} only", at.ip(), ports.join(", ")),
            };
            return vec![format!(
                "Nothing listens at {what}: it lies inside the service CIDR {cidr}, and {ports}. Clients are refused at once."
            )];
        }
        if !others.is_empty() {
            return vec![format!(
                "No Service listens at {what}: there are {} only. Packets go where they went without Services.",
                others.join(", ")
            )];
        }
        if node.addresses.contains(&at.ip()) || node.primary.contains(&at.ip()) {
            return vec![self.own_port(at)];
        }
        vec![format!(
            "{} is no address of a Service on this node: packets are routed like any others.",
            at.ip()
        )]
    }

    /// An address of the node itself, where no node port answers.
    fn own_port(&self, at: SocketAddr) -> String {
        let all = self.frontends();
        let taken = all.by_key.iter().find_map(|(key, frontend)| match key {
            FrontendKey::NodePort(n) if n.port == at.port() && n.ipv4 == at.is_ipv4() => Some(frontend),
            FrontendKey::NodePort(_) | FrontendKey::Address(_) => None,
        });
        match taken {
            Some(frontend) => {
                let addresses: Vec<String> = all.node_addresses.iter().map(ToString::to_string).collect();
                format!(
                    "Port {} is a node port of Service {}, but node ports answer on {} only: the host itself answers at {at}.",
                    at.port(),
                    frontend.service,
                    if addresses.is_empty() {
                        "no address".to_owned()
                    } else {
                        addresses.join(", ")
                    }
                )
            }
            None => format!(
                "{} is this node's own address, and no Service has the node port {}: the host itself answers.",
                at.ip(),
                at.port()
            ),
        }
    }

    fn unused_of(&self, key: &FrontendKey, frontend: &Frontend) -> Vec<Unused> {
        let facts = self.facts();
        let Some(spec) = facts.specs.get(&frontend.service).map(|fact| &fact.spec) else {
            return Vec::new();
        };
        let port: Option<&ServicePort> = spec
            .ports
            .iter()
            .find(|p| p.name == frontend.port_name && p.protocol == key.protocol());
        let (Some(port), Some(endpoints)) = (port, facts.endpoints.get(&frontend.service)) else {
            return Vec::new();
        };
        let used = frontend.inside.iter().chain(&*frontend.outside);
        let used: BTreeSet<SocketAddr> = used.map(|b| b.address).collect();
        let cidrs = &self.frontends().cidrs;
        unused(endpoints, port, key.is_ipv4(), &used, &facts.node)
            .into_iter()
            .map(|(address, why)| Unused {
                service: frontend.service.clone(),
                port_name: frontend.port_name.clone(),
                address,
                reason: match (holder(cidrs, address.ip()), why) {
                    (Some(cidr), _) => format!("it lies inside the service CIDR {cidr}"),
                    (None, Why::NotReady) => "it is not ready".to_owned(),
                    (None, Why::Terminating) => "it is on its way out, and others are ready".to_owned(),
                    (None, Why::Elsewhere { local: false })
                        if frontend.kind == FrontendKind::ClusterIp
                            && spec.internal_traffic == flannel_model::TrafficPolicy::Local =>
                    {
                        "it runs on another node, and internalTrafficPolicy is Local".to_owned()
                    }
                    (None, Why::Elsewhere { .. }) => "its hints give it to other nodes or zones".to_owned(),
                },
            })
            .collect()
    }
}

fn holder(cidrs: &[IpSubnet], ip: IpAddr) -> Option<&IpSubnet> {
    cidrs.iter().find(|cidr| cidr.holds(ip))
}

fn sentences(key: &FrontendKey, frontend: &Frontend) -> Vec<String> {
    let kind = match frontend.kind {
        FrontendKind::ClusterIp => "cluster address",
        FrontendKind::ExternalIp => "external address",
        FrontendKind::LoadBalancer => "address of its load balancer",
        FrontendKind::NodePort => "node port",
    };
    let port = match frontend.port_name.as_str() {
        "" => "the port".to_owned(),
        name => format!("port {name}"),
    };
    let mut out = vec![format!(
        "{key} is {port} of Service {} ({kind}).",
        frontend.service
    )];
    out.push(who_answers(frontend));
    if let Some(ranges) = &frontend.source_ranges {
        let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        out.push(match ranges.as_slice() {
            [] => "loadBalancerSourceRanges holds no range of this family: everybody is dropped.".to_owned(),
            ranges => format!(
                "Only clients in {} may connect; others are dropped.",
                ranges.join(", ")
            ),
        });
    }
    if let Some(seconds) = frontend.affinity {
        out.push(format!("A client keeps its endpoint for {seconds} s."));
    }
    out
}

fn who_answers(frontend: &Frontend) -> String {
    let scheduler = &frontend.scheduler;
    let count = |backends: &Backends| match backends.len() {
        1 => "1 endpoint".to_owned(),
        n => format!("{n} endpoints"),
    };
    if !frontend.keep_source {
        return match frontend.inside.len() {
            0 => "No endpoint takes traffic: clients are refused at once.".to_owned(),
            _ => format!(
                "New connections go to {} by {scheduler}.",
                count(&frontend.inside)
            ),
        };
    }
    let inside = match frontend.inside.len() {
        0 => "Pods and this node are refused at once, because no endpoint takes traffic".to_owned(),
        _ => format!(
            "Pods and this node reach {} of the whole cluster by {scheduler}",
            count(&frontend.inside)
        ),
    };
    let outside = match frontend.outside.len() {
        0 => "everybody else is refused at once, because none runs on this node".to_owned(),
        _ => format!(
            "everybody else {} on this node, with the client's own source address",
            count(&frontend.outside)
        ),
    };
    format!("{inside}; {outside} (externalTrafficPolicy: Local).")
}
