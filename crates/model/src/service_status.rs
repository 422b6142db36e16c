//! What a node tells of its Services, as JSON: to `flannelctl` on the node itself, and in short below
//! `<prefix>/services/nodes/NODE`. Fields may be added; those that are there keep their names and meaning.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What a node tells everybody of its Services: the value of `services/nodes/NODE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct NodeServices {
    /// Where Services come from: `etcd` or `kube`.
    pub source: String,
    /// How they are programmed: `ipvs`, `nftables`, or `auto` until it is known which.
    pub mode: String,
    /// Revision of the source that the kernel shows: etcd's, or the API server's resourceVersion. 0 before the first pass.
    pub revision: u64,
    /// Ports of Services at addresses, as they are programmed.
    pub frontends: usize,
    /// Records that are not, or not wholly, programmed.
    pub problems: usize,
    /// What failed in the last pass; it is tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    /// Why the source cannot be followed, while it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// Everything that a node knows of its Services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct ServicesReport {
    /// Name of the node.
    pub node: String,
    /// In short.
    #[serde(flatten)]
    pub summary: NodeServices,
    /// Records that are not, or not wholly, programmed, and why.
    pub notes: Vec<StatusNote>,
    /// What clients talk to.
    pub services: Vec<FrontendStatus>,
}

/// Something that is not, or not wholly, programmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusNote {
    /// Which record or Service.
    pub subject: String,
    /// What and why.
    pub text: String,
}

/// One port of a Service at one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStatus {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of its port; empty for an unnamed one.
    pub port_name: String,
    /// `ClusterIP`, `ExternalIP`, `LoadBalancer` or `NodePort`.
    pub kind: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The address; `None` for a node port, which has those of the node.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// How new connections are spread.
    pub scheduler: String,
    /// Seconds for which a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// Who may connect; `None` is anybody.
    pub source_ranges: Option<Vec<String>>,
    /// Endpoints see the address of a client from outside, who reaches those of this node only.
    pub keep_source: bool,
    /// What was carried, where the kernel counts it.
    pub traffic: Option<Traffic>,
    /// Who answers, and who goes on answering connections that are open.
    pub endpoints: Vec<EndpointStatus>,
}

impl FrontendStatus {
    /// `10.96.0.10:80`, `[fd00::a]:80`, or `*:30080` for a node port.
    pub fn at(&self) -> String {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).to_string(),
            None => format!("*:{}", self.port),
        }
    }
}

/// One endpoint of a frontend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Where it listens.
    pub address: SocketAddr,
    /// Share of new connections for weighted schedulers.
    pub weight: u32,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether it takes new connections of pods and of the node.
    pub inside: bool,
    /// Whether it takes new connections of everybody else.
    pub outside: bool,
    /// Established connections, where they were counted. With nftables, of TCP alone.
    pub active: Option<u64>,
    /// Other connections that are remembered, where they were counted: those that end, and all without states.
    pub inactive: Option<u64>,
}

/// What a frontend has carried since it was programmed; `None` where the kernel does not count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Connections that were begun.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: Option<u64>,
    /// Packets to clients.
    pub packets_out: Option<u64>,
    /// Bytes from clients.
    pub bytes_in: Option<u64>,
    /// Bytes to clients.
    pub bytes_out: Option<u64>,
}

/// What happens to packets for one address and port on a node, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Name of the node.
    pub node: String,
    /// In short.
    #[serde(flatten)]
    pub summary: NodeServices,
    /// What happens, in sentences.
    pub verdict: Vec<String>,
    /// What listens there.
    pub services: Vec<FrontendStatus>,
    /// Endpoints of these Services that take nothing, and why.
    pub unused: Vec<UnusedEndpoint>,
    /// What is left out of the Services that ask for this address, and why.
    pub notes: Vec<StatusNote>,
}

/// An endpoint that takes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnusedEndpoint {
    /// The Service, as `namespace/name`.
    pub service: String,
    /// Name of the Service's port.
    pub port_name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Why it is not used.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_another_version_is_read() {
        let text = r#"{"source":"etcd","mode":"ipvs","revision":7,"frontends":3,"problems":0,"later":[]}"#;
        let read: NodeServices = serde_json::from_str(text).unwrap();
        assert_eq!((read.revision, read.failed.len()), (7, 0));
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(
            written,
            r#"{"source":"etcd","mode":"ipvs","revision":7,"frontends":3,"problems":0}"#
        );
    }

    #[test]
    fn a_report_holds_its_summary_without_a_level_of_its_own() {
        let report = ServicesReport {
            node: "n1".to_owned(),
            ..ServicesReport::default()
        };
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["mode"], "");
        assert_eq!(serde_json::from_value::<ServicesReport>(value).unwrap(), report);
    }
}
