//! Services from a Kubernetes API server, with kubectl as the hand that writes them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_kube::fixture::{ApiServer, Collection, Failure};
use flannel_lab::lab::OPERATOR_ADDRESS;
use flannel_lab::{Flanneld, Kubectl, Lab, LabOptions, Node, Pod, Process, eventually, limit};
use serde_json::{Value, json};

use super::common::await_ping;

const VIP: &str = "10.96.0.10";

/// An API server on the operator's machine, which every node reaches.
fn api_server() -> Result<ApiServer> {
    let address = format!("{OPERATOR_ADDRESS}:6443").parse()?;
    ApiServer::start(address).context("the lab's API server")
}

fn service(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}})
}

fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|ip| json!({"addresses": [ip]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn service_cidr() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16"]}})
}

/// The API server does for kubectl what a real one does.
pub fn kubectl_finds_an_api_server() -> Result<()> {
    let _lab = Lab::new(&LabOptions::nodes(0).without_etcd())?;
    let server = api_server()?;
    let kubectl = Kubectl::new(&server.url());
    ensure!(
        kubectl.run(&["api-resources"])?.contains("endpointslices"),
        "discovery"
    );
    for n in 1..=5 {
        kubectl.write(&service(&format!("s{n}"), &format!("10.96.0.{n}")))?;
    }
    let twice = kubectl.exec(
        &["create", "--validate=false", "-f", "-"],
        Some(&service("s1", "10.96.0.1")),
    )?;
    ensure!(twice.stderr.contains("already exists"), "{}", twice.stderr);
    // page by page, and by label
    let list = kubectl.get(&["services", "-n", "shop", "--chunk-size=2"])?;
    ensure!(
        list["items"].as_array().is_some_and(|items| items.len() == 5),
        "{list}"
    );
    ensure!(
        server.requests(&["limit=2", "continue="]) >= 2,
        "pages were asked for"
    );
    kubectl.run(&["label", "-n", "shop", "service", "s1", "tier=front"])?;
    let labelled = kubectl.get(&["services", "-A", "-l", "tier=front"])?;
    ensure!(
        labelled["items"].as_array().is_some_and(|items| items.len() == 1),
        "{labelled}"
    );
    // versions grow, and a write that is based on an old one is refused
    let version = |object: &Value| {
        object["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|v| v.parse::<u64>().ok())
    };
    let before = kubectl.get(&["service", "-n", "shop", "s1"])?;
    let patch = r#"{"spec":{"sessionAffinity":"ClientIP"}}"#;
    kubectl.run(&[
        "patch",
        "-n",
        "shop",
        "service",
        "s1",
        "--type=merge",
        "-p",
        patch,
    ])?;
    let after = kubectl.get(&["service", "-n", "shop", "s1"])?;
    ensure!(version(&after) > version(&before), "{before} {after}");
    ensure!(
        after["spec"]["sessionAffinity"] == "ClientIP" && after["spec"]["clusterIP"] == "10.96.0.1",
        "{after}"
    );
    let stale = kubectl.exec(&["replace", "--validate=false", "-f", "-"], Some(&before))?;
    ensure!(stale.stderr.contains("has been modified"), "{}", stale.stderr);
    // a watch hears of what happens, bookmarks and all, and an outage is told as one
    let watch = [
        "get",
        "-n",
        "shop",
        "services",
        "-w",
        "-o",
        "name",
        "--request-timeout=3s",
    ];
    let seen = std::thread::scope(|scope| {
        let watching = scope.spawn(|| kubectl.exec(&watch, None));
        eventually(limit(20), "a watch", || {
            ensure!(server.watches() == 1, "{} watches", server.watches());
            Ok(())
        })?;
        kubectl.run(&["delete", "-n", "shop", "service", "s5", "--wait=false"])?;
        watching
            .join()
            .map_err(|_| anyhow::anyhow!("the watch panicked"))?
    })?;
    ensure!(
        seen.stdout.matches("service/s5").count() == 2,
        "listed, then deleted: {}",
        seen.stdout
    );
    server.fail(1, &Failure::Status(429, Some(1)));
    ensure!(
        kubectl.get(&["services", "-n", "shop"])?["items"]
            .as_array()
            .is_some_and(|i| i.len() == 4),
        "patience"
    );
    Ok(())
}

/// One node with `--service-source=kube`.
fn start(lab: &Lab, server: &ApiServer) -> Result<Flanneld> {
    let url = format!("--kube-api-url={}", server.url());
    lab.node(1)?
        .start_ready_flanneld(&["--ip-masq", "--service-source=kube", &url])
}

/// Everything short of the kernel: this runs where there is no IPVS, too.
pub fn services_are_followed_and_bad_ones_named() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let mut server = api_server()?;
    let kubectl = Kubectl::new(&server.url());
    kubectl.write(&service_cidr())?;
    kubectl.write(&service("web", VIP))?;
    // made in the same second: the name decides
    kubectl.write(&service("web-rival", VIP))?;
    kubectl.write(&service("broken", "10.96"))?;
    let mut daemon = start(&lab, &server)?;
    daemon.wait_log("Service shop/broken")?;
    daemon.wait_log("spec.clusterIP")?;
    daemon.wait_log("belongs to the older Service shop/web")?;
    // mended, and said so
    kubectl.write(&service("broken", "10.96.0.12"))?;
    daemon.wait_log("\"Service shop/broken\" is no longer in the way")?;
    // away and back: nothing is lost, nothing is listed again
    server.stop();
    daemon.wait_log("Services cannot be followed")?;
    server.restart()?;
    server.put(Collection::Services, service("late", "ten"));
    daemon.wait_log("Service shop/late")?;
    ensure!(server.requests(&["GET", "/services?limit"]) == 1, "one list");
    // forgotten history: listed again
    server.stop();
    server.delete(Collection::Services, "shop", "late");
    server.compact();
    server.restart()?;
    daemon.wait_log("\"Service shop/late\" is no longer in the way")?;
    daemon.check_running()
}

/// A pod that asks, and two that answer with their names.
fn client_and_webs(node: &Node) -> Result<(Pod, [Pod; 2], [Process; 2])> {
    let client = node.add_pod("client")?;
    let webs = [node.add_pod("web1")?, node.add_pod("web2")?];
    let responders = [webs[0].respond(8080)?, webs[1].respond(8080)?];
    Ok((client, webs, responders))
}

pub fn pods_answer_for_services_of_the_api_server() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let server = api_server()?;
    let kubectl = Kubectl::new(&server.url());
    let mut daemon = start(&lab, &server)?;
    let node = lab.node(1)?;
    let (client, [one, two], _responders) = client_and_webs(node)?;
    await_ping(&client, one.ip())?;
    kubectl.write(&service_cidr())?;
    kubectl.write(&service("web", VIP))?;
    kubectl.write(&slice("web", &[one.ip()]))?;
    let answers = |who: &str| {
        eventually(limit(30), &format!("answers of {who} only"), || {
            let answers = client.ask_many("tcp", &format!("{VIP}:80"), 4)?;
            let fit =
                |answer: &Result<String, String>| answer.as_ref().is_ok_and(|text| text.starts_with(who));
            ensure!(answers.iter().all(fit), "{answers:?}");
            Ok(())
        })
    };
    answers("web1")?;
    kubectl.write(&slice("web", &[two.ip()]))?;
    answers("web2")?;
    let table = node.run(&["ipvsadm", "-Ln"])?;
    ensure!(
        table.contains(&format!("TCP  {VIP}:80 rr")) && table.contains(two.ip()),
        "{table}"
    );
    kubectl.run(&[
        "annotate",
        "-n",
        "shop",
        "service",
        "web",
        "flannel.alpha.coreos.com/ipvs-scheduler=lc",
    ])?;
    eventually(limit(20), "the scheduler of the annotation", || {
        let table = node.run(&["ipvsadm", "-Ln"])?;
        ensure!(table.contains(&format!("TCP  {VIP}:80 lc")), "{table}");
        Ok(())
    })?;
    kubectl.run(&["delete", "-n", "shop", "service", "web", "--wait=false"])?;
    eventually(limit(20), "the virtual server to be gone", || {
        let table = node.run(&["ipvsadm", "-Ln"])?;
        ensure!(!table.contains(VIP), "{table}");
        Ok(())
    })?;
    flannel_lab::clock::throughout(Duration::from_secs(1), "the daemon", || daemon.check_running())
}

/// Says that a Service is another proxy's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// With a label that the controller of EndpointSlices gives them, too.
fn labelled(mut slice: Value, label: &str, value: &str) -> Value {
    slice["metadata"]["labels"][label] = json!(value);
    slice
}

/// A Node in a zone.
fn in_zone(zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": zone}}})
}

/// What Kubernetes says that etcd's records do not: zones, Services of other proxies and of none, and load balancers that want their
/// traffic themselves. Through whichever programmer the kernel has.
pub fn zones_and_what_is_not_ours() -> Result<()> {
    const BALANCER: &str = "203.0.113.7";
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let server = api_server()?;
    let kubectl = Kubectl::new(&server.url());
    kubectl.write(&service_cidr())?;
    kubectl.write(&in_zone("a"))?;
    let url = format!("--kube-api-url={}", server.url());
    let mut daemon = lab.node(1)?.start_ready_flanneld(&[
        "--ip-masq",
        "--service-source=kube",
        &url,
        "--hostname-override=node1",
        "--service-external-ip-range=203.0.113.0/24",
    ])?;
    let node = lab.node(1)?;
    let (client, [one, two], _responders) = client_and_webs(node)?;
    await_ping(&client, one.ip())?;
    await_ping(&client, two.ip())?;
    let answered_by = |address: &str, who: &[&str]| {
        eventually(limit(30), &format!("answers of {who:?} at {address}"), || {
            let answers = client.ask_many("tcp", address, 24)?;
            let mut seen = BTreeSet::new();
            for answer in answers {
                let answer = answer.map_err(anyhow::Error::msg)?;
                seen.extend(answer.split(' ').next().map(str::to_owned));
            }
            ensure!(seen.iter().eq(who), "{seen:?}");
            Ok(())
        })
    };
    let refused = |address: &str| {
        eventually(limit(30), &format!("{address} to be refused"), || {
            let answers = client.ask_many("tcp", address, 1)?;
            let fits = matches!(answers.as_slice(), [Err(error)] if error.contains("refused"));
            ensure!(fits, "{answers:?}");
            Ok(())
        })
    };
    let web = format!("{VIP}:80");
    kubectl.write(&service("web", VIP))?;
    let mut hinted = slice("web", &[one.ip(), two.ip()]);
    for (endpoint, zone) in ["a", "b"].iter().enumerate() {
        hinted["endpoints"][endpoint]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    kubectl.write(&hinted)?;
    answered_by(&web, &["web1"])?;
    kubectl.write(&in_zone("b"))?;
    answered_by(&web, &["web2"])?;
    // no endpoint is for this zone, or one has no hint: all are used
    kubectl.write(&in_zone("c"))?;
    answered_by(&web, &["web1", "web2"])?;
    kubectl.write(&in_zone("a"))?;
    answered_by(&web, &["web1"])?;
    kubectl.write(&slice("web", &[one.ip(), two.ip()]))?;
    answered_by(&web, &["web1", "web2"])?;

    let mut theirs = service("theirs", "10.96.0.21");
    theirs["metadata"]["labels"] = json!({PROXY_NAME: "other"});
    kubectl.write(&theirs)?;
    kubectl.write(&labelled(slice("theirs", &[one.ip()]), PROXY_NAME, "other"))?;
    let mut headless = service("headless", "None");
    headless["spec"]["clusterIPs"] = json!(["None"]);
    kubectl.write(&headless)?;
    kubectl.write(&labelled(
        slice("headless", &[one.ip()]),
        "service.kubernetes.io/headless",
        "",
    ))?;
    let name = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "elsewhere"},
        "spec": {"type": "ExternalName", "externalName": "example.org"}});
    kubectl.write(&name)?;
    let mut balanced = service("balanced", "10.96.0.22");
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": BALANCER, "ipMode": "Proxy"}]}});
    server.put(Collection::Services, balanced.clone());
    kubectl.write(&slice("balanced", &[two.ip()]))?;
    answered_by("10.96.0.22:80", &["web2"])?;
    refused("10.96.0.21:80")?;
    let told = daemon.log()?;
    ensure!(
        ["headless", "elsewhere", "theirs"]
            .iter()
            .all(|name| !told.contains(&format!("shop/{name}"))),
        "{told}"
    );
    let answers = client.ask_many("tcp", &format!("{BALANCER}:80"), 1)?;
    ensure!(
        matches!(answers.as_slice(), [Err(_)]),
        "traffic for the load balancer did not go to it: {answers:?}"
    );
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": BALANCER, "ipMode": "VIP"}]}});
    server.put(Collection::Services, balanced);
    answered_by(&format!("{BALANCER}:80"), &["web2"])?;
    kubectl.run(&[
        "label",
        "-n",
        "shop",
        "service",
        "theirs",
        &format!("{PROXY_NAME}-"),
    ])?;
    kubectl.run(&[
        "label",
        "-n",
        "shop",
        "endpointslice",
        "theirs-1",
        &format!("{PROXY_NAME}-"),
    ])?;
    answered_by("10.96.0.21:80", &["web1"])?;
    daemon.check_running()
}
