//! `flannelctl config`: the network config.

use std::fmt::Write as _;

use flannel_model::{BackendSettings, ConfigErrors, EtcdPrefix, FieldError, NetworkConfig, Pool};
use flannel_store::Store;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::output::{Output, printable};
use crate::services::input::read_text;

/// The config as it resolves.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    /// `null`, like the three behind it, in a network without IPv4.
    network: Option<String>,
    subnet_len: Option<u8>,
    subnet_min: Option<String>,
    subnet_max: Option<String>,
    /// How many subnets there are to hand out.
    subnets: Option<u128>,
    /// `null`, like the four behind it, in a network without IPv6.
    #[serde(rename = "ipv6Network")]
    ipv6_network: Option<String>,
    #[serde(rename = "ipv6SubnetLen")]
    ipv6_subnet_len: Option<u8>,
    #[serde(rename = "ipv6SubnetMin")]
    ipv6_subnet_min: Option<String>,
    #[serde(rename = "ipv6SubnetMax")]
    ipv6_subnet_max: Option<String>,
    #[serde(rename = "ipv6Subnets")]
    ipv6_subnets: Option<u128>,
    backend: Backend,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Backend {
    #[serde(rename = "type")]
    kind: String,
    /// The Backend object as it was written.
    options: Value,
    /// What its options resolve to.
    vxlan: Option<Vxlan>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Vxlan {
    vni: u32,
    port: u16,
    /// `null`: that of the interface.
    mtu: Option<u32>,
    gbp: bool,
    learning: bool,
    direct_routing: bool,
}

/// What is shown in place of a view that cannot be made.
#[derive(Debug, Serialize)]
struct Errors<'a> {
    errors: Vec<Error<'a>>,
}

#[derive(Debug, Serialize)]
struct Error<'a> {
    field: &'a str,
    value: &'a str,
    problem: &'a str,
}

/// Shows the config.
pub async fn show<S: Store>(store: &S, prefix: &EtcdPrefix, output: &mut Output) -> Result<(), Failure> {
    let key = prefix.config();
    let Some(kv) = store.get(&key).await?.0 else {
        return Err(Failure::NotFound(format!(
            "there is no network config at {key}; write one with `flannelctl config set -f FILE`"
        )));
    };
    match view(&kv.value) {
        Ok(view) => output.show(&view, table),
        Err(errors) => {
            let fields = errors.0.iter().map(|error| Error {
                field: &error.field,
                value: &error.value,
                problem: &error.problem,
            });
            let errors_view = Errors {
                errors: fields.collect(),
            };
            output.show(&errors_view, |_| String::new())?;
            Err(Failure::Content(lines(
                &format!("the network config at {key} is bad:"),
                &errors,
            )))
        }
    }
}

/// Checks a config and writes it.
pub async fn set<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    file: &str,
    force: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let text = read_text(file)?;
    let text = text.trim();
    if let Err(errors) = view(text.as_bytes()) {
        let story = lines(&format!("the network config in {file} is bad:"), &errors);
        if !force {
            return Err(Failure::Content(format!(
                "{story}\nNothing was written; --force writes it all the same."
            )));
        }
        eprintln!("flannelctl: warning: {story}");
    }
    let key = prefix.config();
    let said = match store.get(&key).await?.0 {
        Some(kv) if kv.value == text.as_bytes() => "unchanged",
        Some(_) => "configured",
        None => "created",
    };
    if said != "unchanged" {
        store.put(&key, text).await?;
    }
    output.push(&format!("config {said}\n"));
    Ok(())
}

fn lines(head: &str, errors: &ConfigErrors) -> String {
    let mut text = head.to_owned();
    for error in &errors.0 {
        let _ = write!(text, "\n  {}", printable(&error.to_string()));
    }
    text
}

fn view(text: &[u8]) -> Result<View, ConfigErrors> {
    let config = NetworkConfig::parse(text)?;
    let vxlan = match config.backend.settings {
        BackendSettings::Vxlan(vxlan) => Some(vxlan),
        BackendSettings::HostGw
        | BackendSettings::Ipip(_)
        | BackendSettings::Wireguard(_)
        | BackendSettings::Udp(_)
        | BackendSettings::Alloc
        | BackendSettings::Unread => None,
    };
    let options = serde_json::from_str(config.backend.options.get()).map_err(|error| {
        ConfigErrors(vec![FieldError {
            field: "Backend".to_owned(),
            value: "unreadable".to_owned(),
            problem: error.to_string(),
        }])
    })?;
    let (ipv4, ipv6) = (config.pools.ipv4(), config.pools.ipv6());
    Ok(View {
        network: ipv4.map(|pool| pool.network.to_string()),
        subnet_len: ipv4.map(Pool::subnet_len),
        subnet_min: ipv4.map(|pool| pool.subnet_min.network().to_string()),
        subnet_max: ipv4.map(|pool| pool.subnet_max.network().to_string()),
        subnets: ipv4.map(Pool::count),
        ipv6_network: ipv6.map(|pool| pool.network.to_string()),
        ipv6_subnet_len: ipv6.map(Pool::subnet_len),
        ipv6_subnet_min: ipv6.map(|pool| pool.subnet_min.network().to_string()),
        ipv6_subnet_max: ipv6.map(|pool| pool.subnet_max.network().to_string()),
        ipv6_subnets: ipv6.map(Pool::count),
        backend: Backend {
            kind: config.backend.kind,
            options,
            vxlan: vxlan.map(|vxlan| Vxlan {
                vni: vxlan.vni,
                port: vxlan.port,
                mtu: vxlan.mtu,
                gbp: vxlan.gbp,
                learning: vxlan.learning,
                direct_routing: vxlan.direct_routing,
            }),
        },
    })
}

fn table(view: &View) -> String {
    let mut backend = printable(&view.backend.kind);
    if let Some(vxlan) = &view.backend.vxlan {
        let mtu = vxlan
            .mtu
            .map_or("MTU of the interface".to_owned(), |mtu| format!("MTU {mtu}"));
        backend += &format!(" (VNI {}, port {}, {mtu}", vxlan.vni, vxlan.port);
        for (on, name) in [
            (vxlan.gbp, "GBP"),
            (vxlan.learning, "Learning"),
            (vxlan.direct_routing, "DirectRouting"),
        ] {
            if on {
                backend += &format!(", {name}");
            }
        }
        backend.push(')');
    }
    let number = |number: Option<u8>| number.map(|n| n.to_string());
    let count = |count: Option<u128>| count.map(|n| n.to_string());
    let lines = [
        ("Network", view.network.clone()),
        ("SubnetLen", number(view.subnet_len)),
        ("SubnetMin", view.subnet_min.clone()),
        ("SubnetMax", view.subnet_max.clone()),
        ("Subnets", count(view.subnets)),
        ("IPv6Network", view.ipv6_network.clone()),
        ("IPv6SubnetLen", number(view.ipv6_subnet_len)),
        ("IPv6SubnetMin", view.ipv6_subnet_min.clone()),
        ("IPv6SubnetMax", view.ipv6_subnet_max.clone()),
        ("IPv6Subnets", count(view.ipv6_subnets)),
        ("Backend", Some(backend)),
    ];
    let known: Vec<(&str, String)> = lines
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    let width = known.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    known
        .iter()
        .map(|(name, value)| format!("{name:<width$} {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_filled_in() {
        let view =
            view(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#).unwrap();
        assert_eq!(
            table(&view),
            "Network   10.5.0.0/16\nSubnetLen 24\nSubnetMin 10.5.1.0\nSubnetMax 10.5.255.0\nSubnets   255\n\
             Backend   vxlan (VNI 1, port 8472, MTU of the interface, DirectRouting)\n"
        );
    }

    #[test]
    fn the_widest_network_is_counted() {
        let view = view(br#"{"Network":"0.0.0.0/1","SubnetLen":30}"#).unwrap();
        assert_eq!(view.subnets, Some((1 << 29) - 1));
    }

    #[test]
    fn dual_stack_shows_both_families() {
        let text = br#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}"#;
        assert_eq!(
            table(&view(text).unwrap()),
            "Network       10.5.0.0/16\nSubnetLen     24\nSubnetMin     10.5.1.0\nSubnetMax     10.5.255.0\nSubnets       255\n\
             IPv6Network   fd00:5::/48\nIPv6SubnetLen 64\nIPv6SubnetMin fd00:5:0:1::\nIPv6SubnetMax fd00:5:0:ffff::\n\
             IPv6Subnets   65535\nBackend       host-gw\n"
        );
    }

    #[test]
    fn errors_of_the_backend_are_errors_of_the_config() {
        let errors = view(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":-1}}"#).unwrap_err();
        assert_eq!(errors.0[0].field, "Backend.VNI");
    }
}
