//! What the desired virtual servers follow from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_model::{ServiceKey, ServiceProtocol, ServiceRecord, VirtualAddress};

use crate::service::{DesiredServices, desired_services};
use crate::service_facts::{ServiceFacts, ServiceNode};

const CONFIG: (&str, &str) = ("config", r#"{"cidrs":["10.96.0.0/16"]}"#);
const WEB: (&str, &str) = (
    "spec/shop/web",
    r#"{"clusterIP":"10.96.0.10","ports":[{"name":"http","port":80},{"name":"dns","protocol":"UDP","port":53}]}"#,
);

/// The records in the order of their creation.
fn desired(records: &[(&str, &str)]) -> DesiredServices {
    let node = ServiceNode {
        address: "192.0.2.1".parse().unwrap(),
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.1.0/24".parse().unwrap(),
    };
    let mut facts = ServiceFacts::new(node);
    for (revision, (key, value)) in (1..).zip(records) {
        let key = ServiceKey::parse(key).unwrap();
        let record = ServiceRecord::parse(&key, value.as_bytes()).unwrap();
        facts.add(key, record, revision);
    }
    desired_services(&facts)
}

fn real(desired: &DesiredServices, protocol: ServiceProtocol, vip: [u8; 4], port: u16) -> Vec<String> {
    let at = VirtualAddress {
        protocol,
        address: IpAddr::from(vip),
        port,
    };
    let server = desired.servers.get(&at).unwrap_or_else(|| panic!("no {at}"));
    server
        .real
        .iter()
        .map(|(at, r)| format!("{at} {}", r.weight))
        .collect()
}

fn slice(endpoints: &str) -> String {
    format!(
        r#"{{"addressType":"IPv4","ports":[{{"name":"http","port":8080}},{{"name":"dns","protocol":"UDP","port":5353}}],"endpoints":[{endpoints}]}}"#
    )
}

fn texts(desired: &DesiredServices) -> String {
    desired.notes.iter().map(|n| format!("{n}\n")).collect()
}

const VIP: [u8; 4] = [10, 96, 0, 10];
const TCP: ServiceProtocol = ServiceProtocol::Tcp;

#[test]
fn ports_are_resolved_by_name_in_the_slice() {
    let slice = slice(r#"{"addresses":["10.5.1.2"]},{"addresses":["10.5.2.3"],"conditions":{"ready":true}}"#);
    let out = desired(&[CONFIG, WEB, ("slices/shop/web/a", &slice)]);
    assert_eq!(real(&out, TCP, VIP, 80), ["10.5.1.2:8080 1", "10.5.2.3:8080 1"]);
    assert_eq!(
        real(&out, ServiceProtocol::Udp, VIP, 53),
        ["10.5.1.2:5353 1", "10.5.2.3:5353 1"]
    );
    let local: Vec<String> = out.local_endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(local, ["10.5.1.2"], "only pods of this node");
    assert_eq!(out.notes, []);
    assert!(out.servers.values().all(|s| s.scheduler == "rr" && s.flags == 0));
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    let last = r#"{"addresses":["10.5.1.2"],"conditions":{"ready":false,"serving":true,"terminating":true}}"#;
    let down = r#"{"addresses":["10.5.1.4"],"conditions":{"ready":false}}"#;
    let out = desired(&[
        CONFIG,
        WEB,
        ("slices/shop/web/a", &slice(&format!("{last},{down}"))),
    ]);
    assert_eq!(real(&out, TCP, VIP, 80), ["10.5.1.2:8080 1"]);
    let ready = r#"{"addresses":["10.5.1.3"]}"#;
    let out = desired(&[
        CONFIG,
        WEB,
        ("slices/shop/web/a", &slice(&format!("{last},{ready},{down}"))),
    ]);
    assert_eq!(real(&out, TCP, VIP, 80), ["10.5.1.3:8080 1"]);
    let out = desired(&[CONFIG, WEB, ("slices/shop/web/a", &slice(down))]);
    assert_eq!(
        real(&out, TCP, VIP, 80),
        [""; 0],
        "the virtual server stands, so that IPVS refuses at once"
    );
}

#[test]
fn an_endpoint_in_two_places_counts_once_in_its_best_state() {
    let unready = slice(r#"{"addresses":["10.5.1.2"],"conditions":{"ready":false}}"#);
    let ready = slice(r#"{"addresses":["10.5.1.2"]}"#);
    let out = desired(&[
        CONFIG,
        WEB,
        ("slices/shop/web/a", &unready),
        ("slices/shop/web/b", &ready),
        ("endpoints/shop/web/http/10.5.1.2:8080", r#"{"weight":7}"#),
        ("endpoints/shop/web/http/10.5.2.9:80", r#"{"state":"notReady"}"#),
        ("endpoints/shop/web/other/10.5.2.8:80", "{}"),
    ]);
    assert_eq!(real(&out, TCP, VIP, 80), ["10.5.1.2:8080 7"]);
}

#[test]
fn an_address_outside_the_cidrs_is_left_alone() {
    let out = desired(&[
        CONFIG,
        (
            "spec/shop/web",
            r#"{"clusterIP":"10.97.0.1","ports":[{"port":80}]}"#,
        ),
    ]);
    assert_eq!(out.servers, BTreeMap::new());
    assert!(texts(&out).contains(
        "shop/web: not programmed: clusterIP 10.97.0.1 lies outside the service CIDRs 10.96.0.0/16"
    ));
}

#[test]
fn the_older_of_two_services_keeps_the_address() {
    let spec = r#"{"clusterIP":"10.96.0.10","ports":[{"port":81}]}"#;
    let out = desired(&[CONFIG, WEB, ("spec/a/thief", spec)]);
    assert_eq!(out.servers.keys().map(|at| at.port).collect::<Vec<_>>(), [80, 53]);
    assert!(
        texts(&out)
            .contains("a/thief: not programmed: clusterIP 10.96.0.10 belongs to the older Service shop/web")
    );
}

#[test]
fn what_is_not_built_is_said_and_the_rest_works() {
    let spec = r#"{"type":"LoadBalancer","clusterIPs":["10.96.0.10","fd00::a"],"sessionAffinity":"ClientIP","externalIPs":["198.51.100.7"],
        "internalTrafficPolicy":"Local","scheduler":"mh","ports":[{"name":"a","port":80,"nodePort":30080},{"name":"s","port":9,"protocol":"SCTP"}]}"#;
    let out = desired(&[
        CONFIG,
        ("spec/shop/web", spec),
        ("slices/shop/gone/a", &slice("")),
    ]);
    assert_eq!(out.servers.len(), 1);
    let server = out.servers.values().next().unwrap();
    assert_eq!((server.scheduler.as_str(), server.flags), ("mh", 0x10));
    let text = texts(&out);
    for part in [
        "nodePort 30080 of TCP port 80",
        "SCTP port 9",
        "load balancer",
        "externalIPs 198.51.100.7",
        "sessionAffinity",
        "internalTrafficPolicy",
        "clusterIP fd00::a",
        "shop/gone: has endpoints, but there is no spec",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn headless_services_and_aliases_need_nothing() {
    let out = desired(&[
        CONFIG,
        ("spec/a/b", r#"{"clusterIP":"None","ports":[{"port":80}]}"#),
        ("spec/a/c", r#"{"type":"ExternalName","externalName":"a.b"}"#),
        ("spec/a/d", r#"{"ports":[{"port":80}]}"#),
    ]);
    assert_eq!(out.servers, BTreeMap::new());
    assert_eq!(
        texts(&out),
        "a/d: not programmed: the Service itself, because it has no clusterIP\n"
    );
}

#[test]
fn harmful_cidrs_are_refused_and_the_others_serve() {
    let config = r#"{"cidrs":["10.0.0.0/8","10.5.8.0/24","192.0.2.0/24","224.0.0.0/16","fd00::/112","10.96.0.0/16","10.96.1.0/24"]}"#;
    let out = desired(&[("config", config), WEB]);
    assert_eq!(
        out.cidrs,
        ["10.96.0.0/16".parse().unwrap()],
        "a range inside another is part of it"
    );
    assert_eq!(out.servers.len(), 2);
    let text = texts(&out);
    for part in [
        "at least 12 bits",
        "overlaps the pod network",
        "own address 192.0.2.1",
        "unicast",
        "IPv6",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn an_endpoint_inside_a_service_cidr_would_loop() {
    let out = desired(&[
        CONFIG,
        WEB,
        (
            "slices/shop/web/a",
            &slice(r#"{"addresses":["10.96.0.10"]},{"addresses":["10.5.1.2"]}"#),
        ),
    ]);
    assert_eq!(real(&out, TCP, VIP, 80), ["10.5.1.2:8080 1"]);
    assert!(texts(&out).contains("endpoint 10.96.0.10:8080"));
}
