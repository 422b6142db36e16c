//! `services/v1/spec/NAMESPACE/NAME`: a Service, with Kubernetes' field names.

use std::net::IpAddr;

use serde_json::Value;

use crate::service_access::{read_affinity, read_load_balancer, read_source_ranges};
use crate::service_fields::{
    Faults, Field, PORT_NUMBER, ServiceFieldError, from_text, parse, port_number, read_value,
};
use crate::service_key::{LABEL_FORM, is_label};
use crate::service_scheduler::{read_flags, read_scheduler};
use crate::{IpSubnet, Scheduler, SchedulerFlags, ServiceProtocol, ServiceValueError};

/// `type` of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceType {
    /// Reached by its cluster addresses.
    ClusterIp,
    /// Also by a port of every node.
    NodePort,
    /// Also by addresses of a load balancer.
    LoadBalancer,
    /// A DNS alias; nothing to program.
    ExternalName,
}

/// Which endpoints a kind of traffic may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// All.
    #[default]
    Cluster,
    /// Those of the node that the traffic arrives on.
    Local,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, by which endpoints refer to it; empty where a Service has one port only.
    pub name: String,
    /// Transport protocol.
    pub protocol: ServiceProtocol,
    /// Port that clients use.
    pub port: u16,
    /// Port on every node, for the types NodePort and LoadBalancer.
    pub node_port: Option<u16>,
}

/// The part of a Service's `spec` that matters to its data path. `targetPort` is not: endpoints carry their port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its type.
    pub service_type: ServiceType,
    /// Virtual addresses, at most one a family; none for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `ipFamilies`: for each whether it is IPv4. Empty where the Service does not say.
    pub families: Vec<bool>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Its ports, unique by name and by protocol and number.
    pub ports: Vec<ServicePort>,
    /// Addresses outside the service CIDRs that nodes should accept.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers that nodes should accept themselves (`ipMode` VIP).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use the addresses of load balancers; empty for anybody.
    pub source_ranges: Vec<IpSubnet>,
    /// `sessionAffinity: ClientIP`: seconds for which a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// Endpoints for traffic from inside the cluster.
    pub internal_traffic: TrafficPolicy,
    /// Endpoints for traffic from outside.
    pub external_traffic: TrafficPolicy,
    /// Port on which every node answers whether it has endpoints of its own, with external policy Local.
    pub health_check_node_port: Option<u16>,
    /// Endpoints count as ready whatever they say.
    pub publish_not_ready: bool,
    /// Somebody else programmes this Service (label service.kubernetes.io/service-proxy-name).
    pub other_proxy: Option<String>,
    /// Own scheduler; otherwise the cluster's.
    pub scheduler: Option<Scheduler>,
    /// Own flags of the scheduler.
    pub scheduler_flags: Option<SchedulerFlags>,
}

impl ServiceSpec {
    /// Reads the value of a spec key. Unknown fields are ignored.
    pub fn parse(value: &[u8]) -> Result<Self, ServiceValueError> {
        parse(value, read)
    }

    /// Reads JSON that is already taken apart, such as `spec` of a manifest.
    pub fn from_value(value: &Value) -> Result<Self, Vec<ServiceFieldError>> {
        read_value(value, read)
    }

    /// Whether the Service has the family: that of its cluster addresses; without any, those of `ipFamilies`, or both.
    pub fn has_family(&self, ipv4: bool) -> bool {
        if !self.cluster_ips.is_empty() {
            return self.cluster_ips.iter().any(|ip| ip.is_ipv4() == ipv4);
        }
        self.families.is_empty() || self.families.contains(&ipv4)
    }

    /// Whether nodes have anything to do for it: not for aliases, headless Services and those of another proxy.
    pub fn is_programmed(&self) -> bool {
        self.service_type != ServiceType::ExternalName && !self.headless && self.other_proxy.is_none()
    }
}

fn read(root: &Field<'_>, faults: &mut Faults) -> Option<ServiceSpec> {
    let service_type = root
        .get("type")
        .optional(
            faults,
            "ClusterIP, NodePort, LoadBalancer or ExternalName",
            service_type,
        )
        .unwrap_or(ServiceType::ClusterIp);
    let (cluster_ips, headless) = read_cluster_ips(root, faults);
    let families = read_families(root, &cluster_ips, faults);
    let ports = read_ports(root, faults);
    if ports.is_empty() && !headless && service_type != ServiceType::ExternalName {
        faults.add(&root.get("ports"), "at least one port");
    }
    Some(ServiceSpec {
        service_type,
        cluster_ips,
        families,
        headless,
        ports,
        external_ips: read_ips(&root.get("externalIPs"), faults),
        load_balancer_ips: if service_type == ServiceType::LoadBalancer {
            read_load_balancer(&root.get("loadBalancer"), faults)
        } else {
            Vec::new()
        },
        source_ranges: read_source_ranges(&root.get("loadBalancerSourceRanges"), faults),
        affinity: read_affinity(root, faults),
        internal_traffic: read_policy(&root.get("internalTrafficPolicy"), faults),
        external_traffic: read_policy(&root.get("externalTrafficPolicy"), faults),
        health_check_node_port: root
            .get("healthCheckNodePort")
            .optional(faults, "a port number from 0 to 65535", optional_port)
            .flatten(),
        publish_not_ready: root
            .get("publishNotReadyAddresses")
            .optional(faults, "true or false", Value::as_bool)
            .unwrap_or(false),
        other_proxy: root.get("serviceProxyName").text(faults).map(str::to_owned),
        scheduler: read_scheduler(&root.get("scheduler"), faults),
        scheduler_flags: read_flags(&root.get("schedulerFlags"), faults),
    })
}

fn service_type(value: &Value) -> Option<ServiceType> {
    match value.as_str()? {
        "ClusterIP" => Some(ServiceType::ClusterIp),
        "NodePort" => Some(ServiceType::NodePort),
        "LoadBalancer" => Some(ServiceType::LoadBalancer),
        "ExternalName" => Some(ServiceType::ExternalName),
        _ => None,
    }
}

fn read_policy(field: &Field<'_>, faults: &mut Faults) -> TrafficPolicy {
    let policy = |value: &Value| match value.as_str()? {
        "" | "Cluster" => Some(TrafficPolicy::Cluster),
        "Local" => Some(TrafficPolicy::Local),
        _ => None,
    };
    field
        .optional(faults, "Cluster or Local", policy)
        .unwrap_or_default()
}

/// The cluster addresses, and whether `None` stands in their place. `clusterIP` is the first of `clusterIPs`.
fn read_cluster_ips(root: &Field<'_>, faults: &mut Faults) -> (Vec<IpAddr>, bool) {
    let (one, many) = (root.get("clusterIP"), root.get("clusterIPs"));
    let first = one.text(faults);
    let items = many.items(faults);
    let listed: Vec<&str> = items.iter().filter_map(|i| i.text(faults)).collect();
    if first == Some("None") || listed == ["None"] {
        return (Vec::new(), true);
    }
    let ips = if listed.is_empty() {
        first
            .and_then(|_| one.required(faults, ADDRESS, virtual_ip))
            .into_iter()
            .collect()
    } else {
        items
            .iter()
            .filter_map(|i| i.required(faults, ADDRESS, virtual_ip))
            .collect::<Vec<_>>()
    };
    if let (Some(first), Some(head)) = (first, listed.first())
        && first != *head
    {
        faults.add(&one, format!("the first of clusterIPs, {head}"));
    }
    if ips.len() > 2 || (ips.len() == 2 && ips[0].is_ipv4() == ips[1].is_ipv4()) {
        faults.add(&many, "at most one address of each family");
    }
    (ips, false)
}

fn read_families(root: &Field<'_>, ips: &[IpAddr], faults: &mut Faults) -> Vec<bool> {
    let mut families = Vec::new();
    for (i, field) in root.get("ipFamilies").items(faults).iter().enumerate() {
        let family = |value: &Value| match value.as_str()? {
            "IPv4" => Some(true),
            "IPv6" => Some(false),
            _ => None,
        };
        let v4 = field.required(faults, "IPv4 or IPv6", family);
        if let (Some(v4), Some(ip)) = (v4, ips.get(i))
            && v4 != ip.is_ipv4()
        {
            faults.add(field, format!("the family of {ip}"));
        }
        families.extend(v4);
    }
    families
}

/// What [`virtual_ip`] takes, in words.
pub(crate) const ADDRESS: &str = "a unicast IP address";

pub(crate) fn virtual_ip(value: &Value) -> Option<IpAddr> {
    from_text::<IpAddr>(value).filter(is_host_address)
}

/// Whether packets can be sent to `ip` from another host: neither unspecified, loopback, link-local, multicast nor broadcast.
pub fn is_host_address(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // 0.0.0.0/8 is "this network" (RFC 1122 section 3.2.1.3), 240.0.0.0/4 is reserved (RFC 1112 section 4)
            let (first, local) = (ip.octets()[0], ip.is_loopback() || ip.is_link_local());
            first != 0 && first < 224 && !local
        }
        IpAddr::V6(ip) => {
            let other = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
            !other && !ip.is_unicast_link_local() && ip.to_ipv4_mapped().is_none()
        }
    }
}

fn read_ips(field: &Field<'_>, faults: &mut Faults) -> Vec<IpAddr> {
    field
        .items(faults)
        .iter()
        .filter_map(|i| i.required(faults, ADDRESS, virtual_ip))
        .collect()
}

fn read_ports(root: &Field<'_>, faults: &mut Faults) -> Vec<ServicePort> {
    let items = root.get("ports").items(faults);
    let mut ports: Vec<ServicePort> = Vec::new();
    for item in &items {
        let Some(port) = read_port(item, faults) else {
            continue;
        };
        if port.name.is_empty() && items.len() > 1 {
            faults.add(
                &item.get("name"),
                "a name, because the Service has more than one port",
            );
        } else if ports.iter().any(|p| p.name == port.name) {
            faults.add(&item.get("name"), "a name that no other port has");
        }
        if ports
            .iter()
            .any(|p| (p.protocol, p.port) == (port.protocol, port.port))
        {
            faults.add(
                &item.get("port"),
                format!("a number that no other {} port has", port.protocol),
            );
        }
        ports.push(port);
    }
    ports
}

fn read_port(item: &Field<'_>, faults: &mut Faults) -> Option<ServicePort> {
    let name = item.get("name");
    let name = name.optional(faults, LABEL_FORM, port_name).unwrap_or_default();
    let protocol = read_protocol(item, faults);
    let node_port = item
        .get("nodePort")
        .optional(faults, "a port number from 0 to 65535", optional_port)
        .flatten();
    let port = item.get("port").required(faults, PORT_NUMBER, port_number)?;
    Some(ServicePort {
        name,
        protocol,
        port,
        node_port,
    })
}

/// A port number where 0 stands for none, as the API server writes it.
fn optional_port(value: &Value) -> Option<Option<u16>> {
    u16::try_from(value.as_u64()?).ok().map(|n| (n != 0).then_some(n))
}

/// A port's name; empty is none.
pub(crate) fn port_name(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|t| t.is_empty() || is_label(t))
        .map(str::to_owned)
}

/// `protocol` of a port, TCP when absent.
pub(crate) fn read_protocol(item: &Field<'_>, faults: &mut Faults) -> ServiceProtocol {
    item.get("protocol")
        .optional(faults, "TCP, UDP or SCTP", from_text)
        .unwrap_or(ServiceProtocol::Tcp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> String {
        ServiceSpec::parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_pasted_spec_is_read() {
        let spec = ServiceSpec::parse(
            br#"{"type":"LoadBalancer","clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10","fd00:96::a"],
             "ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack","selector":{"app":"web"},
             "ports":[{"name":"http","protocol":"TCP","port":80,"targetPort":"web","nodePort":30080},{"name":"dns","protocol":"UDP","port":53}],
             "externalTrafficPolicy":"Local","sessionAffinity":"ClientIP","scheduler":"lc"}"#,
        )
        .unwrap();
        assert_eq!(spec.cluster_ips.len(), 2);
        assert_eq!(spec.ports[1].protocol, ServiceProtocol::Udp);
        assert_eq!(spec.ports[0].node_port, Some(30080));
        assert!(spec.affinity == Some(10800) && spec.external_traffic == TrafficPolicy::Local);
        assert_eq!(spec.scheduler.unwrap().as_str(), "lc");
    }

    #[test]
    fn headless_and_alias_need_no_port() {
        assert!(ServiceSpec::parse(br#"{"clusterIP":"None"}"#).unwrap().headless);
        assert!(
            ServiceSpec::parse(br#"{"clusterIPs":["None"]}"#)
                .unwrap()
                .headless
        );
        let alias = ServiceSpec::parse(br#"{"type":"ExternalName","externalName":"a.b"}"#).unwrap();
        assert!(alias.cluster_ips.is_empty() && !alias.is_programmed());
        let other = r#"{"clusterIP":"10.96.0.9","ports":[{"port":80,"nodePort":0}],"serviceProxyName":"x"}"#;
        let other = ServiceSpec::parse(other.as_bytes()).unwrap();
        assert!(!other.is_programmed() && other.ports[0].node_port.is_none());
    }

    #[test]
    fn every_fault_is_named() {
        let text = faults(
            r#"{"type":"Cluster","clusterIP":"10.96.0","sessionAffinity":"x","externalIPs":["127.0.0.1"],
             "ports":[{"port":0,"protocol":"tcp"},{"name":"A","port":70000}]}"#,
        );
        for part in [
            "type: \"Cluster\"",
            "clusterIP: \"10.96.0\"",
            "sessionAffinity: \"x\"",
            "externalIPs[0]: \"127.0.0.1\"",
            "ports[0].port: 0",
            "ports[0].protocol: \"tcp\"",
            "ports[1].name: \"A\"",
            "ports[1].port: 70000",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn contradictions_are_faults() {
        assert!(faults(r#"{"clusterIP":"10.96.0.1"}"#).contains("at least one port"));
        let p = r#""ports":[{"port":80}]"#;
        assert!(
            faults(&format!(
                r#"{{"clusterIP":"10.96.0.1","clusterIPs":["10.96.0.2"],{p}}}"#
            ))
            .contains("10.96.0.2")
        );
        assert!(
            faults(&format!(r#"{{"clusterIPs":["10.96.0.1","10.96.0.2"],{p}}}"#)).contains("each family")
        );
        assert!(
            faults(&format!(
                r#"{{"clusterIP":"10.96.0.1","ipFamilies":["IPv6"],{p}}}"#
            ))
            .contains("the family of")
        );
        assert!(faults(r#"{"ports":[{"port":80},{"port":81}]}"#).contains("more than one port"));
        let twice = r#"{"ports":[{"name":"a","port":80},{"name":"b","port":80}]}"#;
        assert!(faults(twice).contains("no other TCP port"));
    }
}
