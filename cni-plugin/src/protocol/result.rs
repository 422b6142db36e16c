//! The result of ADD and its layouts.

use std::net::IpAddr;

use flannel_model::Mac;
use serde_json::{Map, Value, json};

use super::SpecVersion;

/// What ADD made, apart from any version's layout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Devices in the order clients rely on: bridge, host end, container end.
    pub interfaces: Vec<Interface>,
    /// The container's addresses.
    pub ips: Vec<IpConfig>,
    /// The container's routes.
    pub routes: Vec<Route>,
    /// Name service for the container.
    pub dns: Dns,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Device name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes; told from 1.1.0 on.
    pub mtu: Option<u32>,
    /// The container's namespace, verbatim from `CNI_NETNS`; none for devices of the host.
    pub sandbox: Option<String>,
}

/// An address of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// The address itself.
    pub address: IpAddr,
    /// Length of its subnet in bits.
    pub length: u8,
    /// The subnet's gateway.
    pub gateway: IpAddr,
    /// Index into [`AddResult::interfaces`].
    pub interface: usize,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination network.
    pub dst: (IpAddr, u8),
    /// Next hop; none means the subnet's gateway.
    pub gw: Option<IpAddr>,
}

/// Name service, as CNI knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers in order.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn to_json(&self) -> Value {
        let mut dns = Map::new();
        let mut list = |key: &str, values: &[String]| {
            if !values.is_empty() {
                dns.insert(key.to_owned(), json!(values));
            }
        };
        list("nameservers", &self.nameservers);
        list("search", &self.search);
        list("options", &self.options);
        if !self.domain.is_empty() {
            dns.insert("domain".to_owned(), json!(self.domain));
        }
        Value::Object(dns)
    }
}

impl AddResult {
    /// The JSON text in the layout of `version`.
    pub fn to_json(&self, version: SpecVersion) -> String {
        let mut top = Map::new();
        let mut set = |key: &str, value: Value| top.insert(key.to_owned(), value);
        set("cniVersion", json!(version.text()));
        set(
            "interfaces",
            self.interfaces.iter().map(|i| interface(i, version)).collect(),
        );
        set("ips", self.ips.iter().map(|ip| ip_config(ip, version)).collect());
        if !self.routes.is_empty() {
            set("routes", self.routes.iter().map(route).collect());
        }
        // Libraries before 1.0.0 always print dns, and some clients decode it without asking whether it is there.
        if version < SpecVersion::V1_0_0 || !self.dns.is_empty() {
            set("dns", self.dns.to_json());
        }
        Value::Object(top).to_string()
    }
}

fn interface(interface: &Interface, version: SpecVersion) -> Value {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(interface.name));
    if let Some(mac) = interface.mac {
        object.insert("mac".to_owned(), json!(mac.to_string()));
    }
    if let Some(mtu) = interface.mtu.filter(|_| version >= SpecVersion::V1_1_0) {
        object.insert("mtu".to_owned(), json!(mtu));
    }
    if let Some(sandbox) = &interface.sandbox {
        object.insert("sandbox".to_owned(), json!(sandbox));
    }
    Value::Object(object)
}

fn ip_config(ip: &IpConfig, version: SpecVersion) -> Value {
    let mut object = Map::new();
    if version < SpecVersion::V1_0_0 {
        let family = if ip.address.is_ipv4() { "4" } else { "6" };
        object.insert("version".to_owned(), json!(family));
    }
    object.insert("interface".to_owned(), json!(ip.interface));
    object.insert(
        "address".to_owned(),
        json!(format!("{}/{}", ip.address, ip.length)),
    );
    object.insert("gateway".to_owned(), json!(ip.gateway.to_string()));
    Value::Object(object)
}

fn route(route: &Route) -> Value {
    let mut object = Map::new();
    object.insert(
        "dst".to_owned(),
        json!(format!("{}/{}", route.dst.0, route.dst.1)),
    );
    if let Some(gw) = route.gw {
        object.insert("gw".to_owned(), json!(gw.to_string()));
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AddResult {
        let mac = |last| Some(Mac::new([2, 0, 0, 0, 0, last]));
        let device = |name: &str, last, sandbox: Option<&str>| Interface {
            name: name.to_owned(),
            mac: mac(last),
            mtu: Some(1450),
            sandbox: sandbox.map(str::to_owned),
        };
        AddResult {
            interfaces: vec![
                device("cni0", 1, None),
                device("veth0", 2, None),
                device("eth0", 3, Some("/run/netns/a")),
            ],
            ips: vec![IpConfig {
                address: "10.244.1.2".parse().unwrap(),
                length: 24,
                gateway: "10.244.1.1".parse().unwrap(),
                interface: 2,
            }],
            routes: vec![
                Route {
                    dst: ("10.244.0.0".parse().unwrap(), 16),
                    gw: None,
                },
                Route {
                    dst: ("0.0.0.0".parse().unwrap(), 0),
                    gw: Some("10.244.1.1".parse().unwrap()),
                },
            ],
            dns: Dns::default(),
        }
    }

    const ROUTES: &str = r#""routes":[{"dst":"10.244.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]"#;

    #[test]
    fn before_1_0_0_addresses_carry_their_family_and_dns_is_there() {
        for version in [SpecVersion::V0_3_0, SpecVersion::V0_3_1, SpecVersion::V0_4_0] {
            let head = format!(r#"{{"cniVersion":"{}","dns":{{}},"#, version.text());
            let devices = r#""interfaces":[{"mac":"02:00:00:00:00:01","name":"cni0"},{"mac":"02:00:00:00:00:02","name":"veth0"},{"mac":"02:00:00:00:00:03","name":"eth0","sandbox":"/run/netns/a"}],"#;
            let ips =
                r#""ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":2,"version":"4"}],"#;
            assert_eq!(
                sample().to_json(version),
                format!("{head}{devices}{ips}{ROUTES}}}")
            );
        }
    }

    #[test]
    fn version_1_0_0() {
        let devices = r#""interfaces":[{"mac":"02:00:00:00:00:01","name":"cni0"},{"mac":"02:00:00:00:00:02","name":"veth0"},{"mac":"02:00:00:00:00:03","name":"eth0","sandbox":"/run/netns/a"}],"#;
        let ips = r#""ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":2}],"#;
        assert_eq!(
            sample().to_json(SpecVersion::V1_0_0),
            format!(r#"{{"cniVersion":"1.0.0",{devices}{ips}{ROUTES}}}"#)
        );
    }

    #[test]
    fn version_1_1_0_tells_the_mtu() {
        let devices = r#""interfaces":[{"mac":"02:00:00:00:00:01","mtu":1450,"name":"cni0"},{"mac":"02:00:00:00:00:02","mtu":1450,"name":"veth0"},{"mac":"02:00:00:00:00:03","mtu":1450,"name":"eth0","sandbox":"/run/netns/a"}],"#;
        let ips = r#""ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":2}],"#;
        assert_eq!(
            sample().to_json(SpecVersion::V1_1_0),
            format!(r#"{{"cniVersion":"1.1.0",{devices}{ips}{ROUTES}}}"#)
        );
    }

    #[test]
    fn dns_is_printed_when_set() {
        let mut result = sample();
        result.dns = Dns {
            nameservers: vec!["10.96.0.53".to_owned()],
            domain: "cluster.local".to_owned(),
            ..Dns::default()
        };
        let text = result.to_json(SpecVersion::V1_0_0);
        assert!(
            text.contains(r#""dns":{"domain":"cluster.local","nameservers":["10.96.0.53"]}"#),
            "{text}"
        );
    }
}
