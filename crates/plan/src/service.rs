//! Which virtual and real servers a node should have for the Services of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flannel_model::{
    Ipv4Subnet, Scheduler, ServiceCidr, ServiceName, ServicePort, ServiceProtocol, ServiceSpec, ServiceType,
    ServicesConfig, TrafficPolicy, VirtualAddress,
};

use crate::service_facts::{ServiceFacts, ServiceNode, SpecFact};

/// Shortest prefix of a service CIDR in bits: Kubernetes' API server refuses ranges of more than 20 host bits, and every
/// address of the range is delivered on the node itself.
const SHORTEST_CIDR: u8 = 12;
/// `IP_VS_SVC_F_SCHED_MH_PORT` (linux/ip_vs.h): hash the source port, too, so that one client's connections spread.
const MH_PORT: u32 = 0x10;

/// A virtual server as it should be, or as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// Name of its scheduler.
    pub scheduler: String,
    /// `IP_VS_SVC_F_*` flags without HASHED, which is the kernel's own.
    pub flags: u32,
    /// Its real servers.
    pub real: BTreeMap<SocketAddr, RealServer>,
}

/// A real server as it should be, or as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealServer {
    /// Share of new connections for weighted schedulers; 0 takes none.
    pub weight: u32,
    /// Whether it is reached by address translation, as all of ours are.
    pub masquerade: bool,
}

/// Something about a Service that is not, or not wholly, programmed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceNote {
    /// Which Service, as `namespace/name`, or which key.
    pub subject: String,
    /// What and why.
    pub text: String,
}

impl fmt::Display for ServiceNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}

/// What a node should have for all Services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredServices {
    /// The service CIDRs that are sound, none inside another.
    pub cidrs: Vec<Ipv4Subnet>,
    /// Virtual servers, all inside these CIDRs.
    pub servers: BTreeMap<VirtualAddress, VirtualServer>,
    /// Addresses of real servers that are pods of this node: the ones that may reach themselves through a virtual server.
    pub local_endpoints: BTreeSet<Ipv4Addr>,
    /// What was left out, and why.
    pub notes: Vec<ServiceNote>,
}

/// The virtual servers that follow from `facts`.
pub fn desired_services(facts: &ServiceFacts) -> DesiredServices {
    let mut out = DesiredServices::default();
    out.cidrs = sound_cidrs(&facts.config, &facts.node, &mut out.notes);
    let mut owners: BTreeMap<IpAddr, &ServiceName> = BTreeMap::new();
    let mut by_age: Vec<(&ServiceName, &SpecFact)> = facts.specs.iter().collect();
    by_age.sort_by_key(|(name, fact)| (fact.create_revision, *name));
    for (name, fact) in by_age {
        note_unbuilt(name, &fact.spec, &mut out.notes);
        for vip in &fact.spec.cluster_ips {
            match claim(*vip, name, &out.cidrs, &mut owners) {
                Ok(()) => add_servers(&mut out, facts, name, &fact.spec, *vip),
                Err(reason) => note(&mut out.notes, name, reason),
            }
        }
    }
    for name in facts
        .endpoints
        .keys()
        .filter(|name| !facts.specs.contains_key(name))
    {
        note(
            &mut out.notes,
            name,
            "has endpoints, but there is no spec of that name".to_owned(),
        );
    }
    out.notes.sort();
    out.notes.dedup();
    out
}

/// The configured CIDRs that can be delivered locally without harm; a range inside another counts as part of it.
fn sound_cidrs(config: &ServicesConfig, node: &ServiceNode, notes: &mut Vec<ServiceNote>) -> Vec<Ipv4Subnet> {
    let mut sound: Vec<Ipv4Subnet> = Vec::new();
    for cidr in &config.cidrs {
        match cidr_fault(cidr, node) {
            // a containing range is sorted before what it contains
            Ok(cidr) if !sound.iter().any(|s| s.contains(&cidr)) => sound.push(cidr),
            Ok(_) => {}
            Err(reason) => {
                notes.push(ServiceNote {
                    subject: "config".to_owned(),
                    text: format!("cidrs {cidr} {reason}"),
                });
            }
        }
    }
    sound
}

fn cidr_fault(cidr: &ServiceCidr, node: &ServiceNode) -> Result<Ipv4Subnet, String> {
    let ServiceCidr::V4(cidr) = cidr else {
        return Err("is not programmed: Services over IPv6 are not built yet".to_owned());
    };
    if cidr.length() < SHORTEST_CIDR {
        return Err(format!(
            "is refused: expected a prefix of at least {SHORTEST_CIDR} bits"
        ));
    }
    let first = cidr.network().octets()[0];
    if first == 0 || first == 127 || first >= 224 {
        return Err("is refused: expected unicast addresses".to_owned());
    }
    if cidr.overlaps(&node.network) {
        return Err(format!(
            "is refused: it overlaps the pod network {}",
            node.network
        ));
    }
    if cidr.holds(node.address) {
        return Err(format!(
            "is refused: it holds this node's own address {}",
            node.address
        ));
    }
    Ok(*cidr)
}

/// Gives `vip` to the Service `name` unless it is out of range or an older Service has it.
fn claim<'a>(
    vip: IpAddr,
    name: &'a ServiceName,
    cidrs: &[Ipv4Subnet],
    owners: &mut BTreeMap<IpAddr, &'a ServiceName>,
) -> Result<(), String> {
    let IpAddr::V4(address) = vip else {
        return Err(format!(
            "not programmed: clusterIP {vip}, because Services over IPv6 are not built yet"
        ));
    };
    if !cidrs.iter().any(|c| c.holds(address)) {
        let list: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
        let list = if list.is_empty() {
            "(none)".to_owned()
        } else {
            list.join(", ")
        };
        return Err(format!(
            "not programmed: clusterIP {vip} lies outside the service CIDRs {list}"
        ));
    }
    if let Some(owner) = owners.get(&vip) {
        return Err(format!(
            "not programmed: clusterIP {vip} belongs to the older Service {owner}"
        ));
    }
    owners.insert(vip, name);
    Ok(())
}

fn add_servers(
    out: &mut DesiredServices,
    facts: &ServiceFacts,
    name: &ServiceName,
    spec: &ServiceSpec,
    vip: IpAddr,
) {
    let scheduler = spec.scheduler.as_ref().unwrap_or(&facts.config.scheduler);
    for port in &spec.ports {
        if port.protocol == ServiceProtocol::Sctp {
            continue;
        }
        let chosen = facts.choose(name, port);
        let (inside, usable): (BTreeMap<_, _>, BTreeMap<_, _>) =
            chosen.into_iter().partition(|(at, _)| inside(&out.cidrs, at));
        if let Some(at) = inside.keys().next() {
            note(
                &mut out.notes,
                name,
                format!("not programmed: endpoint {at}, because it lies inside a service CIDR"),
            );
        }
        out.local_endpoints
            .extend(usable.keys().filter_map(|at| local(at, &facts.node)));
        let at = VirtualAddress {
            protocol: port.protocol,
            address: vip,
            port: port.port,
        };
        out.servers.insert(at, virtual_server(scheduler, usable));
    }
}

fn virtual_server(scheduler: &Scheduler, weights: BTreeMap<SocketAddr, u32>) -> VirtualServer {
    let real = weights
        .into_iter()
        .map(|(at, weight)| {
            (
                at,
                RealServer {
                    weight,
                    masquerade: true,
                },
            )
        })
        .collect();
    let flags = if scheduler.as_str() == "mh" { MH_PORT } else { 0 };
    VirtualServer {
        scheduler: scheduler.to_string(),
        flags,
        real,
    }
}

fn inside(cidrs: &[Ipv4Subnet], at: &SocketAddr) -> bool {
    matches!(at.ip(), IpAddr::V4(ip) if cidrs.iter().any(|c| c.holds(ip)))
}

fn local(at: &SocketAddr, node: &ServiceNode) -> Option<Ipv4Addr> {
    match at.ip() {
        IpAddr::V4(ip) if node.subnet.holds(ip) => Some(ip),
        _ => None,
    }
}

fn note(notes: &mut Vec<ServiceNote>, name: &ServiceName, text: String) {
    notes.push(ServiceNote {
        subject: name.to_string(),
        text,
    });
}

/// What a spec asks for and is not built yet; the rest of the Service works all the same.
fn note_unbuilt(name: &ServiceName, spec: &ServiceSpec, notes: &mut Vec<ServiceNote>) {
    let mut unbuilt = Vec::new();
    if matches!(
        spec.service_type,
        ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer
    ) && spec.cluster_ips.is_empty()
        && !spec.headless
    {
        unbuilt.push("the Service itself, because it has no clusterIP".to_owned());
    }
    unbuilt.extend(spec.ports.iter().filter_map(unbuilt_port));
    if spec.service_type == ServiceType::LoadBalancer {
        unbuilt.push("addresses of a load balancer".to_owned());
    }
    unbuilt.extend(spec.external_ips.iter().map(|ip| format!("externalIPs {ip}")));
    if spec.client_ip_affinity {
        unbuilt.push("sessionAffinity ClientIP (connections are spread)".to_owned());
    }
    if spec.internal_traffic == TrafficPolicy::Local {
        unbuilt.push("internalTrafficPolicy Local (endpoints of all nodes are used)".to_owned());
    }
    for text in unbuilt {
        note(notes, name, format!("not programmed: {text}"));
    }
}

fn unbuilt_port(port: &ServicePort) -> Option<String> {
    match (port.protocol, port.node_port) {
        (ServiceProtocol::Sctp, _) => Some(format!("SCTP port {}", port.port)),
        (protocol, Some(node_port)) => Some(format!("nodePort {node_port} of {protocol} port {}", port.port)),
        (_, None) => None,
    }
}
