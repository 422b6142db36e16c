//! Services as one node programs them: endpoints, weights, connections and rates.

use std::collections::HashMap;
use std::time::Duration;

use flannel_model::{EndpointStatus, FrontendStatus, NodeServices, ServicesReport, Traffic};
use serde::Serialize;

use crate::output::{columns, printable};

/// What a frontend carried a second, between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    connections: f64,
    packets_in: Option<f64>,
    packets_out: Option<f64>,
    bytes_in: Option<f64>,
    bytes_out: Option<f64>,
}

/// Names a frontend across two reports.
type Name = (String, String, u16);

fn name(frontend: &FrontendStatus) -> Name {
    (
        frontend
            .address
            .map_or_else(|| frontend.family.clone(), |ip| ip.to_string()),
        frontend.protocol.clone(),
        frontend.port,
    )
}

/// The rates of the frontends of `after`, in its order; `None` for one that is new, or was made anew meanwhile.
pub fn rates(before: &ServicesReport, after: &ServicesReport, between: Duration) -> Vec<Option<Rates>> {
    let known: HashMap<Name, Traffic> = before
        .services
        .iter()
        .filter_map(|frontend| Some((name(frontend), frontend.traffic?)))
        .collect();
    let rate = |frontend: &FrontendStatus| {
        let (before, after) = (known.get(&name(frontend))?, frontend.traffic?);
        let seconds = between.as_secs_f64();
        let each = |before: u64, after: u64| Some(after.checked_sub(before)? as f64 / seconds);
        let both = |before: Option<u64>, after: Option<u64>| each(before?, after?);
        Some(Rates {
            connections: each(before.connections, after.connections)?,
            packets_in: both(before.packets_in, after.packets_in),
            packets_out: both(before.packets_out, after.packets_out),
            bytes_in: both(before.bytes_in, after.bytes_in),
            bytes_out: both(before.bytes_out, after.bytes_out),
        })
    };
    after.services.iter().map(rate).collect()
}

/// `node n1 (ipvs, revision 12 of etcd)`
pub fn node_line(node: &str, summary: &NodeServices) -> String {
    let source = match summary.source.as_str() {
        "kube" => "the API server",
        other => other,
    };
    printable(&format!(
        "node {node} ({}, revision {} of {source})",
        summary.mode, summary.revision
    ))
}

/// What is wrong with a node, if anything.
pub fn troubles(summary: &NodeServices) -> Vec<String> {
    let lost = summary
        .lost
        .iter()
        .map(|why| format!("the source cannot be followed: {why}"));
    let failed = summary.failed.iter().map(|why| format!("failed: {why}"));
    lost.chain(failed).collect()
}

/// One row an endpoint; the first of a frontend says what it is.
pub fn table(services: &[FrontendStatus], rates: Option<&[Option<Rates>]>) -> String {
    let mut rows = Vec::new();
    for (i, frontend) in services.iter().enumerate() {
        let rate = rates.and_then(|rates| rates.get(i).copied().flatten());
        let mut head = head(frontend, rates.map(|_| rate));
        if frontend.endpoints.is_empty() {
            let nobody = ["-", "", "", "", "no endpoint: refused"];
            rows.push(row(std::mem::take(&mut head), nobody.map(str::to_owned)));
        }
        for endpoint in &frontend.endpoints {
            rows.push(row(std::mem::take(&mut head), cells(frontend, endpoint)));
        }
    }
    let carried = if rates.is_some() {
        "CONN/S IN/S OUT/S"
    } else {
        "CONNECTIONS"
    };
    columns(
        [
            "SERVICE",
            "ADDRESS",
            "SCHEDULER",
            carried,
            "ENDPOINT",
            "WEIGHT",
            "ACTIVE",
            "INACTIVE",
            "",
        ],
        rows,
    )
}

fn row(head: [String; 4], tail: [String; 5]) -> [String; 9] {
    let [a, b, c, d] = head;
    let [e, f, g, h, i] = tail;
    [a, b, c, d, e, f, g, h, i]
}

fn head(frontend: &FrontendStatus, rate: Option<Option<Rates>>) -> [String; 4] {
    let port = match frontend.port_name.as_str() {
        "" => String::new(),
        name => format!(":{name}"),
    };
    let traffic = frontend.traffic.map(|t| t.connections.to_string());
    let carried = match rate {
        None => traffic,
        Some(rate) => rate.map(rate_text),
    };
    [
        format!("{}/{}{port}", frontend.namespace, frontend.name),
        format!("{} {}", frontend.protocol, frontend.at()),
        frontend.scheduler.clone(),
        carried.unwrap_or_else(|| "-".to_owned()),
    ]
}

fn rate_text(rate: Rates) -> String {
    let bytes = |bytes: Option<f64>| bytes.map_or_else(|| "-".to_owned(), |b| format!("{}B", scaled(b)));
    format!(
        "{} {} {}",
        scaled(rate.connections),
        bytes(rate.bytes_in),
        bytes(rate.bytes_out)
    )
}

/// Three digits at the least: `0.5`, `12.3k`, `4.6M`.
fn scaled(number: f64) -> String {
    for (unit, factor) in [("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if number >= factor {
            return format!("{:.1}{unit}", number / factor);
        }
    }
    format!("{number:.1}")
}

fn cells(frontend: &FrontendStatus, endpoint: &EndpointStatus) -> [String; 5] {
    let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let split = frontend.endpoints.iter().any(|e| e.inside != e.outside);
    let note = match (endpoint.inside, endpoint.outside) {
        (false, false) => "leaving",
        (true, false) if split => "pods only",
        (false, true) if split => "outside only",
        _ if endpoint.local => "local",
        _ => "",
    };
    [
        endpoint.address.to_string(),
        endpoint.weight.to_string(),
        count(endpoint.active),
        count(endpoint.inactive),
        note.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontend(connections: u64, bytes_in: Option<u64>) -> FrontendStatus {
        let endpoint = |address: &str, inside, outside, weight| EndpointStatus {
            address: address.parse().unwrap(),
            weight,
            local: false,
            inside,
            outside,
            active: Some(3),
            inactive: None,
        };
        FrontendStatus {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            port_name: "http".to_owned(),
            kind: "ClusterIP".to_owned(),
            family: "IPv4".to_owned(),
            protocol: "TCP".to_owned(),
            address: Some("10.96.0.10".parse().unwrap()),
            port: 80,
            scheduler: "wrr".to_owned(),
            affinity: None,
            source_ranges: None,
            keep_source: false,
            traffic: Some(Traffic {
                connections,
                bytes_in,
                ..Traffic::default()
            }),
            endpoints: vec![
                endpoint("10.5.1.2:8080", true, true, 2),
                endpoint("10.5.2.3:8080", false, false, 0),
            ],
        }
    }

    fn report(frontends: Vec<FrontendStatus>) -> ServicesReport {
        ServicesReport {
            services: frontends,
            ..ServicesReport::default()
        }
    }

    #[test]
    fn one_row_an_endpoint() {
        let text = table(&[frontend(7, None)], None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1..],
            [
                "shop/web:http   TCP 10.96.0.10:80   wrr         7             10.5.1.2:8080   2        3        -",
                "                                                              10.5.2.3:8080   0        3        -          leaving",
            ],
            "{text}"
        );
        let nobody = FrontendStatus {
            endpoints: Vec::new(),
            ..frontend(0, None)
        };
        assert!(table(&[nobody], None).contains("no endpoint: refused"));
    }

    #[test]
    fn rates_are_differences_of_what_is_the_same() {
        let (before, after) = (frontend(10, Some(1000)), frontend(20, Some(4000)));
        let two = Duration::from_secs(2);
        let rates = rates(&report(vec![before.clone()]), &report(vec![after.clone()]), two);
        let rate = rates[0].unwrap();
        assert_eq!(
            (rate.connections, rate.bytes_in, rate.bytes_out),
            (5.0, Some(1500.0), None)
        );
        assert!(table(std::slice::from_ref(&after), Some(&rates)).contains("5.0 1.5kB -"));
        // made anew: its counters began again
        let anew = super::rates(&report(vec![after]), &report(vec![before]), two);
        assert_eq!(anew, [None]);
    }
}
