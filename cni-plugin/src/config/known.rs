//! Keys that nobody reads: misspelt, or in the wrong place.

use serde_json::{Map, Value};

use super::Network;
use super::bridge::OTHER_BACKEND;
use crate::protocol::CniError;
use crate::protocol::excerpt;
use crate::protocol::keys::Keys;

/// Keys of the configuration itself; `args`, `capabilities` and `dns` are everybody's by the specification.
const OUTER: &[&str] = &[
    "args",
    "capabilities",
    "cniVersion",
    "dataDir",
    "delegate",
    "dns",
    "ipam",
    "name",
    "prevResult",
    "runtimeConfig",
    "subnetFile",
    "type",
];
/// Keys that libcni adds have this in front.
const OF_THE_LIBRARY: &str = "cni.dev/";
/// Keys of the bridge plugin, and ours. Those that flannel fills, and those that are refused, are refused elsewhere.
const BRIDGE: &[&str] = &[
    "antiSpoof",
    "args",
    "bridge",
    "capabilities",
    "cniVersion",
    "disableContainerInterface",
    "dns",
    "enabledad",
    "forceAddress",
    "hairpinMode",
    "ipMasq",
    "ipMasqBackend",
    "ipam",
    "isDefaultGateway",
    "isGateway",
    "macspoofchk",
    "mtu",
    "name",
    "portIsolation",
    "preserveDefaultVlan",
    "promiscMode",
    "runtimeConfig",
    "type",
    "vlan",
    "vlanTrunk",
];
/// Keys of host-local.
const IPAM: &[&str] = &[
    "dataDir",
    "gateway",
    "rangeEnd",
    "rangeStart",
    "ranges",
    "resolvConf",
    "routes",
    "subnet",
    "type",
];

/// One sentence for each key that has no effect, or another one than it says. What another delegate reads, it judges itself.
///
/// # Errors
/// Code 7 when `delegate` or `ipam` is no object.
pub fn unread_keys(network: &Network) -> Result<Vec<String>, CniError> {
    let mut found = unread("", network.object(), OUTER);
    found.retain(|(_, key)| !key.starts_with(OF_THE_LIBRARY));
    let delegate = network.part("delegate")?;
    if Keys::new("delegate", &delegate)
        .text("type")?
        .is_none_or(|kind| kind == "bridge")
    {
        found.extend(unread("delegate", &delegate, BRIDGE));
        found.extend(unread("ipam", &network.part("ipam")?, IPAM));
    }
    let sentence = |(place, key): (&str, String)| {
        let (name, home) = (excerpt(&key), home(&key));
        let within = if place.is_empty() {
            String::new()
        } else {
            format!(" of {place}")
        };
        let advice = home.filter(|home| *home != place).map(|home| match home {
            "" => "; it belongs one level up".to_owned(),
            home => format!("; it belongs into {home}"),
        });
        format!(
            "the key {name}{within} has no effect{}",
            advice.unwrap_or_default()
        )
    };
    Ok(found
        .into_iter()
        .map(sentence)
        .chain(other_backend(&delegate)?)
        .collect())
}

fn other_backend(delegate: &Map<String, Value>) -> Result<Option<String>, CniError> {
    let backend = Keys::new("delegate", delegate).text("ipMasqBackend")?;
    Ok((backend == Some(OTHER_BACKEND)).then(|| {
        format!("the key \"ipMasqBackend\" of delegate is {OTHER_BACKEND:?}; what is masqueraded here is so by nftables all the same")
    }))
}

fn unread<'a>(place: &'a str, object: &Map<String, Value>, known: &[&str]) -> Vec<(&'a str, String)> {
    let names = object.keys().filter(|key| !is_among(known, key));
    names.map(|key| (place, key.clone())).collect()
}

fn is_among(known: &[&str], key: &str) -> bool {
    known.iter().any(|name| name.eq_ignore_ascii_case(key))
}

/// Where a key of this name would be read.
fn home(key: &str) -> Option<&'static str> {
    [("delegate", BRIDGE), ("ipam", IPAM), ("", OUTER)]
        .into_iter()
        .find(|(_, known)| is_among(known, key))
        .map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread_in(text: &str) -> Vec<String> {
        let object = serde_json::from_str(text).unwrap();
        unread_keys(&Network::new(object).unwrap()).unwrap()
    }

    #[test]
    fn keys_that_are_read_are_not_named() {
        let usual = r#"{"name":"cbr0","CNIVersion":"1.0.0","type":"flannel","cni.dev/valid-attachments":[],
            "capabilities":{"x":true},"delegate":{"HairpinMode":true,"isDefaultGateway":true,"antiSpoof":false},
            "ipam":{"dataDir":"/x","routes":[]}}"#;
        assert_eq!(unread_in(usual), Vec::<String>::new());
        let other = r#"{"name":"n","cniVersion":"1.0.0","delegate":{"type":"macvlan","master":"eth0"},"ipam":{"odd":1}}"#;
        assert_eq!(unread_in(other), Vec::<String>::new());
    }

    #[test]
    fn a_backend_that_is_another_one_here_is() {
        let backend = |name: &str| {
            unread_in(&format!(
                r#"{{"name":"n","cniVersion":"1.0.0","delegate":{{"ipMasqBackend":"{name}"}}}}"#
            ))
        };
        let [told] = &backend("iptables")[..] else {
            panic!("not told")
        };
        assert!(
            told.contains("ipMasqBackend") && told.contains("by nftables"),
            "{told}"
        );
        assert!(backend("nftables").is_empty() && backend("").is_empty());
    }

    #[test]
    fn misspelt_and_misplaced_keys_are() {
        let odd = r#"{"name":"n","cniVersion":"1.0.0","hairpinMode":true,"delegate":{"hairpin":true,"subnetFile":"/x"},
            "ipam":{"mtu":1400}}"#;
        let expected = [
            "the key \"hairpinMode\" has no effect; it belongs into delegate",
            "the key \"hairpin\" of delegate has no effect",
            "the key \"subnetFile\" of delegate has no effect; it belongs one level up",
            "the key \"mtu\" of ipam has no effect; it belongs into delegate",
        ];
        assert_eq!(unread_in(odd), expected);
    }
}
