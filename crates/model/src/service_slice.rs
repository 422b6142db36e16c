//! Endpoints of Services: `services/v1/slices/NAMESPACE/NAME/WRITER[-N]` with the fields of an EndpointSlice, and
//! `services/v1/endpoints/NAMESPACE/NAME/PORTNAME/IP:PORT` with one endpoint each.

use std::net::IpAddr;

use serde_json::Value;

use crate::service_fields::{
    Faults, Field, PORT_NUMBER, ServiceFieldError, from_text, parse, port_number, read_value,
};
use crate::service_key::LABEL_FORM;
use crate::service_spec::{is_host_address, port_name, read_protocol};
use crate::{ServiceProtocol, ServiceValueError};

/// Largest weight of a real server; `ipvsadm` takes 0 to 65535.
const MAX_WEIGHT: u64 = 65535;

/// Whether an endpoint takes traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointState {
    /// Takes new connections.
    Ready,
    /// On its way out but still answering: used where no endpoint is ready.
    Terminating,
    /// Not to be used.
    NotReady,
}

/// A port of all endpoints of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port that it belongs to.
    pub name: String,
    /// Transport protocol.
    pub protocol: ServiceProtocol,
    /// Port that the endpoints listen on.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of its addresses: the one that is used.
    pub address: IpAddr,
    /// What its conditions amount to.
    pub state: EndpointState,
    /// Name of its node.
    pub node: Option<Box<str>>,
    /// Who should use it, where anybody is named. Apart, because there are endpoints by the hundred thousand and few with hints.
    pub hints: Option<Box<EndpointHints>>,
    /// Share of new connections for weighted schedulers, 0 to 65535; 1 when absent. Kubernetes has no such field.
    pub weight: u32,
}

/// Who should use an endpoint (`hints`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointHints {
    /// Zones (`forZones`).
    pub for_zones: Vec<String>,
    /// Nodes (`forNodes`).
    pub for_nodes: Vec<String>,
}

/// Endpoints of one Service that share their ports. Empty where the addresses are host names, which IPVS cannot use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointSlice {
    /// Their ports. A port without a number is left out.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint with a key of its own; its Service, port name and address stand in the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// Share of new connections for weighted schedulers, 0 to 65535; 0 takes none. 1 when absent.
    pub weight: u32,
    /// Whether it takes traffic; ready when absent.
    pub state: EndpointState,
    /// Name of its node.
    pub node: Option<Box<str>>,
}

impl EndpointSlice {
    /// Reads the value of a slice key. Unknown fields are ignored.
    pub fn parse(value: &[u8]) -> Result<Self, ServiceValueError> {
        parse(value, read_slice)
    }

    /// Reads JSON that is already taken apart, such as a manifest.
    pub fn from_value(value: &Value) -> Result<Self, Vec<ServiceFieldError>> {
        read_value(value, read_slice)
    }
}

impl ServiceEndpoint {
    /// Reads the value of an endpoint key. Unknown fields are ignored.
    pub fn parse(value: &[u8]) -> Result<Self, ServiceValueError> {
        parse(value, |root, faults| {
            let endpoint = Self {
                weight: read_weight(root, faults),
                state: root
                    .get("state")
                    .optional(faults, "ready, terminating or notReady", state)
                    .unwrap_or(EndpointState::Ready),
                node: root.get("node").text(faults).map(Box::from),
            };
            // checked, and of no use here: hints say whom an endpoint is for
            root.get("zone").text(faults);
            Some(endpoint)
        })
    }
}

fn read_weight(item: &Field<'_>, faults: &mut Faults) -> u32 {
    let weight = |v: &Value| {
        let weight = v.as_u64().filter(|w| *w <= MAX_WEIGHT);
        weight.and_then(|w| u32::try_from(w).ok())
    };
    item.get("weight")
        .optional(faults, "a number from 0 to 65535", weight)
        .unwrap_or(1)
}

/// The names in a list of hints.
fn read_hints(list: &Field<'_>, faults: &mut Faults) -> Vec<String> {
    let items = list.items(faults);
    let names = items.iter().filter_map(|i| i.get("name").text(faults));
    names.map(str::to_owned).collect()
}

fn state(value: &Value) -> Option<EndpointState> {
    match value.as_str()? {
        "ready" => Some(EndpointState::Ready),
        "terminating" => Some(EndpointState::Terminating),
        "notReady" => Some(EndpointState::NotReady),
        _ => None,
    }
}

/// Which addresses a slice holds.
#[derive(Clone, Copy, PartialEq)]
enum AddressType {
    V4,
    V6,
    Fqdn,
}

fn read_slice(root: &Field<'_>, faults: &mut Faults) -> Option<EndpointSlice> {
    let kind = root
        .get("addressType")
        .required(faults, "IPv4, IPv6 or FQDN", address_type)?;
    let ports = root
        .get("ports")
        .items(faults)
        .iter()
        .filter_map(|p| read_port(p, faults))
        .collect();
    let endpoints = root.get("endpoints").items(faults);
    if kind == AddressType::Fqdn {
        return Some(EndpointSlice::default());
    }
    let endpoints = endpoints
        .iter()
        .filter_map(|e| read_endpoint(e, kind, faults))
        .collect();
    Some(EndpointSlice { ports, endpoints })
}

fn address_type(value: &Value) -> Option<AddressType> {
    match value.as_str()? {
        "IPv4" => Some(AddressType::V4),
        "IPv6" => Some(AddressType::V6),
        "FQDN" => Some(AddressType::Fqdn),
        _ => None,
    }
}

fn read_port(item: &Field<'_>, faults: &mut Faults) -> Option<SlicePort> {
    let name = item
        .get("name")
        .optional(faults, LABEL_FORM, port_name)
        .unwrap_or_default();
    let protocol = read_protocol(item, faults);
    let port = item.get("port").optional(faults, PORT_NUMBER, port_number)?;
    Some(SlicePort { name, protocol, port })
}

fn read_endpoint(item: &Field<'_>, kind: AddressType, faults: &mut Faults) -> Option<SliceEndpoint> {
    let addresses = item.get("addresses");
    let list = addresses.items(faults);
    let Some(first) = list.first() else {
        faults.add(&addresses, "a list with one address");
        return None;
    };
    let expected = if kind == AddressType::V4 {
        "a unicast IPv4 address"
    } else {
        "a unicast IPv6 address"
    };
    let fits = |ip: &IpAddr| is_host_address(ip) && ip.is_ipv4() == (kind == AddressType::V4);
    let address = first.required(faults, expected, |v| from_text::<IpAddr>(v).filter(fits));
    let state = read_conditions(&item.get("conditions"), faults);
    let node = item.get("nodeName").text(faults).map(Box::from);
    // checked, and of no use here: hints say whom an endpoint is for
    item.get("zone").text(faults);
    let field = item.get("hints");
    let hints = EndpointHints {
        for_zones: read_hints(&field.get("forZones"), faults),
        for_nodes: read_hints(&field.get("forNodes"), faults),
    };
    let weight = read_weight(item, faults);
    Some(SliceEndpoint {
        address: address?,
        state,
        node,
        hints: (hints != EndpointHints::default()).then(|| Box::new(hints)),
        weight,
    })
}

/// Kubernetes' reading of conditions: an absent `ready` is true, an absent `serving` equals `ready`.
fn read_conditions(conditions: &Field<'_>, faults: &mut Faults) -> EndpointState {
    let mut read = |name| {
        conditions
            .get(name)
            .optional(faults, "true or false", Value::as_bool)
    };
    let ready = read("ready").unwrap_or(true);
    let serving = read("serving").unwrap_or(ready);
    let terminating = read("terminating").unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => EndpointState::Ready,
        (false, true) => EndpointState::Terminating,
        (false, false) => EndpointState::NotReady,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(endpoints: &str) -> Result<EndpointSlice, ServiceValueError> {
        let text = format!(
            r#"{{"addressType":"IPv4","ports":[{{"name":"http","port":8080}},{{"name":"any"}}],"endpoints":[{endpoints}]}}"#
        );
        EndpointSlice::parse(text.as_bytes())
    }

    #[test]
    fn conditions_follow_kubernetes() {
        for (conditions, state) in [
            ("{}", EndpointState::Ready),
            (r#"{"ready":null}"#, EndpointState::Ready),
            (r#"{"ready":false}"#, EndpointState::NotReady),
            (
                r#"{"ready":false,"serving":true,"terminating":true}"#,
                EndpointState::Terminating,
            ),
            (
                r#"{"ready":false,"serving":false,"terminating":true}"#,
                EndpointState::NotReady,
            ),
            (r#"{"ready":false,"serving":true}"#, EndpointState::NotReady),
        ] {
            let slice = slice(&format!(
                r#"{{"addresses":["10.5.1.2"],"conditions":{conditions}}}"#
            ))
            .unwrap();
            assert_eq!(slice.endpoints[0].state, state, "{conditions}");
            assert_eq!(slice.ports.len(), 1, "a port without a number is left out");
        }
    }

    #[test]
    fn faults_are_named() {
        let text = slice(r#"{"addresses":["127.0.0.1"]},{"addresses":[]},{"addresses":["fd00::1"],"conditions":{"ready":1}}"#)
            .unwrap_err()
            .to_string();
        for part in [
            "endpoints[0].addresses[0]",
            "endpoints[1].addresses",
            "endpoints[2].addresses[0]",
            "conditions.ready: 1",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(
            EndpointSlice::parse(b"{}")
                .unwrap_err()
                .to_string()
                .contains("addressType: is missing")
        );
    }

    #[test]
    fn hints_and_weights_are_read() {
        let slice = slice(
            r#"{"addresses":["10.5.1.2"],"weight":7,"hints":{"forZones":[{"name":"a"},{"name":"b"}],"forNodes":[{"name":"n1"}]}}"#,
        )
        .unwrap();
        let endpoint = &slice.endpoints[0];
        let hints = endpoint.hints.as_ref().unwrap();
        assert_eq!((endpoint.weight, hints.for_zones.len()), (7, 2));
        assert_eq!(hints.for_nodes, ["n1"]);
    }

    #[test]
    fn host_names_are_no_endpoints() {
        let slice =
            EndpointSlice::parse(br#"{"addressType":"FQDN","endpoints":[{"addresses":["a.b"]}]}"#).unwrap();
        assert!(slice.endpoints.is_empty());
    }

    #[test]
    fn an_endpoint_of_its_own() {
        let plain = ServiceEndpoint::parse(b"{}").unwrap();
        assert_eq!((plain.weight, plain.state), (1, EndpointState::Ready));
        let full =
            ServiceEndpoint::parse(br#"{"weight":0,"state":"terminating","node":"n1","zone":"a"}"#).unwrap();
        assert_eq!((full.weight, full.state), (0, EndpointState::Terminating));
        let text = ServiceEndpoint::parse(br#"{"weight":70000,"state":"up"}"#)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("weight: 70000") && text.contains("state: \"up\""),
            "{text}"
        );
    }
}
