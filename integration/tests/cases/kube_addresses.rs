//! Services of the API server that ask for addresses which somebody needs.

use anyhow::{Result, ensure};
use flannel_kube::fixture::{ApiServer, Collection};
use flannel_lab::lab::OPERATOR_ADDRESS;
use flannel_lab::{Lab, LabOptions, etcd, eventually, http, limit};
use serde_json::{Value, json};

use super::common::put_peer;

const PEER: &str = "192.168.50.77";

fn balanced(name: &str, number: u8, ips: &[&str]) -> Value {
    let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"metadata": {"namespace": "shop", "name": name},
        "spec": {"type": "LoadBalancer", "clusterIP": format!("10.96.0.{number}"), "externalIPs": ips, "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": ingress}}})
}

/// Whoever may write a Service could cut nodes off from the API server, etcd and each other: external addresses and those of load balancers
/// that are theirs are refused by name, in both programmers, though they lie inside the allowed range; the rest of the Service works.
pub fn addresses_of_servers_and_nodes_are_refused() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let server = ApiServer::start(format!("{OPERATOR_ADDRESS}:6443").parse()?)?;
    put_peer(&lab, "10.5.200.0-24", PEER, "02:00:00:00:00:77")?;
    let node = lab.node(1)?;
    server.put(
        Collection::ServiceCidrs,
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
    );
    let taken = [OPERATOR_ADDRESS, etcd::ADDRESS, node.address(), PEER];
    server.put(Collection::Services, balanced("greedy", 10, &taken));
    let url = format!("--kube-api-url={}", server.url());
    let mut daemon = node.start_ready_flanneld(&[
        "--service-source=kube",
        &url,
        "--service-external-ip-range=192.168.50.0/24",
        "--healthz-port=9009",
    ])?;
    for (address, why) in [
        (OPERATOR_ADDRESS, "it is an address of the API server"),
        (etcd::ADDRESS, "it is an address of etcd"),
        (node.address(), "it is this node's own address"),
        (PEER, "it is the address of another node"),
    ] {
        for field in ["externalIPs", "status.loadBalancer"] {
            daemon.wait_log(&format!("{field} {address} is refused: {why}"))?;
        }
    }
    let frontends = |expected: usize| {
        eventually(limit(30), &format!("{expected} frontends"), || {
            let (_, metrics) = http::get(&format!("{}:9009", node.address()), "/metrics")?;
            let line = format!("flannel_services_frontends {expected}");
            ensure!(metrics.lines().any(|l| l == line), "{metrics}");
            Ok(())
        })
    };
    frontends(1)?;
    let kernel = node.shell(
        "nft list tables | grep -v flannel-encap | while read -r _ family name; do nft list table \"$family\" \"$name\"; done; \
         ip route show table local; command -v ipvsadm > /dev/null && ipvsadm -Ln || true",
    )?;
    for address in [OPERATOR_ADDRESS, etcd::ADDRESS, PEER] {
        let delivered = kernel
            .lines()
            .find(|l| l.contains(&format!("{address} ")) || l.contains(&format!("{address}:")));
        let delivered = delivered.filter(|l| !l.contains("flannel-ipv4"));
        ensure!(delivered.is_none(), "{address}: {delivered:?}");
    }
    // nobody lost anybody: the API server still tells, and so does etcd
    server.put(Collection::Services, balanced("modest", 11, &["192.168.50.200"]));
    frontends(3)?;
    let nodes = lab.flannelctl(&["services"])?.ok()?;
    ensure!(nodes.contains("kube"), "{nodes}");
    daemon.check_running()
}
