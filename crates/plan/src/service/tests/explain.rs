//! Why packets for an address go where they go.

use super::*;

/// The sentences about an address, with the endpoints that are not used.
fn explained(records: &[(&str, &str)], at: &str) -> String {
    let mut table = ServiceTable::new(facts(records));
    table.refresh();
    let out = table.explain(at.parse().unwrap(), None);
    let unused = out.unused.iter().map(|u| format!("{}: {}", u.address, u.reason));
    let notes = out.notes.iter().map(ToString::to_string);
    let lines: Vec<String> = out.verdict.iter().cloned().chain(unused).chain(notes).collect();
    lines.join("\n")
}

#[test]
fn an_address_is_explained() {
    let endpoints = slice(
        r#"{"addresses":["10.5.1.2"]},{"addresses":["10.5.2.3"]},{"addresses":["10.5.2.4"],"conditions":{"ready":false}},
        {"addresses":["10.5.2.5"],"conditions":{"ready":false,"serving":true,"terminating":true}},{"addresses":["10.96.0.7"]}"#,
    );
    let records = [CONFIG, WEB, ("slices/shop/web/a", endpoints.as_str())];
    let text = explained(&records, "10.96.0.10:80");
    for line in [
        "TCP 10.96.0.10:80 is port http of Service shop/web (cluster address).",
        "New connections go to 2 endpoints by rr.",
        "10.5.2.4:8080: it is not ready",
        "10.5.2.5:8080: it is on its way out, and others are ready",
        "10.96.0.7:8080: it lies inside the service CIDR 10.96.0.0/16",
        "shop/web: endpoint 10.96.0.7:8080 is refused: it lies inside a service CIDR",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

#[test]
fn nothing_at_an_address_is_explained_too() {
    let text = explained(&[CONFIG, WEB], "10.96.0.10:81");
    assert!(
        text.contains("the Service at 10.96.0.10 has TCP 80, UDP 53 only. Clients are refused"),
        "{text}"
    );
    let text = explained(&[CONFIG, WEB], "10.96.0.10:80");
    assert!(
        text.contains("No endpoint takes traffic: clients are refused at once."),
        "{text}"
    );
    let text = explained(&[CONFIG, WEB], "10.96.0.11:80");
    assert!(
        text.contains("10.96.0.11 belongs to no Service that is programmed"),
        "{text}"
    );
    let text = explained(&[CONFIG, WEB], "198.51.100.1:80");
    assert!(text.contains("routed like any others"), "{text}");
    let text = explained(&[CONFIG, WEB], "192.0.2.1:22");
    assert!(
        text.contains("no Service has the node port 22: the host itself answers"),
        "{text}"
    );
    let rival = r#"{"clusterIP":"10.96.0.10","ports":[{"port":8080}]}"#;
    let text = explained(&[CONFIG, WEB, ("spec/shop/late", rival)], "10.96.0.10:8080");
    assert!(
        text.contains("shop/late: clusterIP 10.96.0.10 is refused: it belongs to the older Service shop/web"),
        "{text}"
    );
}

#[test]
fn policies_and_hints_are_explained() {
    let spec = r#"{"type":"LoadBalancer","clusterIP":"10.96.0.10","ports":[{"name":"http","port":80,"nodePort":30080}],
        "externalTrafficPolicy":"Local","internalTrafficPolicy":"Local","loadBalancer":{"ingress":[{"ip":"203.0.113.7"}]},
        "loadBalancerSourceRanges":["198.51.100.0/24"],"sessionAffinity":"ClientIP"}"#;
    let far = slice(r#"{"addresses":["10.5.2.3"]}"#);
    let records = [
        CONFIG,
        ("spec/shop/web", spec),
        ("slices/shop/web/a", far.as_str()),
    ];
    let text = explained(&records, "203.0.113.7:80");
    for part in [
        "Pods and this node reach 1 endpoint of the whole cluster by rr; everybody else is refused at once, because none runs on this node",
        "Only clients in 198.51.100.0/24 may connect",
        "A client keeps its endpoint for 10800 s.",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let text = explained(&records, "10.96.0.10:80");
    assert!(
        text.contains("10.5.2.3:8080: it runs on another node, and internalTrafficPolicy is Local"),
        "{text}"
    );
    let text = explained(&records, "192.0.2.1:30080");
    assert!(
        text.contains("TCP nodePort 30080 (IPv4) is port http of Service shop/web (node port)."),
        "{text}"
    );
    let text = explained(&records, "192.0.2.7:30080");
    assert!(text.contains("node ports answer on 192.0.2.1"), "{text}");
    let hinted = slice(
        r#"{"addresses":["10.5.2.3"],"hints":{"forZones":[{"name":"a"}]}},{"addresses":["10.5.2.4"],"hints":{"forZones":[{"name":"b"}]}}"#,
    );
    let text = explained(
        &[CONFIG, WEB, ("slices/shop/web/a", hinted.as_str())],
        "10.96.0.10:80",
    );
    assert!(
        text.contains("10.5.2.4:8080: its hints give it to other nodes or zones"),
        "{text}"
    );
}
