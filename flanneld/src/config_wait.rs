//! Waiting for a network config that can be used.

use std::time::Duration;

use flannel_model::{
    Asked, BackendSettings, ConfigErrors, Families, FieldError, Ipv4Pool, Ipv6Pool, NetworkConfig,
    VxlanOptions,
};
use flannel_store::Store;

use crate::said::{Said, chain};

/// flannel asks once a second, too.
const PAUSE: Duration = Duration::from_secs(1);

/// A network config that this build can carry out.
#[derive(Debug, Clone)]
pub struct Usable {
    /// How the address space of each family is cut.
    pub pools: Families<Ipv4Pool, Ipv6Pool>,
    /// Its backend's options.
    pub vxlan: VxlanOptions,
}

impl Usable {
    /// The families of the network.
    pub fn families(&self) -> Families<(), ()> {
        match self.pools {
            Families::Ipv4(_) => Families::Ipv4(()),
            Families::Ipv6(_) => Families::Ipv6(()),
            Families::Dual(..) => Families::Dual((), ()),
        }
    }

    /// The networks of both families in one text.
    pub fn networks(&self) -> String {
        let ipv4 = self.pools.ipv4().map(|pool| pool.network.to_string());
        let ipv6 = self.pools.ipv6().map(|pool| pool.network.to_string());
        [ipv4, ipv6].into_iter().flatten().collect::<Vec<_>>().join(",")
    }
}

/// Reads `key` until it holds a config that can be used. What is missing or wrong is logged when it changes, and told to
/// `waiting`.
pub async fn wait_for_config<S: Store>(store: &S, key: &str, waiting: impl Fn(&str)) -> Usable {
    let mut said = Said::default();
    loop {
        let problem = match store.get(key).await {
            Ok((Some(found), _)) => match check(&found.value) {
                Ok(usable) => return usable,
                Err(errors) => format!(
                    "the network config at {key} cannot be used: {errors}; mend it (flannelctl config set), this node goes on then"
                ),
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

/// Checks a config and what it asks of this build; all problems at once.
fn check(text: &[u8]) -> Result<Usable, ConfigErrors> {
    let network = NetworkConfig::parse_for(text, limits)?;
    match network.backend.settings {
        BackendSettings::Vxlan(vxlan) => Ok(Usable {
            pools: network.pools,
            vxlan,
        }),
        // `limits` has named it.
        BackendSettings::Unread => Err(ConfigErrors(Vec::new())),
    }
}

/// What is asked for and not built yet.
fn limits(asked: Asked<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if asked.ipv6 {
        let problem = "IPv6 is not built yet; leave it out or set it to false";
        errors.push(FieldError::new("EnableIPv6", "true", problem));
    }
    let Some(backend) = asked.backend else {
        return errors;
    };
    if backend.kind != "vxlan" {
        errors.push(FieldError::new(
            "Backend.Type",
            &format!("{:?}", backend.kind),
            "this build carries packets over \"vxlan\" only (flannel takes udp when Backend is left out)",
        ));
    }
    if matches!(backend.settings, BackendSettings::Vxlan(vxlan) if vxlan.direct_routing) {
        let problem = "direct routes are not built yet; leave it out";
        errors.push(FieldError::new("Backend.DirectRouting", "true", problem));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<String> {
        check(text.as_bytes())
            .unwrap_err()
            .0
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
        let all = r#"{"EnableIPv6":true,"SubnetLen":99,"Backend":{"Type":"udp"}}"#;
        assert_eq!(
            fields(all),
            [
                "Network",
                "SubnetLen",
                "IPv6Network",
                "EnableIPv6",
                "Backend.Type"
            ]
        );
    }
}
