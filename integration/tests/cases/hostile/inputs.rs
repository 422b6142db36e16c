//! More than a thousand calls that no sane runtime makes, the same on every run. Here: odd values in every place of the
//! configuration and of earlier results, and values that contradict each other.

use flannel_lab::pod::CniCall;
use serde_json::{Value, json};

use super::raw;

/// A call, what it is, and what its refusal must be.
pub struct Input {
    /// What is odd about it.
    pub what: String,
    /// The call itself.
    pub call: CniCall,
    /// The codes that a refusal may have.
    pub codes: &'static [u64],
    /// What the text of a refusal must name: the field.
    pub names: Option<String>,
}

/// Refusals of a configuration: version, unsupported field, bad value; 8 and 102 for a value that is only wrong on this node, 101 for an
/// address that is not to be had.
const CONFIG: &[u64] = &[1, 2, 7, 101, 102];
/// CHECK also says that the node is otherwise than the earlier result says.
const CHECKED: &[u64] = &[1, 2, 7, 103];

/// The pod that all of them are for; its namespace is there.
pub const POD: &str = "victim";

/// Every input.
pub fn all() -> Vec<Input> {
    let mut inputs = odd_values("ADD", &whole());
    inputs.extend(odd_values("CHECK", &with_previous()));
    inputs.extend(odd_values("DEL", &with_previous()));
    inputs.extend(odd_values("GC", &garbage()));
    inputs.extend(contradictions());
    inputs.extend(raw::torn());
    inputs.extend(raw::texts());
    inputs.extend(raw::environment());
    inputs
}

/// A configuration with every key that has a meaning.
pub fn whole() -> Value {
    json!({
        "name": "cbr0", "cniVersion": "1.1.0", "type": "flannel",
        "subnetFile": "/run/flannel/subnet.env", "dataDir": "/var/lib/cni/flannel",
        "runtimeConfig": { "mac": "02:00:00:00:00:01", "ips": ["10.5.7.9"], "portMappings": [] },
        "ipam": { "type": "host-local", "dataDir": "/var/lib/cni/networks", "resolvConf": "", "routes": [{ "dst": "10.9.0.0/16", "gw": "10.5.7.1" }] },
        "delegate": {
            "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "forceAddress": false,
            "ipMasq": false, "mtu": 1450, "hairpinMode": true, "promiscMode": false, "vlan": 0, "vlanTrunk": [],
            "macspoofchk": false, "portIsolation": false, "enabledad": false, "preserveDefaultVlan": false,
            "disableContainerInterface": false, "dns": { "nameservers": ["10.0.0.1"], "search": ["a"] },
        },
    })
}

fn with_previous() -> Value {
    let mut config = json!({ "name": "cbr0", "cniVersion": "1.1.0", "type": "flannel" });
    config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "cni0", "mac": "02:00:00:00:00:02" }, { "name": "veth0", "mac": "02:00:00:00:00:03" },
                       { "name": "eth0", "mac": "02:00:00:00:00:04", "sandbox": "/run/netns/victim", "mtu": 1450 }],
        "ips": [{ "address": "10.5.7.2/24", "gateway": "10.5.7.1", "interface": 2 }],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.5.7.1" }],
        "dns": {},
    });
    config
}

/// Of another network: whatever the list says, the pods of cbr0 are none of its business.
fn garbage() -> Value {
    json!({
        "name": "other0", "cniVersion": "1.1.0", "type": "flannel",
        "cni.dev/valid-attachments": [{ "containerID": "lab-keeper", "ifname": "eth0" }],
    })
}

/// What is put in every place. None of it is right anywhere but by chance.
fn odd() -> Vec<Value> {
    let long = "a".repeat(5_000);
    vec![
        json!(true),
        json!(-1),
        json!(65_536),
        json!(1e99),
        json!(0.5),
        json!("x\u{0}y"),
        json!("../../etc"),
        json!("a/b"),
        json!("%s%n %d"),
        json!("$(reboot)"),
        json!("\u{202e}\n\t"),
        json!(long),
        json!([[]]),
        json!([null, 7]),
        json!({ "": {} }),
        json!("255.255.255.255/33"),
    ]
}

pub(super) fn stdin(verb: &str, config: &Value) -> CniCall {
    CniCall::new(verb, POD).stdin(config.to_string())
}

/// Every place of `config` with every odd value in it.
fn odd_values(verb: &str, config: &Value) -> Vec<Input> {
    let mut places = Vec::new();
    collect(config, "", &mut places);
    let mut inputs = Vec::new();
    for place in &places {
        for value in odd() {
            let mut changed = config.clone();
            let Some(slot) = changed.pointer_mut(&place.replace("cni.dev/", "cni.dev~1")) else {
                continue;
            };
            *slot = value.clone();
            let shown: String = value.to_string().chars().take(40).collect();
            inputs.push(Input {
                what: format!("{verb}: {place} = {shown}"),
                call: stdin(verb, &changed),
                codes: if verb == "CHECK" { CHECKED } else { CONFIG },
                names: key_of(place),
            });
        }
    }
    inputs
}

fn collect(value: &Value, at: &str, places: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, child)| (key.clone(), child)).collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, child)| (index.to_string(), child))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    for (key, child) in children {
        let place = format!("{at}/{key}");
        collect(child, &place, places);
        places.push(place);
    }
}

/// The key that a refusal of this place must name: the last that is no index.
fn key_of(place: &str) -> Option<String> {
    place
        .rsplit('/')
        .find(|part| part.parse::<usize>().is_err())
        .map(str::to_owned)
}

/// Values that are right by themselves and wrong together or here.
fn contradictions() -> Vec<Input> {
    let change = |what: &str, pointer: &str, value: Value, names: Option<&str>| {
        let mut config = whole();
        if let Some((parent, key)) = pointer.rsplit_once('/')
            && let Some(slot) = config.pointer_mut(parent)
        {
            slot[key] = value;
        }
        Input {
            what: what.to_owned(),
            call: stdin("ADD", &config),
            codes: CONFIG,
            names: names.map(str::to_owned),
        }
    };
    vec![
        change(
            "hairpin and promiscuous",
            "/delegate/promiscMode",
            json!(true),
            Some("promiscMode"),
        ),
        change(
            "the bridge is the node's uplink",
            "/delegate/bridge",
            json!("eth0"),
            Some("eth0"),
        ),
        change("the bridge is lo", "/delegate/bridge", json!("lo"), Some("lo")),
        change(
            "a bridge whose name the kernel fills in",
            "/delegate/bridge",
            json!("br%d"),
            Some("bridge"),
        ),
        change(
            "the gateway's own address",
            "/runtimeConfig/ips",
            json!(["10.5.7.1"]),
            Some("10.5.7.1"),
        ),
        change(
            "an address of nobody's subnet",
            "/runtimeConfig/ips",
            json!(["192.0.2.7"]),
            Some("192.0.2.7"),
        ),
        change(
            "the broadcast address",
            "/runtimeConfig/ips",
            json!(["10.5.7.255"]),
            Some("10.5.7.255"),
        ),
        change(
            "two addresses of one range",
            "/runtimeConfig/ips",
            json!(["10.5.7.8", "10.5.7.9"]),
            None,
        ),
        change(
            "a group's hardware address",
            "/runtimeConfig/mac",
            json!("01:00:5e:00:00:01"),
            Some("mac"),
        ),
        change(
            "hardware address 0",
            "/runtimeConfig/mac",
            json!("00:00:00:00:00:00"),
            Some("mac"),
        ),
        change(
            "an MTU too small for IPv4",
            "/delegate/mtu",
            json!(67),
            Some("mtu"),
        ),
        change("VLAN 5000", "/delegate/vlan", json!(5000), Some("vlan")),
        change("an inner name", "/delegate/name", json!("other"), Some("name")),
        change("an inner ipam", "/delegate/ipam", json!({}), Some("ipam")),
        change(
            "a plugin by a path",
            "/delegate/type",
            json!("../../bin/sh"),
            Some("type"),
        ),
        change(
            "address management by a path",
            "/ipam/type",
            json!("/bin/sh"),
            Some("type"),
        ),
        change(
            "a route without a way",
            "/ipam/routes",
            json!([{ "dst": "fd00::/8" }]),
            Some("routes"),
        ),
        change(
            "a gateway of the other family",
            "/ipam/routes",
            json!([{ "dst": "10.0.0.0/8", "gw": "fd00::1" }]),
            Some("routes"),
        ),
        change("leases in a file", "/ipam/dataDir", json!("/etc/passwd"), None),
        change(
            "the subnet file is a device",
            "/subnetFile",
            json!("/dev/zero"),
            None,
        ),
        change("the subnet file is a folder", "/subnetFile", json!("/etc"), None),
        change(
            "name servers of a device",
            "/ipam/resolvConf",
            json!("/dev/zero"),
            None,
        ),
    ]
    .into_iter()
    .map(|input| Input {
        // Files that are something else: reading and writing them fails, or they are not what they should be.
        codes: if input.names.is_none() {
            &[5, 7, 11, 101]
        } else {
            input.codes
        },
        ..input
    })
    .collect()
}
