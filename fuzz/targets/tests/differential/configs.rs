//! Configurations on stdin.

use cni_plugin::config::NetworkConfig;
use flannel_cni::config::Network;
use flannel_cni::order::Order;
use flannel_cni::protocol::{CniArgs, CniError, SpecVersion, previous, read_object};
use flannel_fuzz::Mutator;
use flannel_model::SubnetEnv;
use serde_json::{Value, json};

use super::choice::{Choice, Tally, absent, fine, object, refused};

const ROUNDS: usize = 4_000;
const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn names() -> Vec<Choice> {
    vec![
        fine("cbr0"),
        fine("A.b-c_9"),
        refused("../x", "name"),
        refused("", "name"),
        refused("a b", "name"),
        refused("a\u{0}", "name"),
    ]
}

fn versions() -> Vec<Choice> {
    vec![
        fine("1.0.0"),
        fine("0.4.0"),
        fine("1.1.0"),
        fine("0.3.1"),
        // That reader takes every 1.x.y; the specification knows versions by their whole text.
        refused("1.0.1", "cniVersion"),
        refused("1.2.0-rc1", "cniVersion"),
    ]
}

fn runtime() -> Vec<(&'static str, Vec<Choice>)> {
    vec![
        (
            "mac",
            vec![
                absent(),
                fine("02:00:00:00:00:01"),
                fine("02-AA-bb-00-00-01"),
                fine("02aa.bb00.0001"),
                refused("01:00:5e:00:00:01", "mac"),
                refused("00:00:00:00:00:00", "mac"),
            ],
        ),
        (
            "ips",
            vec![
                absent(),
                fine(json!([])),
                fine(json!(["10.5.7.9/24", "fd00:5:0:7::9/64"])),
                fine(json!(["10.5.7.9"])),
                fine(json!(["fd00:5:0:7::9"])),
            ],
        ),
        (
            "portMappings",
            vec![
                absent(),
                fine(json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }])),
                fine(json!([])),
            ],
        ),
        ("aliases", vec![absent(), fine(json!(["a", "b"]))]),
        (
            "bandwidth",
            vec![
                absent(),
                fine(json!({ "ingressRate": 1000, "ingressBurst": 4_294_967_295u64 })),
            ],
        ),
        ("somethingNew", vec![absent(), fine(json!([{ "a": 1 }]))]),
    ]
}

fn previous_results() -> Vec<Choice> {
    vec![
        absent(),
        fine(Value::Null),
        fine(json!({ "ips": [{ "address": "10.5.7.2/24" }], "dns": {} })),
        refused("a text", "prevResult"),
        refused(json!({ "ips": [{ "address": "10.5.7.2" }] }), "address"),
        refused(json!({ "interfaces": {} }), "interfaces"),
    ]
}

fn config(random: &mut Mutator) -> (Value, Vec<&'static str>) {
    let (runtime, mut words) = object(&runtime(), random);
    let ipam = vec![
        absent(),
        fine(json!({ "type": "host-local" })),
        fine(
            json!({ "type": "host-local", "routes": [{ "dst": "10.9.0.0/16", "gw": "10.5.7.1" }], "dataDir": "/x" }),
        ),
        refused(json!({ "type": "host-local", "dataDir": "x" }), "dataDir"),
        refused(
            json!({ "type": "host-local", "routes": [{ "dst": "10.9.0.0" }] }),
            "dst",
        ),
    ];
    let keys = vec![
        ("cniVersion", versions()),
        ("name", names()),
        ("type", vec![fine("flannel")]),
        ("args", vec![absent(), fine(json!({ "x": { "y": 1 } }))]),
        ("ipMasq", vec![absent(), fine(true), fine(false)]),
        ("ipam", ipam),
        (
            "dns",
            vec![
                absent(),
                fine(json!({ "nameservers": ["10.0.0.1"], "search": ["a"] })),
            ],
        ),
        ("runtimeConfig", vec![fine(runtime), absent()]),
        ("prevResult", previous_results()),
        (
            "capabilities",
            vec![absent(), fine(json!({ "portMappings": true }))],
        ),
    ];
    let (value, more) = object(&keys, random);
    if value.get("runtimeConfig").is_none() {
        words.clear();
    }
    words.extend(more);
    (value, words)
}

/// Everything that a call reads from stdin.
fn ours(text: &str) -> Result<(Network, Order), CniError> {
    let network = read_object(text.as_bytes()).and_then(Network::new)?;
    let order = Order::read(&network, &CniArgs::default(), &SubnetEnv::parse(ENV).unwrap())?;
    previous(&network.keys(), network.version)?;
    Ok((network, order))
}

fn knows(theirs: &NetworkConfig) -> bool {
    let version = theirs.cni_version.to_string();
    // What that crate's own check of the version lets pass: 0.4.0 and all of 1.
    version == "0.4.0" || version.starts_with("1.")
}

fn same(theirs: &NetworkConfig, network: &Network, order: &Order) {
    assert_eq!(network.name.as_str(), theirs.name);
    assert_eq!(network.version.text(), theirs.cni_version.to_string());
    let runtime = theirs.runtime.clone().unwrap_or_default();
    let mac = runtime.mac.map(|mac| mac.to_string().to_lowercase());
    assert_eq!(order.bridge.mac.map(|mac| mac.to_string()), mac);
    let ips: Vec<_> = runtime.ips.iter().map(|ip| ip.ip()).collect();
    assert_eq!(order.bridge.requested, ips);
    let routes = theirs.ipam.as_ref().and_then(|ipam| ipam.specific.get("routes"));
    let given = routes.and_then(Value::as_array).map_or(0, Vec::len);
    // The node's networks of both families come behind.
    assert_eq!(order.ipam.routes.len(), given + 2);
    let object = theirs.prev_result.as_ref().filter(|value| !value.is_null());
    let read = previous(&network.keys(), network.version).unwrap();
    assert_eq!(read.is_some(), object.is_some());
}

#[test]
fn what_it_reads_we_read_alike() {
    let mut random = Mutator::new(7);
    let mut tally = Tally::default();
    for _ in 0..ROUNDS {
        let (value, words) = config(&mut random);
        let text = value.to_string();
        let Some(theirs) = serde_json::from_str::<NetworkConfig>(&text).ok().filter(knows) else {
            tally.unsaid += 1;
            continue;
        };
        match (ours(&text), words.is_empty()) {
            (Ok((network, order)), true) => {
                same(&theirs, &network, &order);
                tally.alike += 1;
            }
            (Err(error), false) => {
                let shown = error.to_string();
                assert!(
                    words.iter().any(|word| shown.contains(word)),
                    "{words:?}: {shown}: {text}"
                );
                tally.stricter += 1;
            }
            (Ok(_), false) => panic!("we take {words:?}: {text}"),
            (Err(error), true) => panic!("it takes what we refuse: {error}: {text}"),
        }
    }
    tally.check();
}

#[test]
fn it_is_told_our_version_whatever_we_support() {
    for version in [SpecVersion::V0_4_0, SpecVersion::V1_0_0, SpecVersion::V1_1_0] {
        let text = json!({ "cniVersion": version.text(), "name": "n", "type": "flannel" }).to_string();
        let theirs: NetworkConfig = serde_json::from_str(&text).unwrap();
        assert!(knows(&theirs));
        assert_eq!(ours(&text).unwrap().0.version, version);
    }
}
