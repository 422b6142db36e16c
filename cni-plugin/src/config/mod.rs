//! The network configuration: flannel's keys, the rendered delegate and typed views of it.

mod bridge;
mod ipam;
mod known;
mod network;
mod ranges;
pub mod render;
mod resolv;
mod vlan;

pub use bridge::{Bridge, bridge_name, contradiction};
pub use ipam::Ipam;
pub use known::unread_keys;
pub use network::{Network, lease_root};
pub use resolv::read_resolv_conf;
pub use vlan::Vlans;

#[cfg(test)]
mod tests {
    use flannel_model::SubnetEnv;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::protocol::{CniArgs, CniError, Code};

    fn whole() -> Value {
        json!({
            "name": "n", "cniVersion": "1.0.0", "type": "flannel", "subnetFile": "/a", "dataDir": "/b",
            "runtimeConfig": { "mac": "02:00:00:00:00:01", "ips": ["10.1.17.5"], "ipRanges": [] },
            "ipam": { "type": "host-local", "dataDir": "/c", "resolvConf": "", "routes": [{ "dst": "10.0.0.0/8", "gw": "10.1.17.1" }] },
            "delegate": {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "forceAddress": false,
                "ipMasq": false, "ipMasqBackend": "", "mtu": 1450, "hairpinMode": true, "promiscMode": false, "vlan": 0,
                "vlanTrunk": [], "macspoofchk": false, "dns": { "nameservers": ["10.0.0.1"], "domain": "d", "search": [], "options": [] },
            },
        })
    }

    /// All that ADD does with a configuration before it looks at the node.
    fn resolve(config: Map<String, Value>) -> Result<(), CniError> {
        let network = Network::new(config)?;
        let env = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
        network.subnet_file()?;
        network.data_dir()?;
        let delegate = render::delegate(&network, &SubnetEnv::parse(env).unwrap())?;
        Bridge::read(&delegate, &CniArgs::default())?;
        Ipam::read(&delegate).map(|_| ())
    }

    /// Every place of `value` as a JSON pointer.
    fn places(value: &Value, at: &str, found: &mut Vec<String>) {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(object) => object.iter().map(|(key, child)| (key.clone(), child)).collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .map(|(i, child)| (i.to_string(), child))
                .collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
        };
        for (key, child) in children {
            let place = format!("{at}/{key}");
            places(child, &place, found);
            found.push(place);
        }
    }

    #[test]
    fn an_odd_value_in_any_place_is_taken_or_refused_with_a_code_of_the_specification() {
        let mut found = Vec::new();
        places(&whole(), "", &mut found);
        assert!(resolve(whole().as_object().unwrap().clone()).is_ok() && found.len() > 30);
        let odd = json!([null, true, -1, 0, 65536, 1e99, "", "x", "../x", "\u{0}", "a".repeat(300), [], [null], [[]], {}, {"dst": 7}]);
        let mut refused = 0;
        for place in &found {
            for value in odd.as_array().unwrap() {
                let mut config = whole();
                *config.pointer_mut(place).unwrap() = value.clone();
                let Err(error) = resolve(config.as_object().unwrap().clone()) else {
                    continue;
                };
                let known = [Code::IncompatibleVersion, Code::UnsupportedField, Code::BadConfig];
                assert!(known.contains(&error.code), "{place} = {value}: {error}");
                assert!(error.msg.len() < 400, "{place}: {error}");
                refused += 1;
            }
        }
        assert!(refused > 200, "{refused}");
    }
}
