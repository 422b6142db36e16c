//! Results, which the crate writes and reads as a runtime's library would.

use cni_plugin::reply::SuccessReply;
use flannel_cni::protocol::keys::Keys;
use flannel_cni::protocol::{AddResult, CniError, SpecVersion, previous};
use flannel_fuzz::Mutator;
use serde_json::{Map, Value, json};

use super::choice::{Choice, Tally, absent, fine, object, refused};

const ROUNDS: usize = 4_000;
const VERSIONS: [SpecVersion; 3] = [SpecVersion::V0_4_0, SpecVersion::V1_0_0, SpecVersion::V1_1_0];

fn interfaces() -> Vec<Choice> {
    let pod = json!({ "name": "eth0", "mac": "02:00:00:00:00:04", "sandbox": "/run/netns/x" });
    vec![
        fine(json!([{ "name": "cni0", "mac": "02-00-00-00-00-02", "sandbox": "" }, pod])),
        fine(json!([pod, { "name": "eth1", "sandbox": "/x", "somethingNew": 1 }])),
        fine(json!([pod, { "name": "ü \"x\"", "sandbox": "/a b" }])),
    ]
}

fn ips() -> Vec<Choice> {
    vec![
        fine(
            json!([{ "address": "10.5.7.2/24", "gateway": "10.5.7.1", "interface": 1 }, { "address": "fd00::2/64" }]),
        ),
        fine(json!([])),
        absent(),
        fine(json!([{ "version": "4", "address": "10.5.7.2/32", "interface": 0 }])),
        // That reader takes an address alone, and any index.
        refused(json!([{ "address": "10.5.7.2" }]), "address"),
        refused(json!([{ "address": "10.5.7.2/24", "interface": 2 }]), "interface"),
    ]
}

fn routes() -> Vec<Choice> {
    vec![
        fine(json!([{ "dst": "0.0.0.0/0", "gw": "10.5.7.1" }, { "dst": "::/0" }])),
        fine(json!([{ "dst": "10.5.0.0/16", "gw": null, "priority": 7 }])),
        absent(),
        refused(json!([{ "dst": "10.0.0.0/8", "gw": "fd00::1" }]), "gw"),
        refused(json!([{ "dst": "10.0.0.1" }]), "dst"),
    ]
}

fn dns() -> Vec<Choice> {
    vec![
        fine(json!({})),
        fine(
            json!({ "nameservers": ["10.0.0.1", "fd00::1"], "domain": "d", "search": ["a", "b"], "options": ["ndots:5"] }),
        ),
        fine(json!({ "domain": null })),
    ]
}

fn result(random: &mut Mutator) -> (Value, Vec<&'static str>) {
    let version = vec![fine("1.0.0"), fine("0.4.0"), fine("1.1.0")];
    let keys = vec![
        ("cniVersion", version),
        ("interfaces", interfaces()),
        ("ips", ips()),
        ("routes", routes()),
        ("dns", dns()),
        ("somethingNew", vec![absent(), fine(7)]),
    ];
    object(&keys, random)
}

fn ours(value: &Value, version: SpecVersion) -> Result<AddResult, CniError> {
    let mut config = Map::new();
    config.insert("prevResult".to_owned(), value.clone());
    previous(&Keys::new("", &config), version).map(Option::unwrap_or_default)
}

/// Both results in words, to be compared.
fn words(theirs: &SuccessReply) -> Vec<String> {
    let mac = |mac: cni_plugin::macaddr::MacAddr| mac.to_string().to_lowercase();
    let mut words: Vec<String> = Vec::new();
    words.extend(theirs.interfaces.iter().map(|interface| {
        let sandbox = interface.sandbox.to_string_lossy();
        format!("{} {:?} {sandbox:?}", interface.name, interface.mac.map(mac))
    }));
    words.extend(theirs.ips.iter().map(|ip| {
        format!(
            "{}/{} {:?} {:?}",
            ip.address.ip(),
            ip.address.prefix(),
            ip.gateway,
            ip.interface
        )
    }));
    words.extend(
        theirs
            .routes
            .iter()
            .map(|route| format!("{}/{} {:?}", route.dst.ip(), route.dst.prefix(), route.gw)),
    );
    let dns = &theirs.dns;
    let servers: Vec<String> = dns.nameservers.iter().map(ToString::to_string).collect();
    let domain = dns.domain.clone().unwrap_or_default();
    words.push(format!("{servers:?} {domain} {:?} {:?}", dns.search, dns.options));
    words
}

fn own_words(ours: &AddResult) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    words.extend(ours.interfaces.iter().map(|interface| {
        let (mac, sandbox) = (
            interface.mac.map(|mac| mac.to_string()),
            interface.sandbox.clone(),
        );
        format!("{} {mac:?} {:?}", interface.name, sandbox.unwrap_or_default())
    }));
    words.extend(
        ours.ips
            .iter()
            .map(|ip| format!("{}/{} {:?} {:?}", ip.address, ip.length, ip.gateway, ip.interface)),
    );
    words.extend(
        ours.routes
            .iter()
            .map(|route| format!("{}/{} {:?}", route.dst.0, route.dst.1, route.gw)),
    );
    let dns = &ours.dns;
    words.push(format!(
        "{:?} {} {:?} {:?}",
        dns.nameservers, dns.domain, dns.search, dns.options
    ));
    words
}

#[test]
fn what_it_reads_we_read_alike() {
    let mut random = Mutator::new(11);
    let mut tally = Tally::default();
    for _ in 0..ROUNDS {
        let (value, reasons) = result(&mut random);
        let Ok(theirs) = serde_json::from_value::<SuccessReply>(value.clone()) else {
            tally.unsaid += 1;
            continue;
        };
        let version = theirs.cni_version.to_string();
        let version = VERSIONS
            .into_iter()
            .find(|known| known.text() == version)
            .unwrap();
        match (ours(&value, version), reasons.is_empty()) {
            (Ok(ours), true) => {
                assert_eq!(own_words(&ours), words(&theirs), "{value}");
                tally.alike += 1;
            }
            (Err(error), false) => {
                let shown = error.to_string();
                assert!(
                    reasons.iter().any(|word| shown.contains(word)),
                    "{reasons:?}: {shown}: {value}"
                );
                tally.stricter += 1;
            }
            (Ok(_), false) => panic!("we take {reasons:?}: {value}"),
            (Err(error), true) => panic!("it takes what we refuse: {error}: {value}"),
        }
    }
    tally.check();
}

/// It wants a sandbox for every interface, which the specification leaves out for those of the host, and dns, which may be left out
/// since 1.0.0; both are put in. Everything else must be there.
#[test]
fn what_we_print_it_reads_alike() {
    let mut random = Mutator::new(13);
    let mut read = 0;
    for _ in 0..ROUNDS / 4 {
        let (value, reasons) = result(&mut random);
        if !reasons.is_empty() {
            continue;
        }
        for version in VERSIONS {
            let mut value = value.clone();
            value["cniVersion"] = version.text().into();
            let printed = ours(&value, version).unwrap();
            let mut text: Value = serde_json::from_str(&printed.to_json(version)).unwrap();
            for interface in text["interfaces"].as_array_mut().unwrap() {
                let object = interface.as_object_mut().unwrap();
                object.entry("sandbox").or_insert_with(|| "".into());
            }
            text.as_object_mut()
                .unwrap()
                .entry("dns")
                .or_insert_with(|| json!({}));
            let theirs: SuccessReply = serde_json::from_value(text).unwrap();
            assert_eq!(words(&theirs), own_words(&printed), "{version:?}");
            assert_eq!(theirs.cni_version.to_string(), version.text());
            read += 1;
        }
    }
    assert!(read > 300, "{read}");
}
