//! Waiting for a network config that can be used.

use std::time::Duration;

use flannel_model::{FieldError, NetworkConfig, VxlanOptions};
use flannel_store::Store;

use crate::said::{Said, chain};

/// flannel asks once a second, too.
const PAUSE: Duration = Duration::from_secs(1);

/// A network config that this build can carry out.
#[derive(Debug, Clone)]
pub struct Usable {
    /// The config.
    pub network: NetworkConfig,
    /// Its backend's options.
    pub vxlan: VxlanOptions,
}

/// Reads `key` until it holds a config that can be used. What is missing or wrong is logged when it changes, and told to
/// `waiting`.
pub async fn wait_for_config<S: Store>(store: &S, key: &str, waiting: impl Fn(&str)) -> Usable {
    let mut said = Said::default();
    loop {
        let problem = match store.get(key).await {
            Ok((Some(found), _)) => match check(&found.value) {
                Ok(usable) => return usable,
                Err(errors) => {
                    let listed: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    format!(
                        "the network config at {key} cannot be used: {}; mend it (flannelctl config set), this node goes on then",
                        listed.join("; ")
                    )
                }
            },
            Ok((None, _)) => format!(
                "there is no network config at {key} yet; write one, such as {{\"Network\":\"10.5.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}, \
                 with `flannelctl config set` or `etcdctl put`; this node goes on then"
            ),
            Err(error) => chain(&error),
        };
        if said.is_news(&problem) {
            tracing::warn!("{problem}");
            waiting(&problem);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Checks a config and what it asks of the backend; all problems at once.
fn check(text: &[u8]) -> Result<Usable, Vec<FieldError>> {
    let network = NetworkConfig::parse(text).map_err(|errors| errors.0)?;
    if network.backend.kind != "vxlan" {
        return Err(vec![FieldError {
            field: "Backend.Type".into(),
            value: format!("{:?}", network.backend.kind),
            problem:
                "this build carries packets over \"vxlan\" only (flannel takes udp when Backend is left out)"
                    .into(),
        }]);
    }
    let vxlan = VxlanOptions::parse(&network.backend.options)?;
    if vxlan.direct_routing {
        return Err(vec![FieldError {
            field: "Backend.DirectRouting".into(),
            value: "true".into(),
            problem: "direct routes are not built yet; leave it out".into(),
        }]);
    }
    Ok(Usable { network, vxlan })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<String> {
        check(text.as_bytes())
            .unwrap_err()
            .into_iter()
            .map(|e| e.field)
            .collect()
    }

    #[test]
    fn a_vxlan_config_is_usable() {
        let usable = check(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"VXLAN","Port":4789}}"#).unwrap();
        assert_eq!(usable.vxlan.port, 4789);
    }

    #[test]
    fn what_this_build_cannot_do_is_refused_by_field() {
        assert_eq!(fields(r#"{"Network":"10.5.0.0/16"}"#), ["Backend.Type"]);
        assert_eq!(
            fields(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}"#),
            ["Backend.Type"]
        );
        let direct = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
        assert_eq!(fields(direct), ["Backend.DirectRouting"]);
        let both = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":-1,"Port":99999}}"#;
        assert_eq!(fields(both), ["Backend.VNI", "Backend.Port"]);
    }
}
