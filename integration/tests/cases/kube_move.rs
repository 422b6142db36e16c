//! Many Services of an API server, and the way from there into etcd.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flannel_kube::fixture::{ApiServer, Collection};
use flannel_lab::lab::OPERATOR_ADDRESS;
use flannel_lab::{Kubectl, Lab, LabOptions, Node, eventually, http, limit, sandbox};
use serde_json::{Value, json};

/// What the daemon may take with 10,000 Services of 10 endpoints each, in MiB.
const MOST: u64 = 150;
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;

/// As the API server hands it out: most of an object is what no node needs.
fn service(n: usize) -> Value {
    let managed: Vec<Value> = (0..4)
        .map(|manager| json!({"manager": format!("controller-{manager}"), "operation": "Update", "fieldsV1": {"f:spec": {"f:ports": {"k:{\"port\":80}": {}}}, "note": "x".repeat(300)}}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": format!("s{n}"), "managedFields": managed,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "y".repeat(500)}},
        "spec": {"clusterIP": format!("10.96.{}.{}", n / 250, n % 250 + 1), "ports": [{"name": "http", "port": 80}], "selector": {"app": format!("s{n}")}}})
}

fn slice(n: usize) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|e| {
            let host = n * ENDPOINTS + e;
            json!({"addresses": [format!("10.5.{}.{}", host / 250 % 250, host % 250 + 1)], "nodeName": format!("node-{}", host % 100),
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("s{n}-{e}"), "uid": "0b7f4d56-2f1c-4f0e-8a51-6a1f0a7f9f10"}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "metadata": {"namespace": "shop", "name": format!("s{n}-x"), "labels": {"kubernetes.io/service-name": format!("s{n}")}}})
}

fn range() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}})
}

fn api_server() -> Result<ApiServer> {
    let address = format!("{OPERATOR_ADDRESS}:6443").parse()?;
    ApiServer::start(address).context("the lab's API server")
}

/// A line of /proc/PID/status in MiB.
fn memory(pid: u32, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(what))
        .context("no such line")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib >> 10)
}

fn frontends(node: &Node) -> Result<usize> {
    let (_, metrics) = http::get(&format!("{}:9009", node.address()), "/metrics")?;
    let line = metrics
        .lines()
        .find_map(|l| l.strip_prefix("flannel_services_frontends "));
    line.and_then(|n| n.parse().ok()).with_context(|| metrics.clone())
}

/// On a kernel without IPVS nothing is written: this is what reading and knowing them takes.
pub fn ten_thousand_services_fit_into_little_memory() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let server = api_server()?;
    server.put(Collection::ServiceCidrs, range());
    for n in 0..SERVICES {
        server.put(Collection::Services, service(n));
        server.put(Collection::EndpointSlices, slice(n));
    }
    let url = format!("--kube-api-url={}", server.url());
    let node = lab.node(1)?;
    let start = Instant::now();
    let mut daemon = node.start_ready_flanneld(&[
        "--service-source=kube",
        "--service-mode=ipvs",
        &url,
        "--healthz-port=9009",
    ])?;
    eventually(limit(120), "all Services to be known", || {
        let known = frontends(node)?;
        ensure!(known == SERVICES, "{known}");
        Ok(())
    })?;
    let took = start.elapsed();
    // listed again, which reads everything beside what is known
    server.compact();
    server.break_watches();
    let lists = || server.requests(&["/endpointslices?limit", "continue="]);
    let before = lists();
    server.put(Collection::Services, service(SERVICES));
    eventually(limit(120), "the change", || {
        let known = frontends(node)?;
        ensure!(known == SERVICES + 1, "{known}");
        Ok(())
    })?;
    let (now, most) = (memory(daemon.pid(), "VmRSS:")?, memory(daemon.pid(), "VmHWM:")?);
    println!(
        "{SERVICES} Services known after {took:.1?}: {now} MiB, at most {most} MiB; {before} pages of slices"
    );
    ensure!(most <= MOST, "{now} MiB, at most {most} MiB");
    daemon.check_running()
}

/// `kubectl get -o json | flannelctl service apply -f -`: what a cluster has goes on from etcd.
pub fn objects_of_kubernetes_move_into_etcd() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let server = api_server()?;
    let kubectl = Kubectl::new(&server.url());
    kubectl.write(&range())?;
    for n in 0..130 {
        server.put(Collection::Services, service(n));
        server.put(Collection::EndpointSlices, slice(n));
    }
    let mut headless = service(200);
    headless["spec"]["clusterIP"] = json!("None");
    server.put(Collection::Services, headless);
    let file = format!("{}/objects.json", sandbox::SCRATCH);
    for kind in ["servicecidrs", "services", "endpointslices"] {
        let objects = kubectl.get(&[kind, "-A"])?;
        std::fs::write(&file, objects.to_string())?;
        lab.flannelctl(&["service", "apply", "-f", &file])?.ok()?;
    }
    let view = lab.flannelctl(&["-o", "json", "services"])?.ok()?;
    let view: Value = serde_json::from_str(&view)?;
    let services = view["services"].as_array().map_or(0, Vec::len);
    ensure!(services == 131, "{services} Services");
    ensure!(
        view["rejected"].as_array().is_some_and(Vec::is_empty),
        "{}",
        view["rejected"]
    );
    let node = lab.node(1)?;
    let mut daemon = node.start_ready_flanneld(&["--service-mode=ipvs", "--healthz-port=9009"])?;
    eventually(limit(30), "the Services from etcd", || {
        let known = frontends(node)?;
        ensure!(known == 130, "{known}");
        Ok(())
    })?;
    daemon.check_running()
}
