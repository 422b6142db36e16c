//! The result of ADD and its layouts.

use std::net::IpAddr;

use flannel_model::Mac;
use serde_json::{Map, Value, json};

use super::args::network;
use super::keys::Keys;
use super::{CniError, SpecVersion};

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Device name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes; told from 1.1.0 on.
    pub mtu: Option<u32>,
    /// The container's namespace, verbatim from `CNI_NETNS`; none for devices of the host.
    pub sandbox: Option<String>,
    /// `socketPath` of another plugin's device; told from 1.1.0 on.
    pub socket_path: Option<String>,
    /// `pciID` of another plugin's device; told from 1.1.0 on.
    pub pci_id: Option<String>,
}

/// An address of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// The address itself.
    pub address: IpAddr,
    /// Length of its subnet in bits.
    pub length: u8,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
    /// Index into [`AddResult::interfaces`].
    pub interface: Option<usize>,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination network.
    pub dst: (IpAddr, u8),
    /// Next hop; none means the subnet's gateway.
    pub gw: Option<IpAddr>,
    /// Metrics and place; told from 1.1.0 on.
    pub options: RouteOptions,
}

/// What 1.1.0 adds to a route. Zero and absent are the same for all but the scope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteOptions {
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Segment size told to TCP peers, in bytes.
    pub advmss: Option<u32>,
    /// Metric; lower wins.
    pub priority: Option<u32>,
    /// Routing table; the main one when absent.
    pub table: Option<u32>,
    /// Scope as in `ip route` (253 is link).
    pub scope: Option<u8>,
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

impl Route {
    /// A route without options.
    pub fn new(dst: (IpAddr, u8), gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            options: RouteOptions::default(),
        }
    }

    /// Reads `{"dst": …, "gw": …}` and the options of 1.1.0.
    ///
    /// # Errors
    /// Code 7 naming the key.
    pub fn read(keys: &Keys<'_>) -> Result<Self, CniError> {
        let text = |name: &str| Ok(keys.text(name)?.unwrap_or_default());
        let dst = text("dst")?;
        let dst = network(dst)
            .ok_or_else(|| keys.fault("dst", &Value::from(dst), "a network such as 10.0.0.0/8"))?;
        let gw = match text("gw")? {
            "" => None,
            text => {
                let same_family = |gw: &IpAddr| gw.is_ipv4() == dst.0.is_ipv4();
                let gw = text.parse().ok().filter(same_family);
                let expected = "an address of the same family as dst";
                Some(gw.ok_or_else(|| keys.fault("gw", &Value::from(text), expected))?)
            }
        };
        Ok(Self {
            dst,
            gw,
            options: RouteOptions::read(keys)?,
        })
    }
}

impl RouteOptions {
    fn read(keys: &Keys<'_>) -> Result<Self, CniError> {
        let number = |name: &str| Ok(keys.number(name, 0, u32::MAX)?.filter(|n| *n != 0));
        let scope = keys.number("scope", 0, u8::MAX.into())?;
        Ok(Self {
            mtu: number("mtu")?,
            advmss: number("advmss")?,
            priority: number("priority")?,
            table: number("table")?,
            scope: scope.and_then(|scope| u8::try_from(scope).ok()),
        })
    }
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads `dns`.
    ///
    /// # Errors
    /// Code 7 naming the key.
    pub fn read(keys: &Keys<'_>) -> Result<Self, CniError> {
        Ok(Self {
            nameservers: keys.texts("nameservers")?,
            domain: keys.text("domain")?.unwrap_or_default().to_owned(),
            search: keys.texts("search")?,
            options: keys.texts("options")?,
        })
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
    /// This result behind that of an earlier plugin of the chain.
    #[must_use]
    pub fn behind(self, mut earlier: Self) -> Self {
        let shift = earlier.interfaces.len();
        let moved = self.ips.into_iter().map(|ip| IpConfig {
            interface: ip.interface.map(|index| index + shift),
            ..ip
        });
        earlier.ips.extend(moved);
        earlier.interfaces.extend(self.interfaces);
        earlier.routes.extend(self.routes);
        if !self.dns.is_empty() {
            earlier.dns = self.dns;
        }
        earlier
    }

    /// The JSON text in the layout of `version`. Before 0.3.0 that is the first address of each family.
    pub fn to_json(&self, version: SpecVersion) -> String {
        let mut top = Map::new();
        top.insert("cniVersion".to_owned(), json!(version.text()));
        match version < SpecVersion::V0_3_0 {
            true => self.old_layout(&mut top),
            false => self.new_layout(version, &mut top),
        }
        // Libraries before 1.0.0 always print dns, and some clients decode it without asking whether it is there.
        if version < SpecVersion::V1_0_0 || !self.dns.is_empty() {
            top.insert("dns".to_owned(), self.dns.to_json());
        }
        Value::Object(top).to_string()
    }

    fn new_layout(&self, version: SpecVersion, top: &mut Map<String, Value>) {
        let mut set = |key: &str, value: Value| top.insert(key.to_owned(), value);
        set(
            "interfaces",
            self.interfaces.iter().map(|i| interface(i, version)).collect(),
        );
        set("ips", self.ips.iter().map(|ip| ip_config(ip, version)).collect());
        if !self.routes.is_empty() {
            set("routes", self.routes.iter().map(|r| route(r, version)).collect());
        }
    }

    fn old_layout(&self, top: &mut Map<String, Value>) {
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else {
                continue;
            };
            let mut object = Map::new();
            object.insert("ip".to_owned(), json!(format!("{}/{}", ip.address, ip.length)));
            if let Some(gateway) = ip.gateway {
                object.insert("gateway".to_owned(), json!(gateway.to_string()));
            }
            let of_family = self.routes.iter().filter(|r| r.dst.0.is_ipv4() == v4);
            let routes: Vec<Value> = of_family.map(|r| route(r, SpecVersion::V0_1_0)).collect();
            if !routes.is_empty() {
                object.insert("routes".to_owned(), json!(routes));
            }
            top.insert(key.to_owned(), Value::Object(object));
        }
    }
}

fn interface(interface: &Interface, version: SpecVersion) -> Value {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(interface.name));
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(key.to_owned(), value);
        }
    };
    set("mac", interface.mac.map(|mac| json!(mac.to_string())));
    set("sandbox", interface.sandbox.as_ref().map(|path| json!(path)));
    if version >= SpecVersion::V1_1_0 {
        set("mtu", interface.mtu.map(|mtu| json!(mtu)));
        set(
            "socketPath",
            interface.socket_path.as_ref().map(|path| json!(path)),
        );
        set("pciID", interface.pci_id.as_ref().map(|id| json!(id)));
    }
    Value::Object(object)
}

fn ip_config(ip: &IpConfig, version: SpecVersion) -> Value {
    let mut object = Map::new();
    if version < SpecVersion::V1_0_0 {
        let family = if ip.address.is_ipv4() { "4" } else { "6" };
        object.insert("version".to_owned(), json!(family));
    }
    if let Some(index) = ip.interface {
        object.insert("interface".to_owned(), json!(index));
    }
    object.insert(
        "address".to_owned(),
        json!(format!("{}/{}", ip.address, ip.length)),
    );
    if let Some(gateway) = ip.gateway {
        object.insert("gateway".to_owned(), json!(gateway.to_string()));
    }
    Value::Object(object)
}

fn route(route: &Route, version: SpecVersion) -> Value {
    let mut object = Map::new();
    let dst = format!("{}/{}", route.dst.0, route.dst.1);
    object.insert("dst".to_owned(), json!(dst));
    if let Some(gw) = route.gw {
        object.insert("gw".to_owned(), json!(gw.to_string()));
    }
    if version >= SpecVersion::V1_1_0 {
        let options = route.options;
        let numbers = [
            ("mtu", options.mtu),
            ("advmss", options.advmss),
            ("priority", options.priority),
            ("table", options.table),
            ("scope", options.scope.map(u32::from)),
        ];
        for (key, value) in numbers {
            if let Some(value) = value {
                object.insert(key.to_owned(), json!(value));
            }
        }
    }
    Value::Object(object)
}

/// A result as ADD gives it.
#[cfg(test)]
pub(super) fn sample() -> AddResult {
    let mac = |last| Some(Mac::new([2, 0, 0, 0, 0, last]));
    let device = |name: &str, last, sandbox: Option<&str>| Interface {
        name: name.to_owned(),
        mac: mac(last),
        mtu: Some(1450),
        sandbox: sandbox.map(str::to_owned),
        ..Interface::default()
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
            gateway: "10.244.1.1".parse().ok(),
            interface: Some(2),
        }],
        routes: vec![
            Route::new(("10.244.0.0".parse().unwrap(), 16), None),
            Route::new(("0.0.0.0".parse().unwrap(), 0), "10.244.1.1".parse().ok()),
        ],
        dns: Dns::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn before_0_3_0_there_is_one_address_a_family() {
        let mut result = sample();
        result.ips.push(IpConfig {
            address: "fd00::2".parse().unwrap(),
            length: 64,
            gateway: None,
            interface: None,
        });
        let ip4 = r#""ip4":{"gateway":"10.244.1.1","ip":"10.244.1.2/24","#;
        let expected =
            format!(r#"{{"cniVersion":"0.2.0","dns":{{}},{ip4}{ROUTES}}},"ip6":{{"ip":"fd00::2/64"}}}}"#);
        assert_eq!(result.to_json(SpecVersion::V0_2_0), expected);
    }

    #[test]
    fn a_result_of_an_earlier_plugin_stays_in_front() {
        let both = sample().behind(sample());
        assert_eq!((both.interfaces.len(), both.ips.len()), (6, 2));
        assert_eq!((both.ips[0].interface, both.ips[1].interface), (Some(2), Some(5)));
    }

    #[test]
    fn options_of_a_route_are_told_since_1_1_0() {
        let text = r#"{"dst":"10.9.0.0/16","GW":"10.1.0.1","mtu":1400,"advmss":0,"priority":9,"table":100,"scope":253}"#;
        let object: Map<String, Value> = serde_json::from_str(text).unwrap();
        let mut result = sample();
        result.routes = vec![Route::read(&Keys::new("r", &object)).unwrap()];
        let printed = result.to_json(SpecVersion::V1_1_0);
        let part = r#""routes":[{"dst":"10.9.0.0/16","gw":"10.1.0.1","mtu":1400,"priority":9,"scope":253,"table":100}]"#;
        assert!(printed.contains(part), "{printed}");
        assert!(!result.to_json(SpecVersion::V1_0_0).contains("1400"));
    }
}
