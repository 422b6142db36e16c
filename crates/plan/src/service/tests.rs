//! What the frontends of a node follow from.

use std::net::IpAddr;

use flannel_model::{ServiceKey, ServiceProtocol, ServiceRecord, VirtualAddress};
use proptest::prelude::*;

use super::*;

mod explain;

const CONFIG: (&str, &str) = (
    "config",
    r#"{"cidrs":["10.96.0.0/16","fd00:96::/112"],"externalCidrs":["203.0.113.0/24"]}"#,
);
const WEB: (&str, &str) = (
    "spec/shop/web",
    r#"{"clusterIP":"10.96.0.10","ports":[{"name":"http","port":80},{"name":"dns","protocol":"UDP","port":53}]}"#,
);

fn node() -> ServiceNode {
    ServiceNode {
        name: "n1".into(),
        zone: Some("a".into()),
        primary: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        addresses: ["192.0.2.1", "192.0.2.7", "2001:db8::1"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect(),
        networks: vec!["10.5.0.0/16".parse().unwrap()],
        pods: vec!["10.5.1.0/24".parse().unwrap()],
        peers: ["203.0.113.2".parse().unwrap()].into(),
        reserved: [("203.0.113.3".parse().unwrap(), "etcd".to_owned())].into(),
        api_servers: std::collections::BTreeSet::new(),
    }
}

fn facts(records: &[(&str, &str)]) -> ServiceFacts {
    let mut facts = ServiceFacts::new(node());
    for (created, (key, value)) in (1..).zip(records) {
        let (key, record) = record(key, value);
        facts.add(key, record, created);
    }
    facts
}

fn record(key: &str, value: &str) -> (ServiceKey, ServiceRecord) {
    let key = ServiceKey::parse(key).unwrap();
    let record = ServiceRecord::parse(&key, value.as_bytes()).unwrap();
    (key, record)
}

/// The records in the order of their creation: frontends and notes.
fn desired(records: &[(&str, &str)]) -> (Frontends, String) {
    let (out, notes) = frontends(facts(records));
    (out, notes.iter().map(|n| format!("{n}\n")).collect())
}

fn slice(endpoints: &str) -> String {
    format!(
        r#"{{"addressType":"IPv4","ports":[{{"name":"http","port":8080}},{{"name":"dns","protocol":"UDP","port":5353}}],"endpoints":[{endpoints}]}}"#
    )
}

fn at(address: &str, port: u16) -> FrontendKey {
    FrontendKey::Address(VirtualAddress {
        protocol: ServiceProtocol::Tcp,
        address: address.parse::<IpAddr>().unwrap(),
        port,
    })
}

fn node_port(port: u16) -> FrontendKey {
    FrontendKey::NodePort(NodePort {
        ipv4: true,
        protocol: ServiceProtocol::Tcp,
        port,
    })
}

/// Who answers from inside and from outside.
fn answers(out: &Frontends, key: FrontendKey) -> (Vec<String>, Vec<String>) {
    let frontend = out.by_key.get(&key).unwrap_or_else(|| panic!("no {key}"));
    let texts = |list: &Backends| list.iter().map(|b| b.address.to_string()).collect();
    (texts(&frontend.inside), texts(&frontend.outside))
}

fn inside(out: &Frontends, key: FrontendKey) -> Vec<String> {
    answers(out, key).0
}

const VIP: &str = "10.96.0.10";

#[test]
fn ports_are_resolved_by_name_in_the_slice() {
    let slice = slice(r#"{"addresses":["10.5.1.2"]},{"addresses":["10.5.2.3"],"conditions":{"ready":true}}"#);
    let (out, notes) = desired(&[CONFIG, WEB, ("slices/shop/web/a", &slice)]);
    assert_eq!(inside(&out, at(VIP, 80)), ["10.5.1.2:8080", "10.5.2.3:8080"]);
    assert_eq!(out.by_key.len(), 2);
    let local: Vec<String> = out.local_endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(local, ["10.5.1.2"], "only pods of this node");
    assert_eq!(notes, "");
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    let last = r#"{"addresses":["10.5.1.2"],"conditions":{"ready":false,"serving":true,"terminating":true}}"#;
    let down = r#"{"addresses":["10.5.1.4"],"conditions":{"ready":false}}"#;
    let ready = r#"{"addresses":["10.5.1.3"]}"#;
    for (endpoints, expected) in [
        (format!("{last},{down}"), vec!["10.5.1.2:8080"]),
        (format!("{last},{ready},{down}"), vec!["10.5.1.3:8080"]),
        (down.to_owned(), vec![]),
    ] {
        let (out, _) = desired(&[CONFIG, WEB, ("slices/shop/web/a", &slice(&endpoints))]);
        assert_eq!(inside(&out, at(VIP, 80)), expected);
    }
    let publish = WEB.1.replacen('{', r#"{"publishNotReadyAddresses":true,"#, 1);
    let (out, _) = desired(&[
        CONFIG,
        (WEB.0, &publish),
        ("slices/shop/web/a", &slice(&format!("{last},{down}"))),
    ]);
    assert_eq!(inside(&out, at(VIP, 80)), ["10.5.1.2:8080", "10.5.1.4:8080"]);
}

#[test]
fn an_endpoint_in_two_places_counts_once_in_its_best_state() {
    let unready = slice(r#"{"addresses":["10.5.1.2"],"conditions":{"ready":false}}"#);
    let (out, _) = desired(&[
        CONFIG,
        WEB,
        ("slices/shop/web/a", &unready),
        ("slices/shop/web/b", &slice(r#"{"addresses":["10.5.1.2"]}"#)),
        ("endpoints/shop/web/http/10.5.1.2:8080", r#"{"weight":7}"#),
        ("endpoints/shop/web/http/10.5.2.9:80", r#"{"state":"notReady"}"#),
        ("endpoints/shop/web/other/10.5.2.8:80", "{}"),
    ]);
    let frontend = &out.by_key[&at(VIP, 80)];
    assert_eq!(frontend.inside.len(), 1);
    assert_eq!(frontend.inside[0].weight, 7);
}

const BALANCED: &str = r#"{"type":"LoadBalancer","clusterIPs":["10.96.0.10"],"externalIPs":["203.0.113.9"],"externalTrafficPolicy":"Local",
    "loadBalancer":{"ingress":[{"ip":"203.0.113.8"}]},"loadBalancerSourceRanges":["198.51.100.0/24","2001:db8:5::/64"],
    "healthCheckNodePort":32001,"ports":[{"name":"http","port":80,"nodePort":30080}]}"#;

#[test]
fn outside_traffic_stays_local_and_pods_reach_all() {
    let both = slice(r#"{"addresses":["10.5.1.2"]},{"addresses":["10.5.2.3"]}"#);
    let (out, notes) = desired(&[CONFIG, ("spec/shop/web", BALANCED), ("slices/shop/web/a", &both)]);
    assert_eq!(notes, "");
    for key in [at("203.0.113.9", 80), at("203.0.113.8", 80), node_port(30080)] {
        let (inside, outside) = answers(&out, key);
        assert_eq!(inside, ["10.5.1.2:8080", "10.5.2.3:8080"], "{key}");
        assert_eq!(outside, ["10.5.1.2:8080"], "{key}");
        assert!(out.by_key[&key].keep_source && out.by_key[&key].is_split());
    }
    let cluster = &out.by_key[&at(VIP, 80)];
    assert!(!cluster.keep_source && cluster.outside.len() == 2);
    assert_eq!(out.external_ips.len(), 2);
    assert_eq!(out.health_checks[&32001].local_endpoints, 1);
    let ranges = out.by_key[&at("203.0.113.8", 80)].source_ranges.clone().unwrap();
    assert_eq!(
        *ranges,
        ["198.51.100.0/24".parse().unwrap()],
        "those of the family"
    );
    assert!(out.by_key[&at("203.0.113.9", 80)].source_ranges.is_none());

    let elsewhere = slice(r#"{"addresses":["10.5.2.3"]}"#);
    let (out, _) = desired(&[
        CONFIG,
        ("spec/shop/web", BALANCED),
        ("slices/shop/web/a", &elsewhere),
    ]);
    let (inside, outside) = answers(&out, node_port(30080));
    assert_eq!((inside.len(), outside.len()), (1, 0), "no dead end for pods");
    assert_eq!(out.health_checks[&32001].local_endpoints, 0);
}

#[test]
fn internal_policy_local_keeps_cluster_traffic_on_the_node() {
    let spec =
        r#"{"clusterIP":"10.96.0.10","internalTrafficPolicy":"Local","ports":[{"name":"http","port":80}]}"#;
    let leaving =
        r#"{"addresses":["10.5.1.4"],"conditions":{"ready":false,"serving":true,"terminating":true}}"#;
    for (endpoints, expected) in [
        (
            r#"{"addresses":["10.5.1.2"]},{"addresses":["10.5.2.3"]}"#.to_owned(),
            vec!["10.5.1.2:8080"],
        ),
        (
            format!(r#"{leaving},{{"addresses":["10.5.2.3"]}}"#),
            vec!["10.5.1.4:8080"],
        ),
        (
            r#"{"addresses":["10.5.2.3"],"nodeName":"n1"}"#.to_owned(),
            vec!["10.5.2.3:8080"],
        ),
        (r#"{"addresses":["10.5.2.3"]}"#.to_owned(), vec![]),
    ] {
        let (out, _) = desired(&[
            CONFIG,
            ("spec/shop/web", spec),
            ("slices/shop/web/a", &slice(&endpoints)),
        ]);
        assert_eq!(inside(&out, at(VIP, 80)), expected);
    }
}

#[test]
fn hints_count_only_when_they_are_complete() {
    let endpoint = |n: u8, zones: &str, nodes: &str| {
        format!(r#"{{"addresses":["10.5.2.{n}"],"hints":{{"forZones":[{zones}],"forNodes":[{nodes}]}}}}"#)
    };
    let (a, b, n1, n2) = (
        r#"{"name":"a"}"#,
        r#"{"name":"b"}"#,
        r#"{"name":"n1"}"#,
        r#"{"name":"n2"}"#,
    );
    for (endpoints, expected, what) in [
        (
            [endpoint(2, a, ""), endpoint(3, b, "")],
            vec!["10.5.2.2:8080"],
            "own zone",
        ),
        (
            [endpoint(2, a, ""), endpoint(3, "", "")],
            vec!["10.5.2.2:8080", "10.5.2.3:8080"],
            "one without",
        ),
        (
            [endpoint(2, b, ""), endpoint(3, b, "")],
            vec!["10.5.2.2:8080", "10.5.2.3:8080"],
            "none for us",
        ),
        (
            [endpoint(2, a, n2), endpoint(3, b, n1)],
            vec!["10.5.2.3:8080"],
            "the node before the zone",
        ),
        (
            [endpoint(2, a, n2), endpoint(3, b, n2)],
            vec!["10.5.2.2:8080"],
            "nodes of others, so the zone",
        ),
    ] {
        let (out, _) = desired(&[CONFIG, WEB, ("slices/shop/web/a", &slice(&endpoints.join(",")))]);
        assert_eq!(inside(&out, at(VIP, 80)), expected, "{what}");
    }
}

#[test]
fn both_families_have_endpoints_of_their_own() {
    let spec = r#"{"type":"NodePort","clusterIPs":["10.96.0.10","fd00:96::a"],"ports":[{"name":"http","port":80,"nodePort":30080}]}"#;
    let six = r#"{"addressType":"IPv6","ports":[{"name":"http","port":8080}],"endpoints":[{"addresses":["fd00:5::2"]}]}"#;
    let four = slice(r#"{"addresses":["10.5.1.2"]}"#);
    let (out, notes) = desired(&[
        CONFIG,
        ("spec/shop/web", spec),
        ("slices/shop/web/a", &four),
        ("slices/shop/web/b", six),
    ]);
    assert_eq!(notes, "");
    assert_eq!(inside(&out, at("fd00:96::a", 80)), ["[fd00:5::2]:8080"]);
    assert_eq!(inside(&out, at(VIP, 80)), ["10.5.1.2:8080"]);
    assert_eq!(out.by_key.len(), 4, "two addresses, a node port in two families");
    let six: Vec<&FrontendKey> = out.by_key.keys().filter(|k| !k.is_ipv4()).collect();
    assert_eq!(six.len(), 2);
}

#[test]
fn addresses_that_would_cut_something_off_are_refused_and_named() {
    let spec = r#"{"type":"NodePort","clusterIP":"10.97.0.1","externalIPs":["192.0.2.7","203.0.113.2","203.0.113.3","10.5.9.9","10.96.0.99","198.51.100.7"],
        "ports":[{"port":80,"nodePort":8080}]}"#;
    let (out, notes) = desired(&[CONFIG, ("spec/shop/web", spec)]);
    assert_eq!(out.by_key.len(), 0);
    for part in [
        "shop/web: clusterIP 10.97.0.1 is refused: it lies outside the service CIDRs 10.96.0.0/16, fd00:96::/112",
        "externalIPs 192.0.2.7 is refused: it is this node's own address",
        "externalIPs 203.0.113.2 is refused: it is the address of another node",
        "externalIPs 203.0.113.3 is refused: it is an address of etcd",
        "externalIPs 10.5.9.9 is refused: it lies inside the pod network 10.5.0.0/16",
        "externalIPs 10.96.0.99 is refused: it lies inside the service CIDR 10.96.0.0/16",
        "externalIPs 198.51.100.7 is refused: it lies outside the ranges 203.0.113.0/24",
        "nodePort 8080 is refused: it lies outside the range 30000-32767",
    ] {
        assert!(notes.contains(part), "{part}\n{notes}");
    }
}

#[test]
fn the_older_of_two_services_keeps_what_both_want() {
    let thief = r#"{"type":"NodePort","clusterIP":"10.96.0.10","externalIPs":["203.0.113.9"],"ports":[{"port":81,"nodePort":30080}]}"#;
    let owner = r#"{"type":"NodePort","clusterIP":"10.96.0.10","externalIPs":["203.0.113.9"],"ports":[{"port":80,"nodePort":30080}]}"#;
    let records = [CONFIG, ("spec/shop/web", owner), ("spec/a/thief", thief)];
    let (out, notes) = desired(&records);
    let keys: Vec<FrontendKey> = out.by_key.keys().copied().collect();
    assert_eq!(
        keys,
        [
            at(VIP, 80),
            at("203.0.113.9", 80),
            at("203.0.113.9", 81),
            node_port(30080)
        ],
        "an external address is shared by ports, a cluster address is not"
    );
    for what in ["clusterIP 10.96.0.10", "TCP nodePort 30080 (IPv4)"] {
        let text = format!("a/thief: {what} is refused: it belongs to the older Service shop/web");
        assert!(notes.contains(&text), "{text}\n{notes}");
    }
    let mut table = ServiceTable::new(facts(&records));
    table.refresh();
    table.set(ServiceKey::parse("spec/shop/web").unwrap(), None);
    let changes = table.refresh();
    assert_eq!(table.notes(), []);
    assert!(changes.keys.contains(&at(VIP, 81)) && changes.keys.contains(&node_port(30080)));
    assert!(
        !changes.keys.contains(&at("203.0.113.9", 81)),
        "what stays is no change"
    );
}

#[test]
fn services_of_others_and_without_addresses_need_nothing() {
    let (out, notes) = desired(&[
        CONFIG,
        ("spec/a/b", r#"{"clusterIP":"None","ports":[{"port":80}]}"#),
        ("spec/a/c", r#"{"type":"ExternalName","externalName":"a.b"}"#),
        ("spec/a/d", r#"{"ports":[{"port":80}]}"#),
        (
            "spec/a/e",
            r#"{"clusterIP":"10.96.0.9","ports":[{"port":80}],"serviceProxyName":"other"}"#,
        ),
        ("slices/a/gone/x", &slice("")),
    ]);
    assert_eq!(out.by_key.len(), 0);
    assert_eq!(
        notes,
        "a/d: it has no clusterIP\na/gone: it has endpoints, but there is no spec of that name\n"
    );
}

#[test]
fn harmful_cidrs_are_refused_and_the_others_serve() {
    let config = r#"{"cidrs":["10.0.0.0/8","10.5.8.0/24","192.0.2.0/24","224.0.0.0/16","fe80::/112","203.0.113.0/24","10.96.0.0/16","10.96.1.0/24"]}"#;
    let (out, notes) = desired(&[("config", config), WEB]);
    assert_eq!(
        out.cidrs,
        ["10.96.0.0/16".parse().unwrap()],
        "a range inside another is part of it"
    );
    assert_eq!(out.by_key.len(), 2);
    for part in [
        "at least 12 bits",
        "overlaps the pod network",
        "own address 192.0.2.1",
        "unicast",
        "an address of etcd",
    ] {
        assert!(notes.contains(part), "{part}\n{notes}");
    }
}

#[test]
fn a_neighbour_inside_a_service_cidr_is_named_and_ends_no_service() {
    let mut facts = facts(&[CONFIG, WEB]);
    facts.node.peers.insert("10.96.3.4".parse().unwrap());
    let (out, notes) = frontends(facts);
    assert_eq!((out.cidrs.len(), out.by_key.len()), (2, 2));
    assert_eq!(notes.len(), 1);
    let text = notes[0].to_string();
    assert!(
        text.starts_with("config: cidrs 10.96.0.0/16 holds 10.96.3.4, the address of another node"),
        "{text}"
    );
}

#[test]
fn an_endpoint_inside_a_service_cidr_would_loop() {
    let endpoints = slice(r#"{"addresses":["10.96.0.10"]},{"addresses":["10.5.1.2"]}"#);
    let (out, notes) = desired(&[CONFIG, WEB, ("slices/shop/web/a", &endpoints)]);
    assert_eq!(inside(&out, at(VIP, 80)), ["10.5.1.2:8080"]);
    assert!(notes.contains("endpoint 10.96.0.10:8080 is refused"));
}

#[test]
fn own_words_win_over_the_clusters() {
    let config =
        r#"{"cidrs":["10.96.0.0/16"],"scheduler":"sh","schedulerFlags":["sh-port"],"drainTimeout":9}"#;
    let own =
        r#"{"clusterIP":"10.96.0.11","scheduler":"mh","sessionAffinity":"ClientIP","ports":[{"port":80}]}"#;
    let (out, _) = desired(&[("config", config), WEB, ("spec/shop/own", own)]);
    let of = |address| {
        let f = &out.by_key[&at(address, 80)];
        (f.scheduler.as_str(), f.flags.bits(), f.affinity)
    };
    assert_eq!(of(VIP), ("sh", 0x10, None));
    assert_eq!(of("10.96.0.11"), ("mh", 0x10, Some(10_800)));
    assert_eq!(out.drain_timeout, 9);
}

/// Records that collide in every way, some of them harmful.
fn any_record() -> impl Strategy<Value = (String, String)> {
    let name = prop_oneof![Just("a/a"), Just("a/b"), Just("b/a")];
    let spec = (name.clone(), 0u8..4, 0u8..3, any::<bool>(), 0u16..3).prop_map(|(name, vip, ext, local, port)| {
        let policy = if local { "Local" } else { "Cluster" };
        let value = format!(
            r#"{{"type":"NodePort","clusterIP":"10.96.0.{vip}","externalIPs":["203.0.113.{ext}"],"externalTrafficPolicy":"{policy}",
               "ports":[{{"name":"http","port":{},"nodePort":{}}}]}}"#,
            80 + port,
            30000 + port
        );
        (format!("spec/{name}"), value)
    });
    let endpoints = (name, 0u8..2, 1u8..3, any::<bool>()).prop_map(|(name, n, subnet, ready)| {
        let one = format!(
            r#"{{"addresses":["10.5.{subnet}.{}"],"conditions":{{"ready":{ready}}}}}"#,
            n + 2
        );
        (format!("slices/{name}/{n}"), slice(&one))
    });
    let config = (0u8..3).prop_map(|n| {
        let value = format!(
            r#"{{"cidrs":["10.96.0.0/{}"],"externalCidrs":["203.0.113.0/{}"]}}"#,
            30 + n % 2,
            24 + n
        );
        ("config".to_owned(), value)
    });
    prop_oneof![4 => spec, 4 => endpoints, 1 => config]
}

proptest! {
    /// However it got there, the table holds what the facts say; and it told of every change.
    #[test]
    fn step_by_step_is_the_same_as_at_once(steps in proptest::collection::vec((any_record(), any::<bool>(), any::<bool>()), 1..30)) {
        let mut table = ServiceTable::new(ServiceFacts::new(node()));
        table.refresh();
        let mut seen = table.frontends().clone();
        for (i, ((key, value), present, pause)) in steps.into_iter().enumerate() {
            let (key, record) = record(&key, &value);
            table.set(key, present.then_some((record, i64::try_from(i).unwrap())));
            if pause {
                continue;
            }
            let changes = table.refresh();
            for key in &changes.keys {
                match table.frontends().by_key.get(key) {
                    Some(frontend) => seen.by_key.insert(*key, frontend.clone()),
                    None => seen.by_key.remove(key),
                };
            }
            prop_assert_eq!(&seen.by_key, &table.frontends().by_key, "a change was not told");
            let flips = |old: &Counted<IpAddr>, new: &Counted<IpAddr>| -> std::collections::BTreeSet<IpAddr> {
                old.iter().chain(new.iter()).filter(|ip| old.contains(ip) != new.contains(ip)).copied().collect()
            };
            prop_assert_eq!(&changes.external_ips, &flips(&seen.external_ips, &table.frontends().external_ips));
            prop_assert_eq!(&changes.local_endpoints, &flips(&seen.local_endpoints, &table.frontends().local_endpoints));
            seen = table.frontends().clone();
            let (at_once, notes) = frontends(table.facts().clone());
            prop_assert_eq!(&at_once, table.frontends());
            prop_assert_eq!(notes, table.notes());
            prop_assert!(table.refresh().is_empty());
        }
    }
}
