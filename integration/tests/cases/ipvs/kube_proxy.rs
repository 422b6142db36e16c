//! From kube-proxy's IPVS mode to flanneld and back, as docs/moving-from-kube-proxy.md has it, with traffic. What kube-proxy would write is
//! written by hand.

use anyhow::{Context, Result, ensure};
use flannel_kube::fixture::{ApiServer, Collection};
use flannel_lab::held::{self, Held};
use flannel_lab::lab::OPERATOR_ADDRESS;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pinger, Pod, Process, eventually, limit, sandbox};
use serde_json::json;

use super::stand::{LINES, PORT};
use crate::cases::common::await_ping;

const VIP: &str = "10.96.0.10";
const NODE_PORT: u16 = 30081;
/// Long connections.
const HELD: usize = 20;

/// A node whose Services kube-proxy programs, with clients and endpoints.
struct Scene {
    lab: Lab,
    server: ApiServer,
    client: Pod,
    pods: [Pod; 2],
    _servers: Vec<Process>,
}

impl Scene {
    fn open() -> Result<(Self, Flanneld)> {
        let lab = Lab::new(&LabOptions::nodes(1))?;
        let node = lab.node(1)?;
        let daemon = node.start_ready_flanneld(&["--ip-masq", "--service-source=none"])?;
        let client = node.add_pod("client")?;
        let pods = [node.add_pod("one")?, node.add_pod("two")?];
        let mut servers = Vec::new();
        for pod in &pods {
            servers.push(pod.respond(PORT)?);
            servers.push(held::echo(pod, pod.name(), LINES)?);
            await_ping(&client, pod.ip())?;
        }
        let server = ApiServer::start(format!("{OPERATOR_ADDRESS}:6443").parse()?)?;
        let scene = Self {
            lab,
            server,
            client,
            pods,
            _servers: servers,
        };
        scene.tell_api_server();
        Ok((scene, daemon))
    }

    fn node(&self) -> Result<&Node> {
        self.lab.node(1)
    }

    fn tell_api_server(&self) {
        let ports = json!([{"name": "lines", "port": 81, "nodePort": NODE_PORT}, {"name": "query", "port": 53, "protocol": "UDP"}]);
        let metadata = json!({"namespace": "shop", "name": "web"});
        self.server.put(
            Collection::ServiceCidrs,
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
        );
        self.server.put(
            Collection::Services,
            json!({"metadata": metadata, "spec": {"type": "NodePort", "clusterIP": VIP, "ports": ports}}),
        );
        let endpoints: Vec<_> = self
            .pods
            .iter()
            .map(|pod| json!({"addresses": [pod.ip()]}))
            .collect();
        self.server.put(
            Collection::EndpointSlices,
            json!({"addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "lines", "port": LINES}, {"name": "query", "port": PORT, "protocol": "UDP"}],
                "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}}),
        );
    }

    /// What kube-proxy's IPVS mode writes for this Service: its device with the address, virtual servers, and chains.
    fn be_kube_proxy(&self) -> Result<()> {
        let node = self.node()?;
        let mut script = String::from(
            "ip link add kube-ipvs0 type dummy; ip address add 10.96.0.10/32 dev kube-ipvs0
             for s in net.ipv4.vs.conntrack net.ipv4.vs.expire_nodest_conn net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables; do
                 echo 1 > /proc/sys/$(echo $s | tr . /); done
             nft 'add table ip nat; add chain ip nat POSTROUTING { type nat hook postrouting priority 100; }
                 add chain ip nat KUBE-SERVICES; add chain ip nat KUBE-POSTROUTING; add rule ip nat POSTROUTING jump KUBE-POSTROUTING
                 add rule ip nat KUBE-POSTROUTING ct original ip daddr 10.96.0.10 ip saddr != 10.5.0.0/16 masquerade'\n",
        );
        let address = node.address();
        for (kind, at, port) in [
            ("-t", format!("{VIP}:81"), LINES),
            ("-u", format!("{VIP}:53"), PORT),
            ("-t", format!("{address}:{NODE_PORT}"), LINES),
        ] {
            script += &format!("ipvsadm -A {kind} {at} -s rr\n");
            for pod in &self.pods {
                script += &format!("ipvsadm -a {kind} {at} -r {}:{port} -m -w 1\n", pod.ip());
            }
        }
        node.shell(&script).map(drop)
    }

    fn start(&self, source: &[&str]) -> Result<Flanneld> {
        let arguments = [&["--ip-masq", "--service-mode=ipvs"], source].concat();
        self.node()?.start_ready_flanneld(&arguments)
    }

    /// Pods and the node itself are answered.
    fn check_answers(&self, when: &str) -> Result<()> {
        let address = format!("{VIP}:53");
        eventually(limit(20), &format!("answers {when}"), || {
            for answer in self.client.ask_many("udp", &address, 4)? {
                answer.map_err(anyhow::Error::msg)?;
            }
            Held::open(&self.client, &format!("{VIP}:81"), 2)?
                .close()
                .map(drop)
        })
    }
}

/// The Services of a node change hands while connections are open and new ones are made: none breaks and no question is lost on the way over.
/// Back it goes as well, with the gap that is told of.
pub fn services_change_hands_under_traffic() -> Result<()> {
    let (scene, overlay) = Scene::open()?;
    let node = scene.node()?;
    scene.be_kube_proxy()?;
    scene.check_answers("from kube-proxy's virtual servers")?;
    let open = Held::open(&scene.client, &format!("{VIP}:81"), HELD)?;
    let asking = Pinger::to(&scene.client, &format!("{VIP}:53"))?;
    // kube-proxy is kept off the node; then flanneld takes over what it left
    overlay.terminate()?;
    let url = format!("--kube-api-url={}", scene.server.url());
    let mut daemon = scene.start(&["--service-source=kube", &url])?;
    daemon.wait_log("Services are programmed through IPVS")?;
    eventually(limit(20), "the local route", || {
        let routes = node.run(&["ip", "route", "show", "table", "local", "proto", "70"])?;
        ensure!(routes.contains("10.96.0.0/16"), "{routes}");
        Ok(())
    })?;
    scene.check_answers("with both on the node")?;
    // what it left is named, and goes
    let doctor = format!("{}/flannelctl", sandbox::BINARIES);
    let endpoints = format!("--etcd-endpoints={}", flannel_lab::etcd::ENDPOINT);
    let said = node
        .exec(&[&doctor, "--etcd-insecure", &endpoints, "doctor"])?
        .stdout;
    for part in ["device kube-ipvs0 with 1 addresses", "2 chains in table ip nat"] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    node.shell("ip link delete kube-ipvs0; nft delete table ip nat")?;
    scene.check_answers("without what kube-proxy left")?;
    // its virtual servers of node ports stand on addresses of the node, as anybody's could: named, and ours once they are gone
    let node_port = format!("{}:{NODE_PORT}", node.address());
    daemon.wait_log(&format!("{node_port} is the virtual server of somebody else"))?;
    node.run(&["ipvsadm", "-D", "-t", &node_port])?;
    eventually(limit(30), "our node port", || {
        let table = node.run(&["nft", "list", "set", "ip", "flannel-services", "node_servers"])?;
        ensure!(table.contains("30081"), "{table}");
        Held::open(scene.lab.outside(), &node_port, 2)?.close().map(drop)
    })?;
    let report = asking.stop()?;
    ensure!(report.lost.is_empty(), "questions were lost: {report:?}");
    let report = open.close()?;
    ensure!(
        report.broken == 0 && report.opened == HELD as u64,
        "on the way over: {report:?}"
    );
    go_back(&scene, daemon)
}

/// `--service-source=none`, stop, clean up, and kube-proxy again.
fn go_back(scene: &Scene, daemon: Flanneld) -> Result<()> {
    let node = scene.node()?;
    let open = Held::open(&scene.client, &format!("{VIP}:81"), HELD)?;
    daemon.terminate()?;
    // what flanneld programmed carries traffic without it
    scene.check_answers("after the end of flanneld")?;
    let report = open.close()?;
    ensure!(report.broken == 0, "while flanneld is away: {report:?}");
    let flanneld = format!("{}/flanneld", sandbox::BINARIES);
    let shown = node.run(&[&flanneld, "cleanup", "--services", "--dry-run"])?;
    ensure!(shown.contains("10.96.0.10"), "{shown}");
    node.run(&[&flanneld, "cleanup", "--services"])?;
    let left = node.shell("ipvsadm -Sn; nft list tables; ip route show table local proto 70")?;
    ensure!(
        !left.contains(VIP) && !left.contains("flannel-services") && !left.contains("10.96"),
        "{left}"
    );
    let mut overlay = scene.start(&["--service-source=none"])?;
    scene.be_kube_proxy()?;
    scene.check_answers("from kube-proxy again")?;
    let table = node.run(&["ipvsadm", "-Ln"])?;
    table.find(VIP).context("kube-proxy's virtual servers are gone")?;
    overlay.check_running()
}
