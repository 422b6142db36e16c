//! The delegate's configuration as flannel renders it.
//!
//! flannel hands this text to the bridge plugin and keeps it in a file. We do the bridge's work ourselves and keep the same
//! file, so that either plugin can remove what the other made.

use flannel_model::SubnetEnv;
use serde_json::{Map, Value, json};

use super::Network;
use crate::protocol::keys::{Keys, key_like};
use crate::protocol::{CniError, Code};

/// The rendered configuration of `network` on a node that has `env`. The keys are sorted.
///
/// # Errors
/// Code 7 when `delegate` has a key that only flannel may fill, or a type that is no text.
pub fn delegate(network: &Network, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    let mut delegate = network.part("delegate")?;
    refuse_filled_keys(&delegate)?;
    let mut fill = |name: &str, value: Value| {
        if key_like(&delegate, name).is_none_or(|key| delegate[key].is_null()) {
            delegate.insert(name.to_owned(), value);
        }
    };
    fill("type", json!("bridge"));
    fill("ipMasq", json!(!env.ip_masq));
    fill("mtu", json!(env.mtu));
    if is_bridge(&delegate)? {
        let given = key_like(&delegate, "isGateway").is_some();
        if !given {
            delegate.insert("isGateway".to_owned(), json!(true));
        }
    }
    delegate.insert("name".to_owned(), json!(network.name.as_str()));
    delegate.insert("cniVersion".to_owned(), json!(network.version.text()));
    if let Some(runtime) = network.keys().object("runtimeConfig")? {
        delegate.insert("runtimeConfig".to_owned(), Value::Object(runtime.clone()));
    }
    delegate.insert("ipam".to_owned(), Value::Object(ipam(network, env)?));
    Ok(delegate)
}

/// `name` and `ipam` come from the outer configuration.
fn refuse_filled_keys(delegate: &Map<String, Value>) -> Result<(), CniError> {
    for name in ["name", "ipam"] {
        if key_like(delegate, name).is_some() {
            let msg = format!("delegate.{name} must not be set");
            let advice = format!("{name} belongs one level up, beside delegate");
            return Err(CniError::new(Code::BadConfig, msg).with(advice));
        }
    }
    Ok(())
}

fn is_bridge(delegate: &Map<String, Value>) -> Result<bool, CniError> {
    Ok(Keys::new("delegate", delegate).text("type")? == Some("bridge"))
}

fn ipam(network: &Network, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    let mut ipam = network.part("ipam")?;
    if key_like(&ipam, "type").is_none_or(|key| ipam[key].is_null()) {
        ipam.insert("type".to_owned(), json!("host-local"));
    }
    let mut routes = Keys::new("ipam", &ipam).list("routes")?.to_vec();
    routes.extend(networks(env).map(|dst| json!({ "dst": dst })));
    for name in ["ranges", "routes"] {
        if let Some(key) = key_like(&ipam, name).map(str::to_owned) {
            ipam.remove(&key);
        }
    }
    ipam.insert("ranges".to_owned(), subnets(env));
    ipam.insert("routes".to_owned(), Value::Array(routes));
    Ok(ipam)
}

fn networks(env: &SubnetEnv) -> impl Iterator<Item = String> {
    let v4 = env
        .ipv4
        .iter()
        .flat_map(|(networks, _)| networks.iter().map(ToString::to_string));
    let v6 = env
        .ipv6
        .iter()
        .flat_map(|(networks, _)| networks.iter().map(ToString::to_string));
    v4.chain(v6)
}

fn subnets(env: &SubnetEnv) -> Value {
    let v4 = env.ipv4.iter().map(|(_, subnet)| subnet.to_string());
    let v6 = env.ipv6.iter().map(|(_, subnet)| subnet.to_string());
    v4.chain(v6).map(|subnet| json!([{ "subnet": subnet }])).collect()
}

/// The text that Go's encoder makes of it: characters that are special in HTML or JavaScript come out escaped.
pub fn text(object: &Map<String, Value>) -> String {
    // All of these can stand only inside JSON strings, so replacing them in the whole text is safe.
    serde_json::to_string(object)
        .unwrap_or_default()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

    fn rendered(config: &str, env: &str) -> Result<String, CniError> {
        let network = Network::new(serde_json::from_str(config).unwrap())?;
        delegate(&network, &SubnetEnv::parse(env).unwrap()).map(|object| text(&object))
    }

    #[test]
    fn the_plain_configuration() {
        let text = rendered(
            r#"{"name":"cni-flannel","type":"flannel","cniVersion":"1.0.0"}"#,
            ENV,
        )
        .unwrap();
        assert_eq!(
            text,
            r#"{"cniVersion":"1.0.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}"#
        );
    }

    #[test]
    fn given_values_stay() {
        let config = r#"{"name":"n","cniVersion":"0.3.1","runtimeConfig":{"mac":"02:00:00:00:00:01"},
            "delegate":{"hairpinMode":true,"isDefaultGateway":true,"mtu":1400,"ipMasq":true,"isGateway":false,"note":"a<b&c"},
            "ipam":{"type":"host-local","foo":1,"Ranges":[[{"subnet":"1.2.3.0/24"}]],"routes":[{"dst":"192.168.0.0/16","gw":"10.1.17.9"}]}}"#;
        assert_eq!(
            rendered(config, ENV).unwrap(),
            concat!(
                r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":true,"#,
                r#""ipam":{"foo":1,"ranges":[[{"subnet":"10.1.17.0/24"}]],"#,
                r#""routes":[{"dst":"192.168.0.0/16","gw":"10.1.17.9"},{"dst":"10.1.0.0/16"}],"type":"host-local"},"#,
                r#""isDefaultGateway":true,"isGateway":false,"mtu":1400,"name":"n","note":"a\u003cb\u0026c","#,
                r#""runtimeConfig":{"mac":"02:00:00:00:00:01"},"type":"bridge"}"#
            )
        );
    }

    #[test]
    fn dual_stack_and_two_networks() {
        let env = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:7::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
        let text = rendered(r#"{"name":"n","cniVersion":"1.1.0"}"#, env).unwrap();
        assert!(
            text.contains(r#""ranges":[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00:0:0:7::/64"}]]"#),
            "{text}"
        );
        assert!(
            text.contains(r#""routes":[{"dst":"10.1.0.0/16"},{"dst":"192.168.0.0/16"},{"dst":"fc00::/48"}]"#),
            "{text}"
        );
        assert!(text.contains(r#""ipMasq":true"#), "{text}");
    }

    #[test]
    fn keys_that_flannel_fills_are_refused() {
        for delegate in [
            r#"{"name":"x"}"#,
            r#"{"ipam":{}}"#,
            r#"{"IPAM":{}}"#,
            r#"{"type":7}"#,
            r#"[]"#,
        ] {
            let config = format!(r#"{{"name":"n","cniVersion":"1.0.0","delegate":{delegate}}}"#);
            let error = rendered(&config, ENV).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{delegate}");
            assert!(error.msg.contains("delegate"), "{error}");
        }
    }
}
