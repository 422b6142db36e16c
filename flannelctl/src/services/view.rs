//! `flannelctl services`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use flannel_model::{EndpointState, ServiceKey, ServiceName, ServiceSpec, ServiceType};
use flannel_store::Store;
use serde::Serialize;

use super::Asker;
use super::local::{Filter, Local, no_daemon};
use super::nodes::{self, NodeView};
use super::stored::Stored;
use crate::cli::ServicesArguments;
use crate::failure::Failure;
use crate::output::{Output, Rejected, columns, rejected_lines};

/// Endpoints that a row of the table names; the others are counted.
const NAMED: usize = 3;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    /// Ranges of virtual addresses; empty when none are set, and then nothing is programmed.
    cidrs: Vec<String>,
    scheduler: String,
    services: Vec<Service>,
    /// Services that have endpoints but do not exist.
    endpoints_without_service: Vec<String>,
    rejected: Vec<Rejected>,
    /// Every node that tells of its Services.
    nodes: Vec<NodeView>,
    /// What flanneld on this node tells, where one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<Local>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    namespace: String,
    name: String,
    #[serde(rename = "type")]
    service_type: &'static str,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    scheduler: String,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
    #[serde(skip)]
    headless: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: String,
    protocol: String,
    port: u16,
    node_port: Option<u16>,
}

#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    /// Name of the Service's port.
    port_name: String,
    address: std::net::SocketAddr,
    state: &'static str,
    node: Option<String>,
}

impl View {
    /// Whether nothing in it has the name that was asked for, unreadable records included.
    fn has_none(&self, filter: &Filter) -> bool {
        let local = self.local.as_ref();
        self.services.is_empty()
            && self.endpoints_without_service.is_empty()
            && !self
                .rejected
                .iter()
                .any(|rejected| filter.fits_key(&rejected.key))
            && local.is_none_or(Local::is_empty)
    }
}

/// Shows Services: those of the cluster, the nodes, and what they carry on this node.
pub async fn show<S: Store>(
    asker: Asker<'_, S>,
    arguments: &ServicesArguments,
    output: &mut Output,
) -> Result<(), Failure> {
    let filter = Filter::new(arguments.name.as_deref());
    let local = Local::ask(arguments, &filter).await?;
    if arguments.local {
        let Some(local) = local else {
            return Err(no_daemon(arguments));
        };
        if local.is_empty() {
            filter.found_none()?;
        }
        return output.show(&local, Local::table);
    }
    let cluster = cluster(&asker, &filter).await;
    let (mut view, failure) = match cluster {
        Ok(view) => (view, None),
        // What this node knows is shown all the same.
        Err(error) if local.is_some() => (view(Stored::default(), Vec::new()), Some(error)),
        Err(error) => return Err(error),
    };
    view.local = local;
    if failure.is_none() && view.has_none(&filter) {
        filter.found_none()?;
    }
    output.show(&view, |view| match &failure {
        None => table(view),
        Some(_) => view.local.as_ref().map(Local::table).unwrap_or_default(),
    })?;
    failure.map_or(Ok(()), Err)
}

async fn cluster<S: Store>(asker: &Asker<'_, S>, filter: &Filter) -> Result<View, Failure> {
    let mut stored = Stored::read(asker.store, asker.prefix).await?;
    let nodes = nodes::read(asker.store, asker.prefix, stored.revision).await?;
    let fits = |name: &ServiceName| filter.fits(name.namespace(), name.name());
    stored.specs.retain(|(name, _)| fits(name));
    stored.slices.retain(|(name, _)| fits(name));
    stored
        .endpoints
        .retain(|(key, _)| key.service().is_some_and(fits));
    Ok(view(stored, nodes))
}

fn view(stored: Stored, nodes: Vec<NodeView>) -> View {
    let config = stored.config.clone().unwrap_or_default();
    let mut endpoints = endpoints(&stored);
    let services = stored.specs.iter().map(|(name, spec)| Service {
        namespace: name.namespace().to_owned(),
        name: name.name().to_owned(),
        service_type: type_name(spec.service_type),
        cluster_ips: spec.cluster_ips.iter().map(ToString::to_string).collect(),
        scheduler: spec.scheduler.as_ref().unwrap_or(&config.scheduler).to_string(),
        ports: ports(spec),
        endpoints: endpoints.remove(name).into_iter().flatten().collect(),
        headless: spec.headless,
    });
    let services = services.collect();
    View {
        cidrs: config.cidrs.iter().map(ToString::to_string).collect(),
        scheduler: config.scheduler.to_string(),
        services,
        // what no Service has taken
        endpoints_without_service: endpoints.into_keys().map(ToString::to_string).collect(),
        rejected: stored.rejected,
        nodes,
        local: None,
    }
}

fn type_name(service_type: ServiceType) -> &'static str {
    match service_type {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

fn ports(spec: &ServiceSpec) -> Vec<Port> {
    let ports = spec.ports.iter().map(|port| Port {
        name: port.name.clone(),
        protocol: port.protocol.to_string(),
        port: port.port,
        node_port: port.node_port,
    });
    ports.collect()
}

/// The endpoints of every Service that has some.
fn endpoints(stored: &Stored) -> BTreeMap<&ServiceName, BTreeSet<Endpoint>> {
    let mut all: BTreeMap<&ServiceName, BTreeSet<Endpoint>> = BTreeMap::new();
    for (service, slice) in &stored.slices {
        let of_service = all.entry(service).or_default();
        for endpoint in &slice.endpoints {
            of_service.extend(slice.ports.iter().map(|port| Endpoint {
                port_name: port.name.clone(),
                address: std::net::SocketAddr::new(endpoint.address, port.port),
                state: state_name(endpoint.state),
                node: endpoint.node.clone().map(String::from),
            }));
        }
    }
    for (key, endpoint) in &stored.endpoints {
        if let ServiceKey::Endpoint {
            service,
            port_name,
            address,
        } = key
        {
            all.entry(service).or_default().insert(Endpoint {
                port_name: port_name.clone(),
                address: *address,
                state: state_name(endpoint.state),
                node: endpoint.node.clone().map(String::from),
            });
        }
    }
    all
}

fn state_name(state: EndpointState) -> &'static str {
    match state {
        EndpointState::Ready => "ready",
        EndpointState::Terminating => "terminating",
        EndpointState::NotReady => "notReady",
    }
}

fn table(view: &View) -> String {
    let header = ["NAMESPACE/NAME", "TYPE", "CLUSTER-IP", "PORTS", "ENDPOINTS"];
    let rows = view.services.iter().map(|service| {
        [
            format!("{}/{}", service.namespace, service.name),
            service.service_type.to_owned(),
            match (service.headless, service.cluster_ips.is_empty()) {
                (true, _) => "None".to_owned(),
                (false, true) => "-".to_owned(),
                (false, false) => service.cluster_ips.join(","),
            },
            port_list(&service.ports),
            endpoint_list(&service.endpoints),
        ]
    });
    let mut text = columns(header, rows);
    if view.cidrs.is_empty() && !view.services.is_empty() {
        text += "\nNo service CIDR is set, so no node programs any of them; apply a ServiceCIDR.\n";
    }
    if !view.endpoints_without_service.is_empty() {
        let _ = writeln!(
            text,
            "\nEndpoints of Services that do not exist: {}",
            view.endpoints_without_service.join(", ")
        );
    }
    text += &rejected_lines(&view.rejected);
    text += &nodes::table(&view.nodes);
    if let Some(local) = &view.local {
        text.push('\n');
        text += &local.table();
    }
    text
}

fn port_list(ports: &[Port]) -> String {
    let texts = ports.iter().map(|port| {
        let node_port = port.node_port.map(|n| format!(":{n}")).unwrap_or_default();
        format!("{}{node_port}/{}", port.port, port.protocol)
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() {
        return "-".to_owned();
    }
    texts.join(",")
}

/// The first ready ones by address, and how many more there are.
fn endpoint_list(endpoints: &[Endpoint]) -> String {
    let ready: Vec<&Endpoint> = endpoints.iter().filter(|e| e.state == "ready").collect();
    let named: Vec<String> = ready.iter().take(NAMED).map(|e| e.address.to_string()).collect();
    let mut parts = Vec::new();
    if !named.is_empty() {
        parts.push(named.join(","));
    }
    if ready.len() > NAMED {
        parts.push(format!("+{} more", ready.len() - NAMED));
    }
    if ready.len() < endpoints.len() {
        parts.push(format!("({} not ready)", endpoints.len() - ready.len()));
    }
    match parts.is_empty() {
        true => "-".to_owned(),
        false => parts.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::{KeyValue, LeaseId};

    fn stored(records: &[(&str, &str)]) -> Stored {
        let mut kvs: Vec<KeyValue> = records
            .iter()
            .map(|(key, value)| KeyValue {
                key: format!("/n/services/v1/{key}"),
                value: value.as_bytes().to_vec(),
                create_revision: 1,
                mod_revision: 1,
                lease: LeaseId::NONE,
            })
            .collect();
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
        Stored::sort("/n/services/v1/", kvs)
    }

    #[test]
    fn services_endpoints_strays_and_bad_records() {
        let slice = r#"{"addressType":"IPv4","ports":[{"name":"","port":8080}],
            "endpoints":[{"addresses":["10.5.1.2"]},{"addresses":["10.5.1.3"]},{"addresses":["10.5.1.4"]},
            {"addresses":["10.5.1.5"]},{"addresses":["10.5.1.6"],"conditions":{"ready":false}}]}"#;
        let stored = stored(&[
            ("config", r#"{"cidrs":["10.96.0.0/16"]}"#),
            (
                "spec/shop/web",
                r#"{"clusterIP":"10.96.0.10","ports":[{"port":80}]}"#,
            ),
            ("slices/shop/web/a", slice),
            ("endpoints/shop/web/-/10.5.1.9:8080", "{}"),
            ("slices/shop/gone/a", slice),
            ("spec/shop/bad", r#"{"clusterIP":"x"}"#),
            ("junk", "{}"),
        ]);
        assert_eq!(
            stored.value("spec/shop/bad"),
            Some(br#"{"clusterIP":"x"}"#.as_slice())
        );
        let view = view(stored, Vec::new());
        assert_eq!(view.services[0].endpoints.len(), 6);
        assert_eq!(view.endpoints_without_service, ["shop/gone"]);
        assert_eq!(view.rejected.len(), 2);
        let text = table(&view);
        for part in [
            "shop/web         ClusterIP   10.96.0.10   80/TCP   10.5.1.2:8080,10.5.1.3:8080,10.5.1.4:8080 +2 more (1 not ready)",
            "do not exist: shop/gone",
            "/n/services/v1/spec/shop/bad: clusterIP",
            "/n/services/v1/junk: ",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
