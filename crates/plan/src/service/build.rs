//! One Service: its frontends, as if there were no other.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_model::{
    IpSubnet, Scheduler, SchedulerFlags, ServiceName, ServicePort, ServiceSpec, ServiceType, ServicesConfig,
    TrafficPolicy, VirtualAddress,
};

use super::endpoints::{Choice, choose};
use super::facts::EndpointFacts;
use super::frontend::{Backends, Frontend, FrontendKey, FrontendKind, HealthCheck, NodePort};
use super::node::ServiceNode;
use super::ranges::{cluster_ip_fault, external_ip_fault};

/// What only one Service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// A cluster address with all its ports.
    ClusterIp(IpAddr),
    /// One port of an external address or one of a load balancer: several Services may share these.
    Address(VirtualAddress),
    /// A port of the node.
    NodePort(NodePort),
    /// A port of the node for health checks.
    HealthCheck(u16),
}

impl Claim {
    /// What the claim is on, in the words of a Service's fields.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::ClusterIp(ip) => format!("clusterIP {ip}"),
            Self::Address(at) => at.to_string(),
            Self::NodePort(at) => at.to_string(),
            Self::HealthCheck(port) => format!("healthCheckNodePort {port}"),
        }
    }
}

/// What one Service asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Built {
    /// Frontends with what must be had for them.
    pub frontends: Vec<(Claim, FrontendKey, Arc<Frontend>)>,
    /// Its health check.
    pub health: Option<(u16, HealthCheck)>,
    /// What is left out, and why.
    pub notes: Vec<String>,
}

impl Built {
    /// Everything that it claims, some of it several times.
    pub(super) fn claims(&self) -> impl Iterator<Item = Claim> {
        let health = self.health.as_ref().map(|(port, _)| Claim::HealthCheck(*port));
        self.frontends.iter().map(|(claim, _, _)| *claim).chain(health)
    }
}

/// What holds for all Services.
pub(super) struct Surroundings<'a> {
    pub node: &'a ServiceNode,
    pub config: &'a ServicesConfig,
    /// The sound ones of the service CIDRs.
    pub cidrs: &'a [IpSubnet],
}

/// Builds the frontends of one Service.
pub(super) fn build(
    around: &Surroundings<'_>,
    name: &ServiceName,
    spec: &ServiceSpec,
    endpoints: &EndpointFacts,
) -> Built {
    let mut builder = Builder {
        around,
        name,
        spec,
        endpoints,
        scheduler: scheduler(spec, around.config),
        out: Built::default(),
    };
    if spec.is_programmed() {
        builder.addresses();
        for ipv4 in [true, false] {
            let delivered = around.cidrs.iter().any(|c| c.is_ipv4() == ipv4);
            if delivered && spec.has_family(ipv4) {
                builder.family(ipv4);
            }
        }
        builder.health_check();
    }
    builder.out
}

/// A Service's own words win over the cluster's; flags that are said for one scheduler do not carry over to another.
fn scheduler(spec: &ServiceSpec, config: &ServicesConfig) -> (Scheduler, SchedulerFlags) {
    let scheduler = spec.scheduler.as_ref().unwrap_or(&config.scheduler);
    let inherited = config.scheduler_flags.filter(|_| spec.scheduler.is_none());
    let flags = spec
        .scheduler_flags
        .or(inherited)
        .unwrap_or_else(|| SchedulerFlags::usual(scheduler));
    (*scheduler, flags)
}

struct Builder<'a> {
    around: &'a Surroundings<'a>,
    name: &'a ServiceName,
    spec: &'a ServiceSpec,
    endpoints: &'a EndpointFacts,
    scheduler: (Scheduler, SchedulerFlags),
    out: Built,
}

/// The addresses of a Service that can be delivered.
type Addresses = Vec<(IpAddr, FrontendKind)>;

impl Builder<'_> {
    /// Notes every address that cannot be delivered.
    fn addresses(&mut self) {
        let has_node_port = self.spec.ports.iter().any(|p| p.node_port.is_some());
        if self.spec.cluster_ips.is_empty() && !has_node_port {
            self.out.notes.push("it has no clusterIP".to_owned());
        }
        for (field, ip, fault) in self.faults() {
            self.out.notes.push(format!("{field} {ip} is refused: {fault}"));
        }
    }

    fn faults(&self) -> Vec<(&'static str, IpAddr, String)> {
        let (around, spec) = (self.around, self.spec);
        let cluster = spec.cluster_ips.iter().filter_map(|ip| {
            Some((
                "clusterIP",
                *ip,
                cluster_ip_fault(*ip, around.cidrs, around.node)?,
            ))
        });
        let external = spec.external_ips.iter().map(|ip| ("externalIPs", *ip));
        let balancers = spec
            .load_balancer_ips
            .iter()
            .map(|ip| ("status.loadBalancer", *ip));
        let outside = external.chain(balancers).filter_map(|(field, ip)| {
            Some((
                field,
                ip,
                external_ip_fault(ip, around.cidrs, around.config, around.node)?,
            ))
        });
        cluster.chain(outside).collect()
    }

    /// The addresses of this family that can be delivered, each once: the first of its kinds counts.
    fn deliverable(&self, ipv4: bool) -> Addresses {
        let (around, spec) = (self.around, self.spec);
        let external =
            |ip: &&IpAddr| external_ip_fault(**ip, around.cidrs, around.config, around.node).is_none();
        let cluster = spec
            .cluster_ips
            .iter()
            .filter(|ip| cluster_ip_fault(**ip, around.cidrs, around.node).is_none())
            .map(|ip| (*ip, FrontendKind::ClusterIp));
        // Source ranges are for addresses of load balancers: one that is an external address as well must not lose them.
        let balancers = spec.load_balancer_ips.iter().filter(external);
        let balancers = balancers.map(|ip| (*ip, FrontendKind::LoadBalancer));
        let others = spec.external_ips.iter().filter(external);
        let others = others.map(|ip| (*ip, FrontendKind::ExternalIp));
        let mut out: Addresses = Vec::new();
        for (ip, kind) in cluster.chain(balancers).chain(others) {
            if ip.is_ipv4() == ipv4 && !out.iter().any(|(known, _)| *known == ip) {
                out.push((ip, kind));
            }
        }
        out
    }

    fn family(&mut self, ipv4: bool) {
        let addresses = self.deliverable(ipv4);
        for port in &self.spec.ports {
            let choice = self.choose(port, ipv4);
            for (ip, kind) in &addresses {
                let at = VirtualAddress {
                    protocol: port.protocol,
                    address: *ip,
                    port: port.port,
                };
                let claim = match kind {
                    FrontendKind::ClusterIp => Claim::ClusterIp(*ip),
                    FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort => {
                        Claim::Address(at)
                    }
                };
                self.push(claim, FrontendKey::Address(at), *kind, port, &choice);
            }
            self.node_port(port, ipv4, &choice);
        }
    }

    fn node_port(&mut self, port: &ServicePort, ipv4: bool, choice: &Choice) {
        let wanted = matches!(
            self.spec.service_type,
            ServiceType::NodePort | ServiceType::LoadBalancer
        );
        let Some(number) = port.node_port.filter(|_| wanted) else {
            return;
        };
        let range = self.around.config.node_port_range;
        if !range.holds(number) {
            let text = format!("nodePort {number} is refused: it lies outside the range {range}");
            if !self.out.notes.contains(&text) {
                self.out.notes.push(text);
            }
            return;
        }
        let at = NodePort {
            ipv4,
            protocol: port.protocol,
            port: number,
        };
        self.push(
            Claim::NodePort(at),
            FrontendKey::NodePort(at),
            FrontendKind::NodePort,
            port,
            choice,
        );
    }

    fn push(
        &mut self,
        claim: Claim,
        key: FrontendKey,
        kind: FrontendKind,
        port: &ServicePort,
        choice: &Choice,
    ) {
        let (inside, outside, keep_source) = self.traffic(kind, choice);
        let frontend = Frontend {
            service: self.name.clone(),
            port_name: port.name.clone(),
            kind,
            scheduler: self.scheduler.0,
            flags: self.scheduler.1,
            affinity: self.spec.affinity,
            source_ranges: self.source_ranges(kind, key.is_ipv4()),
            inside,
            outside,
            keep_source,
        };
        self.out.frontends.push((claim, key, Arc::new(frontend)));
    }

    /// Who answers from inside and from outside. The external policy is none for pods: they reach the endpoints of all nodes
    /// through an external address, so that no node without endpoints of its own is a dead end for them.
    fn traffic(&self, kind: FrontendKind, choice: &Choice) -> (Backends, Backends, bool) {
        let (all, local) = (&choice.cluster, &choice.local);
        match kind {
            FrontendKind::ClusterIp => {
                let chosen = match self.spec.internal_traffic {
                    TrafficPolicy::Cluster => all,
                    TrafficPolicy::Local => local,
                };
                (chosen.clone(), chosen.clone(), false)
            }
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort => {
                match self.spec.external_traffic {
                    TrafficPolicy::Cluster => (all.clone(), all.clone(), false),
                    TrafficPolicy::Local => (all.clone(), local.clone(), true),
                }
            }
        }
    }

    fn source_ranges(&self, kind: FrontendKind, ipv4: bool) -> Option<Arc<[IpSubnet]>> {
        if kind != FrontendKind::LoadBalancer || self.spec.source_ranges.is_empty() {
            return None;
        }
        let ranges = self.spec.source_ranges.iter().filter(|r| r.is_ipv4() == ipv4);
        Some(ranges.copied().collect())
    }

    /// The endpoints of a port. One inside a service CIDR would send packets round in circles.
    fn choose(&mut self, port: &ServicePort, ipv4: bool) -> Choice {
        let choice = choose(
            self.endpoints,
            port,
            ipv4,
            self.spec.publish_not_ready,
            self.around.node,
        );
        let cidrs = self.around.cidrs;
        let inside = |ip: IpAddr| cidrs.iter().any(|c| c.holds(ip));
        let mut all = choice.cluster.iter().chain(&*choice.local);
        let circular = all.find(|b| inside(b.address.ip()));
        let Some(circular) = circular.map(|b| b.address) else {
            return choice;
        };
        self.out.notes.push(format!(
            "endpoint {circular} is refused: it lies inside a service CIDR"
        ));
        let keep = |list: &Backends| -> Backends {
            let kept = list.iter().filter(|b| !inside(b.address.ip()));
            kept.copied().collect()
        };
        Choice {
            cluster: keep(&choice.cluster),
            local: keep(&choice.local),
            ..choice
        }
    }

    /// Only with external policy Local does it matter where a load balancer sends its traffic.
    fn health_check(&mut self) {
        let local = self.spec.external_traffic == TrafficPolicy::Local
            && self.spec.service_type == ServiceType::LoadBalancer;
        let Some(port) = self.spec.health_check_node_port.filter(|_| local) else {
            return;
        };
        let range = self.around.config.node_port_range;
        if !range.holds(port) {
            let text = format!("healthCheckNodePort {port} is refused: it lies outside the range {range}");
            return self.out.notes.push(text);
        }
        // a pod of both families is one endpoint
        let mut addresses = [BTreeSet::new(), BTreeSet::new()];
        for (port, ipv4) in self.spec.ports.iter().flat_map(|p| [(p, true), (p, false)]) {
            let unready_too = self.spec.publish_not_ready;
            let choice = choose(self.endpoints, port, ipv4, unready_too, self.around.node);
            if choice.local_ready > 0 {
                addresses[usize::from(ipv4)].extend(choice.local.iter().map(|b| b.address.ip()));
            }
        }
        let check = HealthCheck {
            service: self.name.clone(),
            local_endpoints: addresses.iter().map(BTreeSet::len).max().unwrap_or(0),
        };
        self.out.health = Some((port, check));
    }
}
