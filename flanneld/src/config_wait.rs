//! Waiting for a network config that can be used.

use std::time::Duration;

use flannel_model::{BackendSettings, ConfigErrors, Families, Ipv4Pool, Ipv6Pool, NetworkConfig, offered};
use flannel_store::Store;
use tokio::time::Instant;

use crate::said::{Said, chain};

/// flannel asks once a second, too.
const PAUSE: Duration = Duration::from_secs(1);
/// How long etcd may be away at the start before the state of the earlier run is used: longer than an election and than the
/// deadline of one call.
const PATIENCE: Duration = Duration::from_secs(6);

/// A network config that this build can carry out.
#[derive(Debug, Clone)]
pub struct Usable {
    /// How the address space of each family is cut.
    pub pools: Families<Ipv4Pool, Ipv6Pool>,
    /// Its backend, one that this build has.
    pub backend: BackendSettings,
    /// Its text.
    pub text: String,
}

/// Where a node begins.
#[derive(Debug)]
pub struct Read {
    /// The config.
    pub usable: Usable,
    /// It is that of the earlier run, because etcd is away.
    pub offline: bool,
}

impl Usable {
    /// The families of the network.
    pub fn families(&self) -> Families<(), ()> {
        self.pools.which()
    }

    /// The networks of both families in one text.
    pub fn networks(&self) -> String {
        let ipv4 = self.pools.ipv4().map(|pool| pool.network.to_string());
        let ipv6 = self.pools.ipv6().map(|pool| pool.network.to_string());
        [ipv4, ipv6].into_iter().flatten().collect::<Vec<_>>().join(",")
    }
}

/// Reads `key` until it holds a config that can be used. What is missing or wrong is logged when it changes, and told to
/// `waiting`. With the config of an `earlier` run the end of an outage is not waited for.
pub async fn wait_for_config<S: Store>(
    store: &S,
    key: &str,
    ipv6_only: bool,
    earlier: Option<&Usable>,
    waiting: impl Fn(&str),
) -> Read {
    let mut said = Said::default();
    let until = Instant::now() + PATIENCE;
    loop {
        let problem = match store.get(key).await {
            Ok((Some(found), _)) => match check(&found.value, ipv6_only) {
                Ok(usable) => {
                    return Read {
                        usable,
                        offline: false,
                    };
                }
                Err(errors) => format!(
                    "the network config at {key} cannot be used: {errors}; mend it (flannelctl config set), this node goes on then"
                ),
            },
            Ok((None, _)) => format!(
                "there is no network config at {key} yet; write one, such as {{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}, \
                 with `flannelctl config set` or `etcdctl put`; this node goes on then"
            ),
            Err(error) => match earlier.filter(|_| Instant::now() >= until) {
                Some(usable) => {
                    tracing::warn!(
                        "{}; going on with the network config and the peers of the earlier run",
                        chain(&error)
                    );
                    return Read {
                        usable: usable.clone(),
                        offline: true,
                    };
                }
                None => chain(&error),
            },
        };
        if said.is_news(&problem) {
            tracing::warn!("{problem}");
            waiting(&problem);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Checks a config and what it asks of this build; all problems at once. `ipv6_only`: a network without IPv4 is fine.
///
/// # Errors
/// Everything that keeps this build from carrying it out.
pub fn check(text: &[u8], ipv6_only: bool) -> Result<Usable, ConfigErrors> {
    let network = NetworkConfig::parse_for(text, |asked| offered(asked, ipv6_only))?;
    Ok(Usable {
        pools: network.pools,
        backend: network.backend.settings,
        text: String::from_utf8_lossy(text).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<String> {
        check(text.as_bytes(), false)
            .unwrap_err()
            .0
            .into_iter()
            .map(|e| e.field)
            .collect()
    }

    #[test]
    fn what_this_build_has_is_usable() {
        let usable = check(
            br#"{"Network":"10.5.0.0/16","Backend":{"Type":"VXLAN","Port":4789}}"#,
            false,
        )
        .unwrap();
        assert!(matches!(usable.backend, BackendSettings::Vxlan(vxlan) if vxlan.port == 4789));
        for kind in [
            "vxlan\",\"DirectRouting\":true,\"x\":\"",
            "host-gw",
            "ipip",
            "wireguard",
            "udp",
            "alloc",
        ] {
            let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
            assert!(check(text.as_bytes(), false).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_this_build_cannot_do_is_refused_by_field() {
        for kind in ["ipsec", "extension", "tencent-vpc", "quic"] {
            let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
            let error = check(text.as_bytes(), false).unwrap_err().to_string();
            assert!(error.contains(kind) && error.contains("host-gw"), "{error}");
        }
        let both = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":-1,"Port":99999}}"#;
        assert_eq!(fields(both), ["Backend.VNI", "Backend.Port"]);
        let all = r#"{"EnableIPv6":true,"SubnetLen":99,"Backend":{"Type":"ipsec"}}"#;
        assert_eq!(
            fields(all),
            ["Network", "SubnetLen", "IPv6Network", "Backend.Type"]
        );
    }

    #[test]
    fn without_a_backend_it_is_udp_as_in_flannel() {
        let usable = check(br#"{"Network":"10.5.0.0/16"}"#, false).unwrap();
        assert!(matches!(usable.backend, BackendSettings::Udp(udp) if udp.port == 8285));
    }

    #[test]
    fn ipv6_alone_needs_its_switch() {
        let text = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
        assert_eq!(fields(text), ["EnableIPv4"]);
        let usable = check(text.as_bytes(), true).unwrap();
        assert_eq!(usable.networks(), "fd00:5::/48");
    }
}
