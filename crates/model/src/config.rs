//! The network config: the JSON that the operator writes to `<prefix>/config`.

use serde_json::value::RawValue;

use crate::config_error::Reader;
use crate::json::Fields;
use crate::pool::{self, Ipv4Pool, Ipv6Pool};
use crate::{ConfigErrors, Families, FieldError, IpipOptions, UdpOptions, VxlanOptions, WireguardOptions};

/// What the backend's options say, for the backends that this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendSettings {
    /// `"Type": "vxlan"`.
    Vxlan(VxlanOptions),
    /// `"Type": "host-gw"`, which has no options.
    HostGw,
    /// `"Type": "ipip"`.
    Ipip(IpipOptions),
    /// `"Type": "wireguard"`.
    Wireguard(WireguardOptions),
    /// `"Type": "udp"`.
    Udp(UdpOptions),
    /// `"Type": "alloc"`, which has no options.
    Alloc,
    /// Any other backend; its options were not read.
    Unread,
}

/// The backend as the operator named it.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// `Type` in lower case.
    pub kind: String,
    /// The whole `Backend` object.
    pub options: Box<RawValue>,
    /// What its options resolve to.
    pub settings: BackendSettings,
}

/// A network config that was checked.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The pool of each family that is on.
    pub pools: Families<Ipv4Pool, Ipv6Pool>,
    /// How packets travel between nodes.
    pub backend: BackendConfig,
}

/// What a config asks for, known also when parts of it are bad.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// EnableIPv4.
    pub ipv4: bool,
    /// EnableIPv6.
    pub ipv6: bool,
    /// The backend, unless it cannot be read.
    pub backend: Option<&'a BackendConfig>,
}

impl NetworkConfig {
    /// Reads and checks a config as flannel does: names in any case, unknown fields ignored, host bits of Network cleared.
    ///
    /// # Errors
    /// All problems at once, each with its field.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigErrors> {
        Self::parse_for(text, |_| Vec::new())
    }

    /// The same for somebody who can carry out only some configs: `limits` names what is asked for in vain.
    ///
    /// # Errors
    /// All problems at once, those of `limits` among them.
    pub fn parse_for(
        text: &[u8],
        limits: impl FnOnce(Asked<'_>) -> Vec<FieldError>,
    ) -> Result<Self, ConfigErrors> {
        let fields: Fields = serde_json::from_slice(text).map_err(|cause| {
            let shown = String::from_utf8_lossy(text);
            ConfigErrors(vec![FieldError::new(
                "config",
                &format!("{shown:?}"),
                &format!("not a JSON object ({cause})"),
            )])
        })?;
        let mut reader = Reader::new(&fields);
        let (ipv4, ipv6) = families(&mut reader);
        let ipv4_pool = ipv4.then(|| pool::read(&mut reader, &pool::IPV4)).flatten();
        let ipv6_pool = ipv6.then(|| pool::read(&mut reader, &pool::IPV6)).flatten();
        let backend = backend(&mut reader);
        reader.errors.extend(limits(Asked {
            ipv4,
            ipv6,
            backend: backend.as_ref(),
        }));
        match (Families::new(ipv4_pool, ipv6_pool), backend) {
            (Some(pools), Some(backend)) if reader.errors.is_empty() => Ok(Self { pools, backend }),
            _ => Err(ConfigErrors(reader.errors)),
        }
    }
}

fn families(reader: &mut Reader<'_>) -> (bool, bool) {
    let ipv4 = reader.flag("EnableIPv4", true);
    let ipv6 = reader.flag("EnableIPv6", false);
    if !ipv4 && !ipv6 {
        let problem = "EnableIPv6 is not true either; a network has IPv4, IPv6 or both";
        reader.error("EnableIPv4", "false", problem);
    }
    // Our rules are always nftables; the switch is read so that a wrong value is told.
    reader.flag("EnableNFTables", false);
    (ipv4, ipv6)
}

fn backend(reader: &mut Reader<'_>) -> Option<BackendConfig> {
    // flannel's code takes udp for an absent Backend, whatever its documents say.
    let text = reader.raw("Backend").unwrap_or(r#"{"Type":"udp"}"#);
    let (Ok(fields), Ok(options)) = (
        serde_json::from_str::<Fields>(text),
        RawValue::from_string(text.to_owned()),
    ) else {
        reader.error("Backend", text, r#"expected an object such as {"Type":"vxlan"}"#);
        return None;
    };
    let kind = fields
        .get("Type")
        .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let Some(kind) = kind.filter(|kind| !kind.is_empty()) else {
        let shown = fields.get("Type").map_or("missing", RawValue::get);
        let problem = r#"expected the name of a backend, such as "vxlan""#;
        reader.error("Backend.Type", shown, problem);
        return None;
    };
    let kind = kind.to_lowercase();
    let settings = match kind.as_str() {
        "vxlan" => VxlanOptions::parse(&options).map(BackendSettings::Vxlan),
        "host-gw" => Ok(BackendSettings::HostGw),
        "ipip" => IpipOptions::parse(&options).map(BackendSettings::Ipip),
        "wireguard" => WireguardOptions::parse(&options).map(BackendSettings::Wireguard),
        "udp" => UdpOptions::parse(&options).map(BackendSettings::Udp),
        "alloc" => Ok(BackendSettings::Alloc),
        _ => Ok(BackendSettings::Unread),
    };
    let settings = settings.unwrap_or_else(|errors| {
        reader.errors.extend(errors);
        BackendSettings::Unread
    });
    Some(BackendConfig {
        kind,
        options,
        settings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pool, Subnet};

    fn parse(text: &str) -> Result<NetworkConfig, ConfigErrors> {
        NetworkConfig::parse(text.as_bytes())
    }

    fn cut<S: Subnet>(pool: &Pool<S>) -> (u8, String, String) {
        (
            pool.subnet_len(),
            pool.subnet_min.network().to_string(),
            pool.subnet_max.network().to_string(),
        )
    }

    fn errors(text: &str) -> Vec<FieldError> {
        parse(text).unwrap_err().0
    }

    fn fields(text: &str) -> Vec<String> {
        errors(text).into_iter().map(|e| e.field).collect()
    }

    /// A dual-stack config with these fields in front.
    fn dual(more: &str) -> String {
        format!(
            r#"{{{more}"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{{"Type":"vxlan"}}}}"#
        )
    }

    #[test]
    fn defaults_are_flannels() {
        for (network, length, min, max) in [
            ("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
            ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
            ("10.5.7.9/24", 26, "10.5.7.64", "10.5.7.192"),
            ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ] {
            let config = parse(&format!(r#"{{"Network":"{network}"}}"#)).unwrap();
            let pool = config.pools.ipv4().unwrap();
            assert_eq!(cut(pool), (length, min.into(), max.into()));
            assert!(config.pools.ipv6().is_none());
        }
        for (network, length, min, max) in [
            ("fd00:5::/48", 64, "fd00:5:0:1::", "fd00:5:0:ffff::"),
            ("fd00:5::/62", 64, "fd00:5:0:1::", "fd00:5:0:3::"),
            ("fd00:5::1/64", 66, "fd00:5:0:0:4000::", "fd00:5:0:0:c000::"),
            ("fd00:5::/124", 126, "fd00:5::4", "fd00:5::c"),
        ] {
            let text = format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}"}}"#);
            let config = parse(&text).unwrap();
            assert_eq!(
                cut(config.pools.ipv6().unwrap()),
                (length, min.into(), max.into())
            );
            assert!(config.pools.ipv4().is_none());
        }
    }

    #[test]
    fn names_in_any_case_and_unknown_fields() {
        let text = r#"{"network":"10.5.0.0/16","SUBNETLEN":26,"Later":{},"subnetmin":"10.5.0.0","SubnetMax":"10.5.0.128","backend":{"type":"VXLAN"}}"#;
        let config = parse(text).unwrap();
        let pool = config.pools.ipv4().unwrap();
        assert_eq!(cut(pool), (26, "10.5.0.0".into(), "10.5.0.128".into()));
        assert_eq!(config.backend.kind, "vxlan");
        assert!(matches!(config.backend.settings, BackendSettings::Vxlan(_)));
        assert_eq!((pool.subnets().count(), pool.count()), (3, 3));
    }

    #[test]
    fn dual_stack_has_two_pools() {
        let config = parse(&dual(
            r#""IPv6SubnetLen":80,"IPv6SubnetMin":"fd00:5::","IPv6SubnetMax":"fd00:5:0:0:3::","#,
        ))
        .unwrap();
        let Families::Dual(ipv4, ipv6) = config.pools else {
            panic!("{config:?}")
        };
        assert_eq!(ipv4.subnet_len(), 24);
        // The unspecified address would mean the default; the network's own address is an explicit first subnet.
        assert_eq!(cut(&ipv6), (80, "fd00:5::".into(), "fd00:5:0:0:3::".into()));
        assert_eq!(ipv6.count(), 4);
    }

    #[test]
    fn an_ipv6_pool_may_be_huge() {
        let text = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/8"}"#;
        let pool = *parse(text).unwrap().pools.ipv6().unwrap();
        assert_eq!(pool.count(), (1 << 56) - 1);
        assert_eq!(
            pool.subnets().take(2).last().unwrap().to_string(),
            "fd00:0:0:2::/64"
        );
    }

    #[test]
    fn ipv6_fields_count_only_when_ipv6_is_on() {
        assert!(parse(r#"{"Network":"10.5.0.0/16","IPv6Network":"junk"}"#).is_ok());
        assert!(
            parse(r#"{"Network":7,"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#).is_ok()
        );
    }

    #[test]
    fn an_absent_backend_is_udp_as_in_flannels_code() {
        let config = parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        assert_eq!(config.backend.kind, "udp");
        assert_eq!(
            config.backend.settings,
            BackendSettings::Udp(UdpOptions::default())
        );
    }

    #[test]
    fn all_errors_at_once_by_field() {
        let text = r#"{"EnableNFTables":1,"Network":"10.5.0.0/16","SubnetLen":31,"SubnetMin":"10.6.0.0","SubnetMax":7,
            "EnableIPv6":true,"IPv6SubnetLen":200,"IPv6SubnetMin":"10.0.0.0","Backend":{"Type":"vxlan","VNI":-1,"Port":99999}}"#;
        assert_eq!(
            fields(text),
            [
                "EnableNFTables",
                "SubnetLen",
                "SubnetMin",
                "SubnetMax",
                "IPv6Network",
                "IPv6SubnetLen",
                "IPv6SubnetMin",
                "Backend.VNI",
                "Backend.Port"
            ]
        );
    }

    #[test]
    fn what_the_caller_cannot_do_is_told_with_the_rest() {
        let limits = |asked: Asked<'_>| {
            assert!(asked.ipv4 && asked.ipv6);
            let kind = &asked.backend.unwrap().kind;
            vec![FieldError::new("Backend.Type", kind, "not here")]
        };
        let text = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}"#;
        let errors = NetworkConfig::parse_for(text.as_bytes(), limits).unwrap_err();
        let fields: Vec<&str> = errors.0.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["IPv6Network", "Backend.Type"]);
    }

    #[test]
    fn each_bad_field_is_named_and_the_reason_told() {
        for (text, field, part) in [
            ("not json", "config", "JSON"),
            ("[]", "config", "JSON"),
            (r#"{}"#, "Network", "define a correct Network parameter"),
            (r#"{"Network":7}"#, "Network", "no IPv4 network"),
            (r#"{"Network":"fd00::/48"}"#, "Network", "no IPv4 network"),
            (r#"{"Network":"0.0.0.0/0"}"#, "Network", "whole address space"),
            (r#"{"Network":"10.5.0.0/29"}"#, "Network", "minimum is /28"),
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#,
                "SubnetLen",
                "less than /31",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#,
                "SubnetLen",
                "at least four subnets: expected 18 to 30",
            ),
            (
                r#"{"Network":"10.5.0.0/29","SubnetLen":30}"#,
                "SubnetLen",
                "a larger network",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":"24"}"#,
                "SubnetLen",
                "whole number",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.2.0"}"#,
                "SubnetMin",
                "behind SubnetMax 10.5.2.0",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"x"}"#,
                "SubnetMin",
                "an IPv4 address",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.3.7"}"#,
                "SubnetMax",
                "begins at 10.5.3.0",
            ),
            (r#"{"Network":"10.5.0.0/16","Backend":7}"#, "Backend", "object"),
            (
                r#"{"Network":"10.5.0.0/16","EnableIPv4":"yes"}"#,
                "EnableIPv4",
                "true or false",
            ),
            (
                r#"{"EnableIPv4":false,"Network":"10.5.0.0/16"}"#,
                "EnableIPv4",
                "IPv6 or both",
            ),
        ] {
            let errors = errors(text);
            assert_eq!(errors.len(), 1, "{text}: {errors:?}");
            assert_eq!(errors[0].field, field, "{text}");
            assert!(errors[0].problem.contains(part), "{text}: {}", errors[0]);
        }
    }

    #[test]
    fn each_bad_ipv6_field_is_named_and_the_reason_told() {
        let v6 = |rest: &str| format!(r#"{{"EnableIPv4":false,"EnableIPv6":true{rest}}}"#);
        for (rest, field, part) in [
            ("", "IPv6Network", "define a correct IPv6Network parameter"),
            (
                r#","IPv6Network":"10.5.0.0/16""#,
                "IPv6Network",
                "no IPv6 network",
            ),
            (r#","IPv6Network":"::/0""#, "IPv6Network", "whole address space"),
            (r#","IPv6Network":"fd00::/125""#, "IPv6Network", "minimum is /124"),
            (
                r#","IPv6Network":"fd00::/48","IPv6SubnetLen":127"#,
                "IPv6SubnetLen",
                "less than /127",
            ),
            (
                r#","IPv6Network":"fd00::/48","IPv6SubnetLen":49"#,
                "IPv6SubnetLen",
                "expected 50 to 126",
            ),
            (
                r#","IPv6Network":"fd00::/48","IPv6SubnetMin":"fd01::""#,
                "IPv6SubnetMin",
                "not in the range of IPv6Network fd00::/48",
            ),
            (
                r#","IPv6Network":"fd00::/48","IPv6SubnetMax":"fd00::1""#,
                "IPv6SubnetMax",
                "on no IPv6SubnetLen boundary",
            ),
        ] {
            let text = v6(rest);
            let errors = errors(&text);
            assert_eq!(errors.len(), 1, "{text}: {errors:?}");
            assert_eq!(errors[0].field, field, "{text}");
            assert!(errors[0].problem.contains(part), "{text}: {}", errors[0]);
        }
    }
}
