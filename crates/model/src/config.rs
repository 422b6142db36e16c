//! The network config: the JSON that the operator writes to `<prefix>/config`.

use std::fmt;
use std::net::Ipv4Addr;

use serde_json::value::RawValue;

use crate::Ipv4Subnet;
use crate::json::Fields;

/// flannel refuses a longer SubnetLen: a subnet needs room for pods.
const LONGEST_SUBNET: u8 = 30;
/// flannel's default SubnetLen for networks up to this length is 24.
const ROOMY_NETWORK: u8 = 22;
/// Smallest Network for which a SubnetLen is derived.
const LONGEST_NETWORK: u8 = 28;

/// One field that holds what it cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Name of the field, as flannel documents it.
    pub field: String,
    /// What it holds, shortened.
    pub value: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl FieldError {
    pub(crate) fn new(field: &str, value: &str, problem: &str) -> Self {
        const LONGEST: usize = 80;
        let value = value.chars().take(LONGEST).collect();
        Self {
            field: field.to_owned(),
            value,
            problem: problem.to_owned(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.value, self.problem)
    }
}

/// Everything that is wrong with a network config, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<FieldError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The address space of the pods and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Pool {
    /// The whole address space.
    pub network: Ipv4Subnet,
    /// First subnet that is handed out.
    pub subnet_min: Ipv4Subnet,
    /// Last one.
    pub subnet_max: Ipv4Subnet,
}

impl Ipv4Pool {
    /// Length of every subnet, in bits.
    pub fn subnet_len(&self) -> u8 {
        self.subnet_min.length()
    }

    /// Whether `subnet` is one that this pool hands out.
    pub fn offers(&self, subnet: &Ipv4Subnet) -> bool {
        subnet.length() == self.subnet_len() && (self.subnet_min..=self.subnet_max).contains(subnet)
    }

    /// Every subnet of the pool in ascending order.
    pub fn subnets(&self) -> impl Iterator<Item = Ipv4Subnet> + use<> {
        let last = self.subnet_max;
        std::iter::successors(Some(self.subnet_min), Ipv4Subnet::next).take_while(move |s| *s <= last)
    }
}

/// The backend as the operator named it; its options are read by the backend itself.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// `Type` in lower case.
    pub kind: String,
    /// The whole `Backend` object.
    pub options: Box<RawValue>,
}

/// A network config that was checked.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The IPv4 pool.
    pub ipv4: Ipv4Pool,
    /// How packets travel between nodes.
    pub backend: BackendConfig,
}

impl NetworkConfig {
    /// Reads and checks a config as flannel does: names in any case, unknown fields ignored, host bits of Network cleared.
    ///
    /// # Errors
    /// All problems at once, each with its field.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigErrors> {
        let fields: Fields = serde_json::from_slice(text).map_err(|cause| {
            let shown = String::from_utf8_lossy(text);
            ConfigErrors(vec![FieldError::new(
                "config",
                &format!("{shown:?}"),
                &format!("not a JSON object ({cause})"),
            )])
        })?;
        let mut reader = Reader {
            fields: &fields,
            errors: Vec::new(),
        };
        reader.families();
        let backend = reader.backend();
        let ipv4 = reader.ipv4();
        match (ipv4, backend) {
            (Some(ipv4), Some(backend)) if reader.errors.is_empty() => Ok(Self { ipv4, backend }),
            _ => Err(ConfigErrors(reader.errors)),
        }
    }
}

struct Reader<'a> {
    fields: &'a Fields,
    errors: Vec<FieldError>,
}

impl Reader<'_> {
    fn raw(&self, name: &str) -> Option<&RawValue> {
        self.fields.get(name).filter(|raw| raw.get() != "null")
    }

    fn error(&mut self, field: &str, value: &str, problem: impl AsRef<str>) {
        self.errors.push(FieldError::new(field, value, problem.as_ref()));
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(raw) = self.raw(name) else { return default };
        let text = raw.get().to_owned();
        serde_json::from_str(&text).unwrap_or_else(|_| {
            self.error(name, &text, "expected true or false");
            default
        })
    }

    fn families(&mut self) {
        if !self.flag("EnableIPv4", true) {
            self.error(
                "EnableIPv4",
                "false",
                "a network without IPv4 is not built yet; leave it out or set it to true",
            );
        }
        if self.flag("EnableIPv6", false) {
            self.error(
                "EnableIPv6",
                "true",
                "IPv6 is not built yet; leave it out or set it to false",
            );
        }
        // Our rules are always nftables; the switch is read so that a wrong value is told.
        self.flag("EnableNFTables", false);
    }

    fn backend(&mut self) -> Option<BackendConfig> {
        let default = || RawValue::from_string(r#"{"Type":"udp"}"#.to_owned()).ok();
        let options = match self.raw("Backend") {
            Some(raw) => raw.to_owned(),
            // flannel's code takes udp for an absent Backend, whatever its documents say.
            None => default()?,
        };
        let Ok(fields) = serde_json::from_str::<Fields>(options.get()) else {
            self.error(
                "Backend",
                options.get(),
                r#"expected an object such as {"Type":"vxlan"}"#,
            );
            return None;
        };
        let kind = fields
            .get("Type")
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let Some(kind) = kind.filter(|kind| !kind.is_empty()) else {
            let shown = fields.get("Type").map_or("missing", RawValue::get).to_owned();
            self.error(
                "Backend.Type",
                &shown,
                r#"expected the name of a backend, such as "vxlan""#,
            );
            return None;
        };
        Some(BackendConfig {
            kind: kind.to_lowercase(),
            options,
        })
    }

    fn ipv4(&mut self) -> Option<Ipv4Pool> {
        let network = self.network()?;
        let length = self.subnet_len(network)?;
        let first = Ipv4Subnet::new(network.network(), length)?;
        // The first subnet is skipped: flannel keeps the network's own address out of use.
        let default_min = first.next()?;
        let default_max = Ipv4Subnet::new(network.last(), length)?;
        let min = self.boundary("SubnetMin", network, length, default_min);
        let max = self.boundary("SubnetMax", network, length, default_max);
        let (subnet_min, subnet_max) = (min?, max?);
        if subnet_min > subnet_max {
            let problem = format!(
                "lies behind SubnetMax {}, so there is no subnet to hand out",
                subnet_max.network()
            );
            self.error("SubnetMin", &subnet_min.network().to_string(), problem);
            return None;
        }
        Some(Ipv4Pool {
            network,
            subnet_min,
            subnet_max,
        })
    }

    fn network(&mut self) -> Option<Ipv4Subnet> {
        const EXPECTED: &str = r#"expected a network such as "10.5.0.0/16""#;
        let Some(raw) = self.raw("Network") else {
            self.error("Network", "missing", EXPECTED);
            return None;
        };
        let shown = raw.get().to_owned();
        let network = serde_json::from_str::<String>(&shown)
            .ok()
            .and_then(|text| text.parse::<Ipv4Subnet>().ok());
        match network {
            // flannel takes 0.0.0.0/0 for an empty Network.
            Some(network) if network.length() > 0 => Some(network),
            _ => {
                self.error("Network", &shown, EXPECTED);
                None
            }
        }
    }

    fn subnet_len(&mut self, network: Ipv4Subnet) -> Option<u8> {
        let Some(raw) = self.raw("SubnetLen") else {
            return self.default_subnet_len(network);
        };
        let shown = raw.get().to_owned();
        // flannel takes 0 for absent.
        let length = match serde_json::from_str::<u8>(&shown) {
            Ok(0) => return self.default_subnet_len(network),
            Ok(length) => length,
            Err(_) => {
                self.error("SubnetLen", &shown, "expected a whole number of bits");
                return None;
            }
        };
        if length > LONGEST_SUBNET {
            self.error(
                "SubnetLen",
                &shown,
                format!("must be less than /31: the longest subnet is /{LONGEST_SUBNET}"),
            );
            return None;
        }
        if length < network.length() + 2 {
            let problem = format!(
                "Network {network} must hold at least four subnets: expected {} to {LONGEST_SUBNET}",
                network.length() + 2
            );
            self.error("SubnetLen", &shown, problem);
            return None;
        }
        Some(length)
    }

    fn default_subnet_len(&mut self, network: Ipv4Subnet) -> Option<u8> {
        match network.length() {
            length if length > LONGEST_NETWORK => {
                let problem =
                    format!("too small: the minimum is /{LONGEST_NETWORK}, which holds four subnets");
                self.error("Network", &network.to_string(), problem);
                None
            }
            length if length <= ROOMY_NETWORK => Some(24),
            length => Some(length + 2),
        }
    }

    fn boundary(
        &mut self,
        field: &str,
        network: Ipv4Subnet,
        length: u8,
        default: Ipv4Subnet,
    ) -> Option<Ipv4Subnet> {
        let Some(raw) = self.raw(field) else {
            return Some(default);
        };
        let shown = raw.get().to_owned();
        let Some(address) = serde_json::from_str::<Ipv4Addr>(&shown).ok() else {
            self.error(field, &shown, "expected an IPv4 address");
            return None;
        };
        if address.is_unspecified() {
            return Some(default);
        }
        if !network.holds(address) {
            self.error(field, &shown, format!("is not in the range of Network {network}"));
            return None;
        }
        let subnet = Ipv4Subnet::new(address, length)?;
        if subnet.network() != address {
            let problem = format!(
                "is not on a SubnetLen boundary: the /{length} around it begins at {}",
                subnet.network()
            );
            self.error(field, &shown, problem);
            return None;
        }
        Some(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> (u8, String, String) {
        let config = NetworkConfig::parse(text.as_bytes()).unwrap();
        let pool = config.ipv4;
        (
            pool.subnet_len(),
            pool.subnet_min.network().to_string(),
            pool.subnet_max.network().to_string(),
        )
    }

    fn fields(text: &str) -> Vec<String> {
        NetworkConfig::parse(text.as_bytes())
            .unwrap_err()
            .0
            .into_iter()
            .map(|e| e.field)
            .collect()
    }

    #[test]
    fn defaults_are_flannels() {
        let of = |network: &str| pool(&format!(r#"{{"Network":"{network}"}}"#));
        assert_eq!(of("10.5.0.0/16"), (24, "10.5.1.0".into(), "10.5.255.0".into()));
        assert_eq!(of("10.5.0.0/22"), (24, "10.5.1.0".into(), "10.5.3.0".into()));
        assert_eq!(of("10.5.7.9/24"), (26, "10.5.7.64".into(), "10.5.7.192".into()));
        assert_eq!(of("10.5.0.0/28"), (30, "10.5.0.4".into(), "10.5.0.12".into()));
    }

    #[test]
    fn names_in_any_case_and_unknown_fields() {
        let text = r#"{"network":"10.5.0.0/16","SUBNETLEN":26,"Later":{},"subnetmin":"10.5.0.0","SubnetMax":"10.5.0.128","backend":{"type":"VXLAN"}}"#;
        assert_eq!(pool(text), (26, "10.5.0.0".into(), "10.5.0.128".into()));
        let config = NetworkConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.backend.kind, "vxlan");
        assert_eq!(config.ipv4.subnets().count(), 3);
    }

    #[test]
    fn an_absent_backend_is_udp_as_in_flannels_code() {
        let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#).unwrap();
        assert_eq!(config.backend.kind, "udp");
    }

    #[test]
    fn all_errors_at_once_by_field() {
        let text = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0","SubnetMax":"10.5.3.7","Backend":{"Type":""},"EnableIPv6":true}"#;
        assert_eq!(
            fields(text),
            ["EnableIPv6", "Backend.Type", "SubnetMin", "SubnetMax"]
        );
    }

    #[test]
    fn each_bad_field_is_named() {
        for (text, field) in [
            ("not json", "config"),
            ("[]", "config"),
            (r#"{}"#, "Network"),
            (r#"{"Network":7}"#, "Network"),
            (r#"{"Network":"0.0.0.0/0"}"#, "Network"),
            (r#"{"Network":"10.5.0.0/29"}"#, "Network"),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#, "SubnetLen"),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#, "SubnetLen"),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":"24"}"#, "SubnetLen"),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.2.0"}"#,
                "SubnetMin",
            ),
            (r#"{"Network":"10.5.0.0/16","SubnetMin":"x"}"#, "SubnetMin"),
            (r#"{"Network":"10.5.0.0/16","Backend":7}"#, "Backend"),
            (r#"{"Network":"10.5.0.0/16","EnableIPv4":"yes"}"#, "EnableIPv4"),
        ] {
            assert_eq!(fields(text), [field], "{text}");
        }
    }
}
