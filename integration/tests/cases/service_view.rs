//! What operators see of Services: `flannelctl services`, `flannelctl explain` and the metrics.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_kube::fixture::{ApiServer, Collection};
use flannel_lab::lab::OPERATOR_ADDRESS;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pod, Process, eventually, http, limit};
use serde_json::{Value, json};

use super::common::{await_ping, list, text};
use super::look::ctl;

const SERVICES: &str = "/coreos.com/network/services/v1/";
const VIP: &str = "10.96.0.10";
/// IPVS brings its counters up to date every two seconds (net/netfilter/ipvs/ip_vs_est.c).
const IPVS_COUNTS: Duration = Duration::from_secs(3);

/// Which programmer a case runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nftables,
    Ipvs,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }
}

/// A node with a client, two pods that serve, and a Service `shop/web` that stands for both.
struct Shop {
    lab: Lab,
    daemon: Flanneld,
    client: Pod,
    servers: Vec<Pod>,
    _responders: Vec<Process>,
}

impl Shop {
    fn open(mode: Mode) -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(1))?;
        let node = lab.node(1)?;
        let daemon = start(node, mode)?;
        let client = node.add_pod("client")?;
        let servers = vec![node.add_pod("web1")?, node.add_pod("web2")?];
        let responders = servers.iter().map(|s| s.respond(8080)).collect::<Result<_>>()?;
        for server in &servers {
            await_ping(&client, server.ip())?;
        }
        let shop = Self {
            lab,
            daemon,
            client,
            servers,
            _responders: responders,
        };
        shop.put("config", r#"{"cidrs":["10.96.0.0/16"]}"#)?;
        let spec = r#"{"clusterIP":"10.96.0.10","type":"NodePort","ports":[{"name":"http","port":80,"nodePort":30080}]}"#;
        shop.put("spec/shop/web", spec)?;
        let key = |n: usize| format!("endpoints/shop/web/http/{}:8080", shop.servers[n].ip());
        shop.put(&key(0), r#"{"weight":3}"#)?;
        shop.put(&key(1), "{}")?;
        shop.put(
            "endpoints/shop/web/http/10.5.77.7:8080",
            r#"{"state":"notReady"}"#,
        )?;
        shop.put("spec/shop/bad", r#"{"clusterIP":"10.96"}"#)?;
        Ok(shop)
    }

    fn put(&self, key: &str, value: &str) -> Result<()> {
        self.lab.etcd().put(&format!("{SERVICES}{key}"), value)
    }

    fn node(&self) -> Result<&Node> {
        self.lab.node(1)
    }
}

fn start(node: &Node, mode: Mode) -> Result<Flanneld> {
    let flag = format!("--service-mode={}", mode.name());
    node.start_ready_flanneld(&["--ip-masq", &flag, "--healthz-port=9009"])
}

/// flannelctl on a node, where flanneld listens.
fn on_node(node: &Node, arguments: &[&str]) -> Result<String> {
    ctl(node, arguments)?.ok()
}

fn json_on_node(node: &Node, arguments: &[&str]) -> Result<Value> {
    let out = on_node(node, &[&["-o", "json"], arguments].concat())?;
    serde_json::from_str(&out).with_context(|| out.clone())
}

fn check_view(shop: &Shop, mode: Mode) -> Result<()> {
    let node = shop.node()?;
    // one connection that stays
    let _held = shop.client.spawn(
        "held",
        &["socat", "-u", "EXEC:sleep 600", &format!("TCP:{VIP}:80")],
        &flannel_lab::command::Environment::default(),
    );
    let frontend = |view: &Value| -> Result<Value> {
        let all = list(&view["local"]["services"]);
        let at = |f: &&Value| text(&f["address"]) == VIP;
        all.iter().find(at).cloned().with_context(|| view.to_string())
    };
    let view = eventually(limit(20), "the node's view", || {
        let view = json_on_node(node, &["services"])?;
        let web = frontend(&view)?;
        let traffic = web["traffic"]["connections"].as_u64().unwrap_or(0);
        ensure!(traffic >= 1, "no connection is counted: {web}");
        let nodes = list(&view["nodes"]);
        ensure!(
            nodes.len() == 1 && nodes[0]["current"] == true,
            "{}",
            view["nodes"]
        );
        ensure!(
            text(&nodes[0]["mode"]) == mode.name() && text(&nodes[0]["source"]) == "etcd",
            "{}",
            view["nodes"]
        );
        Ok(view)
    })?;
    let web = frontend(&view)?;
    let endpoints: Vec<(String, u64)> = list(&web["endpoints"])
        .iter()
        .map(|e| (text(&e["address"]), e["weight"].as_u64().unwrap_or(99)))
        .collect();
    let mut expected: Vec<(String, u64)> = [3, 1]
        .iter()
        .zip(&shop.servers)
        .map(|(weight, server)| (format!("{}:8080", server.ip()), *weight))
        .collect();
    expected.sort();
    ensure!(endpoints == expected, "{endpoints:?}");
    let counted = list(&web["endpoints"])
        .iter()
        .filter_map(|e| Some(e["active"].as_u64()? + e["inactive"].as_u64()?))
        .sum::<u64>();
    ensure!(counted >= 1, "no connection of an endpoint is counted: {web}");
    ensure!(
        list(&view["rejected"])
            .iter()
            .any(|r| text(&r["key"]).ends_with("spec/shop/bad")),
        "{}",
        view["rejected"]
    );
    // the same for people, and for one Service only
    let table = on_node(node, &["services", "shop/web", "--rates=1"])?;
    ensure!(
        table.contains(&format!("TCP {VIP}:80")) && table.contains("TCP *:30080") && table.contains("CONN/S"),
        "{table}"
    );
    let other = ctl(node, &["services", "--local", "other"])?;
    ensure!(
        other.status.code() == Some(4) && !other.stdout.contains(VIP),
        "a namespace without Services: {other:?}"
    );
    // from elsewhere: what nodes tell
    let elsewhere = shop.lab.flannelctl(&["services"])?.ok()?;
    ensure!(
        elsewhere.contains("current") && !elsewhere.contains("On this node"),
        "{elsewhere}"
    );
    Ok(())
}

fn what_is_carried_is_shown(mode: Mode) -> Result<()> {
    let shop = Shop::open(mode)?;
    eventually(limit(20), "answers", || {
        shop.client.ask("tcp", &format!("{VIP}:80"))
    })?;
    check_view(&shop, mode)?;
    check_metrics(&shop, mode)?;
    let mut daemon = check_counters_of_each(shop, mode)?;
    daemon.check_running()
}

/// Every Service has counters of its own, and they go on where they were when the daemon was killed.
fn check_counters_of_each(shop: Shop, mode: Mode) -> Result<Flanneld> {
    const OTHER: &str = "10.96.0.11";
    shop.put(
        "spec/shop/other",
        r#"{"clusterIP":"10.96.0.11","ports":[{"name":"http","port":80}]}"#,
    )?;
    shop.put(
        &format!("endpoints/shop/other/http/{}:8080", shop.servers[0].ip()),
        "{}",
    )?;
    let ask = |count: usize| -> Result<()> {
        for answer in shop.client.ask_many("tcp", &format!("{OTHER}:80"), count)? {
            answer.map_err(anyhow::Error::msg)?;
        }
        Ok(())
    };
    eventually(limit(20), "the other Service", || ask(1))?;
    ask(3)?;
    let connections = format!(
        "flannel_service_connections_total{{namespace=\"shop\",service=\"other\",ip_family=\"IPv4\",address=\"{OTHER}\""
    );
    let before = settled(&shop, |all| {
        let count = sample(&all.join("\n"), &connections)?;
        ensure!(count >= 4.0, "{count} of 4 connections: {all:#?}");
        Ok(())
    })?;
    let (node, daemon) = (shop.lab.node(1)?, shop.daemon);
    daemon.kill()?;
    let daemon = start(node, mode)?;
    eventually(limit(20), "the counters of before", || {
        let now = counters(node)?;
        ensure!(now == before, "{now:#?}, before: {before:#?}");
        Ok(())
    })?;
    ask(5)?;
    let count = sample(&before.join("\n"), &connections)?;
    let is_other = |line: &&String| line.contains(OTHER);
    eventually(limit(20), "five connections more", || {
        let now = counters(node)?;
        let of_others =
            |all: &[String]| -> Vec<String> { all.iter().filter(|l| !is_other(l)).cloned().collect() };
        ensure!(
            of_others(&now) == of_others(&before),
            "{now:#?}, before: {before:#?}"
        );
        let more = sample(&now.join("\n"), &connections)? - count;
        ensure!(more == 5.0, "{more} connections more: {now:#?}");
        for (now, before) in now.iter().zip(&before).filter(|(now, _)| is_other(now)) {
            ensure!(now != before, "{now} did not count");
        }
        Ok(())
    })?;
    Ok(daemon)
}

/// What each Service has carried, by the metrics.
fn counters(node: &Node) -> Result<Vec<String>> {
    let names = ["connections", "received", "sent"].map(|name| format!("flannel_service_{name}_"));
    let metrics = scrape(node)?;
    let lines = metrics
        .lines()
        .filter(|l| names.iter().any(|name| l.starts_with(name)));
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// The counters once they fit and stand still: the kernel brings them up to date now and then, and connections take a while to close.
fn settled(shop: &Shop, fits: impl Fn(&[String]) -> Result<()>) -> Result<Vec<String>> {
    eventually(limit(40), "counters that stand still", || {
        let first = counters(shop.node()?)?;
        fits(&first)?;
        std::thread::sleep(IPVS_COUNTS);
        let second = counters(shop.node()?)?;
        ensure!(first == second, "{first:#?}, then {second:#?}");
        Ok(second)
    })
}

pub fn what_nftables_carries_is_shown() -> Result<()> {
    what_is_carried_is_shown(Mode::Nftables)
}

pub fn what_ipvs_carries_is_shown() -> Result<()> {
    what_is_carried_is_shown(Mode::Ipvs)
}

pub fn explains_where_packets_go() -> Result<()> {
    let mut shop = Shop::open(Mode::Nftables)?;
    let node = shop.node()?;
    eventually(limit(20), "answers", || {
        shop.client.ask("tcp", &format!("{VIP}:80"))
    })?;
    let ready = on_node(node, &["explain", &format!("{VIP}:80")])?;
    for part in [
        "TCP 10.96.0.10:80 is port http of Service shop/web (cluster address).",
        "New connections go to 2 endpoints by rr.",
        "10.5.77.7:8080",
        "it is not ready",
    ] {
        ensure!(ready.contains(part), "{part}: {ready}");
    }
    let node_port = format!("{}:30080", node.address());
    let node_port = on_node(node, &["explain", &node_port, "--protocol=tcp"])?;
    ensure!(node_port.contains("Service shop/web (node port)"), "{node_port}");
    let unknown = on_node(node, &["explain", &format!("{VIP}:81")])?;
    ensure!(unknown.contains("Clients are refused at once"), "{unknown}");
    let foreign = on_node(node, &["explain", "192.0.2.10:80"])?;
    ensure!(foreign.contains("routed like any others"), "{foreign}");
    // no daemon: what etcd has
    let elsewhere = shop.lab.flannelctl(&["explain", &format!("{VIP}:80")])?.ok()?;
    ensure!(
        elsewhere.contains("as etcd has it") && elsewhere.contains("2 endpoints by rr"),
        "{elsewhere}"
    );
    shop.daemon.check_running()
}

/// The value of a sample of the metrics, by all that stands before it.
fn sample(metrics: &str, name: &str) -> Result<f64> {
    let line = metrics.lines().find(|l| l.starts_with(name));
    let line = line.with_context(|| format!("no {name} in:\n{metrics}"))?;
    let value = line.rsplit(' ').next().context("no value")?;
    value.parse().with_context(|| line.to_owned())
}

fn scrape(node: &Node) -> Result<String> {
    let (code, body) = http::get(&format!("{}:9009", node.address()), "/metrics")?;
    ensure!(code == 200, "{code}");
    Ok(body)
}

fn check_metrics(shop: &Shop, mode: Mode) -> Result<()> {
    let node = shop.node()?;
    let labels = format!(
        r#"{{namespace="shop",service="web",ip_family="IPv4",address="{VIP}",protocol="TCP",port="80"}}"#
    );
    let connections = format!("flannel_service_connections_total{labels}");
    if mode == Mode::Ipvs {
        std::thread::sleep(IPVS_COUNTS);
    }
    let before = sample(&scrape(node)?, &connections)?;
    for answer in shop.client.ask_many("tcp", &format!("{VIP}:80"), 10)? {
        answer.map_err(anyhow::Error::msg)?;
    }
    let after = eventually(limit(20), "ten more connections", || {
        let metrics = scrape(node)?;
        let now = sample(&metrics, &connections)?;
        ensure!(now - before == 10.0, "{before}, then:\n{metrics}");
        Ok(metrics)
    })?;
    check_carried(&scrape(node)?, &labels)?;
    for (name, least) in [
        (
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}"#,
            1.0,
        ),
        (
            r#"kubeproxy_sync_proxy_rules_service_changes_total{ip_family="IPv4"}"#,
            2.0,
        ),
        (
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family="IPv4"}"#,
            3.0,
        ),
        ("flannel_services_change_duration_seconds_count", 1.0),
        ("flannel_services_frontends", 2.0),
        ("flannel_services_rejected_records", 1.0),
        ("flannel_services_source_followed", 1.0),
        ("flannel_services_revision", 2.0),
    ] {
        ensure!(sample(&after, name)? >= least, "{name}:\n{after}");
    }
    ensure!(
        sample(
            &after,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family="IPv4"}"#
        )? == 0.0,
        "{after}"
    );
    Ok(())
}

/// Ten connections and more, each of which has a handshake, a question and an answer.
fn check_carried(metrics: &str, labels: &str) -> Result<()> {
    for direction in ["received", "sent"] {
        let of = |unit: &str| {
            sample(
                metrics,
                &format!("flannel_service_{direction}_{unit}_total{labels}"),
            )
        };
        let (packets, bytes) = (of("packets")?, of("bytes")?);
        ensure!(
            packets >= 30.0 && bytes >= 40.0 * packets,
            "{direction}: {packets} packets of {bytes} bytes:\n{metrics}"
        );
    }
    Ok(())
}

/// From the moment that an EndpointSlice names as its cause to the kernel.
pub fn programming_latency_is_measured() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let server = ApiServer::start(format!("{OPERATOR_ADDRESS}:6443").parse()?)?;
    server.put(
        Collection::ServiceCidrs,
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
    );
    server.put(
        Collection::Services,
        json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"clusterIP": VIP, "ports": [{"port": 80}]}}),
    );
    let url = format!("--kube-api-url={}", server.url());
    let node = lab.node(1)?;
    let mut daemon = node.start_ready_flanneld(&[
        "--service-source=kube",
        &url,
        "--service-mode=nftables",
        "--healthz-port=9009",
    ])?;
    eventually(limit(30), "the first pass", || {
        let frontends = sample(&scrape(node)?, "flannel_services_frontends")?;
        ensure!(frontends == 1.0, "{frontends} frontends");
        Ok(())
    })?;
    // three seconds ago
    let cause = node.run(&["date", "-u", "-d", "3 seconds ago", "+%Y-%m-%dT%H:%M:%SZ"])?;
    server.put(
        Collection::EndpointSlices,
        json!({"addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.5.1.2"]}],
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": cause.trim()}}}),
    );
    eventually(limit(30), "the latency", || {
        let metrics = scrape(node)?;
        let name = "kubeproxy_network_programming_duration_seconds";
        ensure!(
            sample(&metrics, &format!("{name}_count{{ip_family=\"IPv4\"}}"))? == 1.0,
            "{metrics}"
        );
        ensure!(
            sample(&metrics, &format!("{name}_sum{{ip_family=\"IPv4\"}}"))? >= 3.0,
            "{metrics}"
        );
        Ok(())
    })?;
    let nodes = lab.flannelctl(&["-o", "json", "services"])?.ok()?;
    let nodes: Value = serde_json::from_str(&nodes)?;
    ensure!(text(&nodes["nodes"][0]["source"]) == "kube", "{nodes}");
    daemon.check_running()
}
