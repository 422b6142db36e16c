//! Real runtimes call the plugin: containerd as Kubernetes does and by `ctr`, podman by its CNI backend. Node 1 has the runtime;
//! pods on node 2 are the lab's own.

use anyhow::{Context, Result, ensure};
use flannel_lab::pod::ask;
use flannel_lab::runtime::{Containerd, IMAGE, PORT, PodConfig, Podman};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pod, Process, eventually, limit};

use super::common::start_all;

/// The text of flannel's own manifest for Kubernetes.
const FLANNELS: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
  {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
  {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
/// What this project ships.
const OURS: &str = include_str!("../../../etc/cni/10-flannel.conflist");
/// The port of node 1 that leads to its container.
const HOST_PORT: u16 = 18_080;
const REMOTE_PORT: u16 = 9_000;

/// Two nodes with daemons, and a pod with a responder on the second.
struct Bed {
    lab: Lab,
    remote: Pod,
    _responder: Process,
    _daemons: Vec<Flanneld>,
}

impl Bed {
    fn new() -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(2))?;
        let daemons = start_all(&lab, &["--ip-masq"])?;
        let remote = lab.node(2)?.add_pod("remote")?;
        let responder = remote.respond(REMOTE_PORT)?;
        Ok(Self {
            lab,
            remote,
            _responder: responder,
            _daemons: daemons,
        })
    }

    fn node(&self) -> Result<&Node> {
        self.lab.node(1)
    }

    /// What a container runs to reach the pod on the other node.
    fn question(&self) -> String {
        format!("nc -w 5 {} {REMOTE_PORT}", self.remote.ip())
    }

    /// The pod on the other node saw `address` itself ask.
    fn check_answer(answer: &str, address: &str) -> Result<()> {
        ensure!(
            answer.contains(&format!("remote {address}")),
            "the pod on the other node answered {answer:?}, not to {address}"
        );
        Ok(())
    }

    /// Who answers at `address`, asked from another node.
    fn answerer(&self, address: &str) -> Result<String> {
        let other = self.lab.node(2)?;
        eventually(
            limit(15),
            &format!("an answer of {address} to another node"),
            || {
                let answers = ask(other, "tcp", address, 1)?;
                answers
                    .into_iter()
                    .next()
                    .context("none")?
                    .map_err(anyhow::Error::msg)
            },
        )
    }
}

/// Nothing of any container is on the node.
fn check_nothing_left(node: &Node) -> Result<()> {
    eventually(limit(10), "nothing to be left", || {
        let links = node.link_names()?;
        ensure!(
            !links.iter().any(|name| name.starts_with("veth")),
            "links {links:?}"
        );
        let files =
            node.shell("cd /var/lib/cni; find networks flannel results -type f 2>/dev/null || true")?;
        // What a network has besides its containers stays: the lock and the place in the order, as host-local leaves them,
        // the index of leases, and the note that addresses are announced since somebody chose a hardware address.
        let stays = |file: &&str| {
            let ends = ["/lock", "/index", "/announce"];
            file.contains("/last_reserved_ip.") || ends.iter().any(|end| file.ends_with(end))
        };
        let left: Vec<&str> = files.lines().filter(|file| !stays(file)).collect();
        ensure!(left.is_empty(), "files {left:?}");
        Ok(())
    })?;
    let rules = node.shell("iptables-save; ip6tables-save")?;
    let left: Vec<&str> = rules.lines().filter(|rule| rule.contains("CNI-DN-")).collect();
    ensure!(left.is_empty(), "rules of port mappings {left:?}");
    Ok(())
}

pub fn containerd_runs_pods_as_kubernetes_does() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node()?;
    let containerd = Containerd::start(node, FLANNELS)?;
    let cri = containerd.cri()?;
    let (web, asker) = (
        PodConfig::new("web").port(HOST_PORT, PORT),
        PodConfig::new("asker"),
    );
    let web_pod = cri.run_pod(&web)?;
    let asker_pod = cri.run_pod(&asker)?;
    let server = cri.start_container(&web_pod, &web, "server")?;
    let container = cri.start_container(&asker_pod, &asker, "client")?;

    let (web_ip, asker_ip) = (cri.pod_ip(&web_pod)?, cri.pod_ip(&asker_pod)?);
    ensure!(web_ip != asker_ip, "both pods have {web_ip}");
    let answer = cri.exec(&container, &["sh", "-c", &bed.question()])?;
    Bed::check_answer(&answer, &asker_ip)?;
    assert_eq!(bed.answerer(&format!("{web_ip}:{PORT}"))?, "web");
    assert_eq!(bed.answerer(&format!("{}:{HOST_PORT}", node.address()))?, "web");
    // A pod that asks for its own port on the node comes back to itself: hairpin.
    let own = format!("nc -w 5 {} {HOST_PORT}", node.address());
    assert_eq!(cri.exec(&server, &["sh", "-c", &own])?.trim(), "web");

    for pod in [&web_pod, &asker_pod] {
        cri.stop_pod(pod)?;
        cri.stop_pod(pod)?;
        cri.remove_pod(pod)?;
    }
    check_nothing_left(node)
}

pub fn containerd_pods_come_and_go_at_once() -> Result<()> {
    const PODS: usize = 12;
    let bed = Bed::new()?;
    let node = bed.node()?;
    let containerd = Containerd::start(node, OURS)?;
    let life = |number: usize| -> Result<String> {
        let cri = containerd.cri()?;
        let pod = cri.run_pod(&PodConfig::new(&format!("pod{number}")))?;
        let ip = cri.pod_ip(&pod)?;
        cri.stop_pod(&pod)?;
        cri.remove_pod(&pod)?;
        Ok(ip)
    };
    let addresses = std::thread::scope(|scope| {
        let running: Vec<_> = (0..PODS)
            .map(|number| scope.spawn(move || life(number)))
            .collect();
        running
            .into_iter()
            .map(|life| life.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    assert_eq!(addresses.len(), PODS);
    check_nothing_left(node)
}

/// `ctr` sends no CNI_ARGS, and an empty CNI_NETNS on DEL.
pub fn ctr_runs_a_container() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node()?;
    let containerd = Containerd::start(node, OURS)?;
    let script = format!("ip -o -4 address show eth0; {}", bed.question());
    let said = containerd.run("asker", &script)?;
    let address = said
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/24"))
        .with_context(|| format!("no address in {said}"))?;
    Bed::check_answer(&said, address)?;
    check_nothing_left(node)
}

pub fn podman_runs_containers() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node()?;
    let podman = Podman::new(node, FLANNELS)?;
    let gateway = node
        .subnet_env()?
        .into_iter()
        .find_map(|(name, value)| (name == "FLANNEL_SUBNET").then_some(value))
        .context("no FLANNEL_SUBNET")?;
    // .1/24 is the bridge's.
    let wanted = format!("{}77", gateway.trim_end_matches("1/24"));
    let publish = format!("{HOST_PORT}:{PORT}");
    podman.run(&[
        "run",
        "--detach",
        "--name",
        "web",
        "--hostname",
        "web",
        "--publish",
        &publish,
        IMAGE,
    ])?;
    let script = format!(
        "ip -o address show eth0; ip -o link show eth0; {}",
        bed.question()
    );
    let chosen = ["--ip", wanted.as_str(), "--mac-address", "02:aa:bb:cc:dd:ee"];
    let said = podman.run(&[&["run", "--rm"], &chosen[..], &[IMAGE, "sh", "-c", &script]].concat())?;
    ensure!(
        said.contains(&format!("{wanted}/24")),
        "another address than {wanted}: {said}"
    );
    ensure!(
        said.contains("02:aa:bb:cc:dd:ee"),
        "another hardware address: {said}"
    );
    Bed::check_answer(&said, &wanted)?;
    assert_eq!(bed.answerer(&format!("{}:{HOST_PORT}", node.address()))?, "web");
    podman.run(&["rm", "--force", "--time", "1", "web"])?;
    check_nothing_left(node)
}
