//! `flannelctl check-config`: what flanneld would make of a network config, before it does.

use flannel_model::{EtcdPrefix, Ipv4Subnet, NetworkConfig, offered};
use flannel_store::Store;
use serde_json::Value;

use crate::doctor;
use crate::failure::Failure;
use crate::findings::{Finding, show};
use crate::output::Output;
use crate::services::input::read_text;
use crate::subnets::{self, Listing};

/// Fields of a network config.
const FIELDS: [&str; 12] = [
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
];

/// Private and shared address space (RFC 1918, RFC 6598).
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];

/// Checks a file by itself.
pub fn file(file: &str, ipv6_only: bool, output: &mut Output) -> Result<(), Failure> {
    let text = read_text(file)?;
    show(&findings(text.as_bytes(), ipv6_only), output, |_| bad(file))
}

/// Checks what stands in etcd, or a file that is to take its place, and what it means for the leases that are there.
pub async fn with_etcd<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    file: Option<&str>,
    ipv6_only: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let key = prefix.config();
    let (name, text) = match file {
        Some(file) => (file.to_owned(), read_text(file)?.into_bytes()),
        None => match store.get(&key).await?.0 {
            Some(kv) => (key, kv.value),
            None => {
                return Err(Failure::NotFound(format!(
                    "there is no network config at {key}; write one with `flannelctl config set -f FILE`"
                )));
            }
        },
    };
    let mut found = findings(&text, ipv6_only);
    if let Ok(config) = NetworkConfig::parse(&text) {
        let listing = Listing {
            pools: Some(config.pools),
            ..subnets::read(store, prefix).await?
        };
        found.extend(doctor::config_and_leases(&config, &listing));
        found.push(doctor::services_apart(store, prefix, &config).await?);
    }
    show(&found, output, |_| bad(&name))
}

fn bad(name: &str) -> Failure {
    Failure::Content(format!(
        "the network config in {name} cannot be used as it is (above)"
    ))
}

/// Everything that can be said of a config's text alone.
pub fn findings(text: &[u8], ipv6_only: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    match NetworkConfig::parse_for(text, |asked| offered(asked, ipv6_only)) {
        Ok(config) => {
            found.push(Finding::ok("config", summary(&config)));
            found.extend(public_space(&config));
        }
        Err(errors) => {
            let fix = "correct it; flanneld waits until it can use the config";
            found.extend(
                errors
                    .0
                    .iter()
                    .map(|error| Finding::error("config", error.to_string(), fix)),
            );
        }
    }
    if let Ok(Value::Object(fields)) = serde_json::from_slice(text) {
        found.extend(unknown_fields(&fields));
        found.extend(host_bits(&fields));
    }
    found
}

fn summary(config: &NetworkConfig) -> String {
    let family =
        |network: String, length: u8, count: u128| format!("{network} in {count} subnets of /{length}");
    let ipv4 = config
        .pools
        .ipv4()
        .map(|p| family(p.network.to_string(), p.subnet_len(), p.count()));
    let ipv6 = config
        .pools
        .ipv6()
        .map(|p| family(p.network.to_string(), p.subnet_len(), p.count()));
    let all: Vec<String> = [ipv4, ipv6].into_iter().flatten().collect();
    format!("{}; backend {}", all.join(", "), config.backend.kind)
}

fn public_space(config: &NetworkConfig) -> Option<Finding> {
    let network = config.pools.ipv4()?.network;
    let private = PRIVATE.iter().filter_map(|text| text.parse::<Ipv4Subnet>().ok());
    let inside = private.into_iter().any(|private| private.contains(&network));
    (!inside).then(|| {
        Finding::warning(
            "private-network",
            format!("Network {network} is public address space: hosts there cannot be reached from pods"),
            "use a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10, unless the addresses are yours",
        )
    })
}

/// Names that nobody reads: flannel and flanneld ignore them without a word, so a slip of the pen has no effect.
fn unknown_fields(fields: &serde_json::Map<String, Value>) -> Vec<Finding> {
    let unknown = |known: &'static [&'static str], name: &str| {
        !known.iter().any(|known| known.eq_ignore_ascii_case(name))
    };
    let mut names: Vec<String> = fields
        .keys()
        .filter(|name| unknown(&FIELDS, name))
        .cloned()
        .collect();
    let backend = fields
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("Backend"));
    if let Some((_, Value::Object(options))) = backend {
        let kind = options.iter().find(|(name, _)| name.eq_ignore_ascii_case("Type"));
        let kind = kind
            .and_then(|(_, kind)| kind.as_str())
            .unwrap_or_default()
            .to_lowercase();
        if let Some(known) = backend_fields(&kind) {
            let strange = options.keys().filter(|name| unknown(known, name));
            names.extend(strange.map(|name| format!("Backend.{name}")));
        }
    }
    let finding = |name: String| {
        let text = format!("{name} is no field that flannel or flanneld reads");
        Finding::warning("unknown-field", text, "correct its name or leave it out")
    };
    names.into_iter().map(finding).collect()
}

/// What a backend's object may hold; `None` for a backend whose options are not read here.
fn backend_fields(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "vxlan" => Some(&["Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting"]),
        "ipip" => Some(&["Type", "DirectRouting"]),
        "wireguard" => Some(&[
            "Type",
            "ListenPort",
            "ListenPortV6",
            "MTU",
            "PSK",
            "PersistentKeepaliveInterval",
            "Mode",
        ]),
        "host-gw" | "alloc" => Some(&["Type"]),
        "udp" => Some(&["Type", "Port"]),
        _ => None,
    }
}

fn host_bits(fields: &serde_json::Map<String, Value>) -> Option<Finding> {
    let (_, given) = fields
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("Network"))?;
    let given = given.as_str()?;
    let network: Ipv4Subnet = given.parse().ok()?;
    let text = format!("Network {given} has host bits; it counts as {network}");
    (given != network.to_string())
        .then(|| Finding::warning("host-bits", text, "write the network's own address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Level;

    fn checks(text: &str) -> Vec<(&'static str, Level)> {
        findings(text.as_bytes(), false)
            .iter()
            .map(|found| (found.check, found.level))
            .collect()
    }

    #[test]
    fn a_good_config_is_summed_up() {
        let found = findings(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#, false);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text, "10.5.0.0/16 in 255 subnets of /24; backend vxlan");
    }

    #[test]
    fn every_error_and_everything_odd_is_named() {
        assert_eq!(
            checks(
                r#"{"Network":"10.5.7.0/16","SubnetLenn":24,"Backend":{"Type":"vxlan","Vnii":3,"mtu":1400}}"#
            ),
            [
                ("config", Level::Ok),
                ("unknown-field", Level::Warning),
                ("unknown-field", Level::Warning),
                ("host-bits", Level::Warning),
            ]
        );
        assert_eq!(
            checks(r#"{"Network":"8.0.0.0/8","Backend":{"Type":"alloc"}}"#),
            [("config", Level::Ok), ("private-network", Level::Warning)]
        );
        assert_eq!(
            checks(r#"{"SubnetLen":99,"Backend":{"Type":"ipsec"}}"#),
            [("config", Level::Error); 3]
        );
        assert_eq!(checks("{"), [("config", Level::Error)]);
    }

    #[test]
    fn ipv6_alone_is_fine_only_with_its_switch() {
        let text = br#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}"#;
        assert_eq!(findings(text, false)[0].level, Level::Error);
        assert_eq!(findings(text, true)[0].level, Level::Ok);
    }
}
