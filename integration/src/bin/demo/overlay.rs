//! Nodes, leases, routes, pods, pings, a transfer and the way out.

use anyhow::{Context, Result, bail, ensure};
use flannel_lab::lab::{CONFIG_KEY, DEFAULT_CONFIG, OUTSIDE_ADDRESS, OUTSIDE_PORT, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pod, etcd, eventually, limit};

use crate::{service, show};

/// How many steps there are before the Service.
pub const STEPS: u32 = 9;
const NODES: usize = 3;
const TRANSFER_SECONDS: u32 = 3;

/// Every step up to the way out, and the Service if `with_service`.
pub fn show(with_service: bool) -> Result<()> {
    let lab = show::step(
        "Three nodes on a switch, an etcd, and a router to the world outside",
        underlay,
    )?;
    show::step("The network's configuration goes into etcd", || configure(&lab))?;
    let _daemons = show::step("flanneld starts on each node and leases a subnet", || start(&lab))?;
    show::step("The leases, as etcd has them", || leases(&lab))?;
    show::step(
        "What flanneld has programmed: for each other node a route, a neighbour and an FDB entry",
        || programmed(&lab),
    )?;
    let pods = show::step("Two pods on each node, wired by the CNI plugin", || {
        add_pods(&lab)
    })?;
    show::step(
        "Every pod pings every pod (milliseconds; rows ping columns)",
        || ping_matrix(&pods),
    )?;
    show::step("A TCP transfer between pods of two nodes", || {
        transfer(&pods[0], &pods[2])
    })?;
    show::step("A pod reaches an address outside", || outside(&lab, &pods[4]))?;
    ensure!(show::steps() == STEPS, "STEPS is not {}", show::steps());
    if with_service {
        service::show(&lab, &pods)?;
    }
    Ok(())
}

fn underlay() -> Result<Lab> {
    let lab = Lab::new(&LabOptions::nodes(NODES).without_config())?;
    for node in lab.nodes() {
        show::say(&format!("{} is {}", node.name(), node.address()));
    }
    show::say(&format!(
        "etcd is {}, the world outside is {OUTSIDE_ADDRESS}",
        etcd::ADDRESS
    ));
    Ok(lab)
}

fn configure(lab: &Lab) -> Result<()> {
    let said = etcdctl(lab, &["put", CONFIG_KEY, DEFAULT_CONFIG])?;
    show::command(&format!("etcdctl put {CONFIG_KEY} '{DEFAULT_CONFIG}'"), &said);
    Ok(())
}

fn etcdctl(lab: &Lab, arguments: &[&str]) -> Result<String> {
    lab.operator()
        .run(&[&["etcdctl", "--endpoints", etcd::ENDPOINT], arguments].concat())
}

/// Starts flanneld everywhere with masquerading and waits until all are ready.
pub fn start(lab: &Lab) -> Result<Vec<Flanneld>> {
    show::command(
        &format!(
            "flanneld --etcd-endpoints={} --etcd-insecure --ip-masq",
            etcd::ENDPOINT
        ),
        "",
    );
    let mut daemons: Vec<Flanneld> = lab
        .nodes()
        .iter()
        .map(|n| n.start_flanneld(&["--ip-masq"]))
        .collect::<Result<_>>()?;
    for (node, daemon) in lab.nodes().iter().zip(&mut daemons) {
        daemon
            .wait_ready()
            .with_context(|| format!("on {}", node.name()))?;
        let variables = node.subnet_env()?;
        let subnet = variables
            .iter()
            .find(|(k, _)| k == "FLANNEL_SUBNET")
            .context("no FLANNEL_SUBNET in subnet.env")?;
        show::say(&format!(
            "{} is ready; its bridge will be {}",
            node.name(),
            subnet.1
        ));
    }
    Ok(daemons)
}

fn leases(lab: &Lab) -> Result<()> {
    show::say(
        "A lease says whose subnet it is, at which address that node is reached, and its VXLAN device's Ethernet address.",
    );
    let raw = etcdctl(lab, &["get", "--prefix", SUBNETS_PREFIX])?;
    ensure!(
        raw.lines().count() == 2 * NODES,
        "{NODES} leases expected:\n{raw}"
    );
    show::command(&format!("etcdctl get --prefix {SUBNETS_PREFIX}"), &raw);
    show::command("flannelctl subnets", &lab.flannelctl(&["subnets"])?.ok()?);
    Ok(())
}

fn programmed(lab: &Lab) -> Result<()> {
    show::say(
        "The route leads a peer's subnet into the tunnel device flannel.1, the neighbour entry gives the peer's device an",
    );
    show::say("Ethernet address, and the FDB entry says to which node packets for that address are sent.");
    for node in lab.nodes() {
        show::say(&format!("{}:", node.name()));
        let routes = eventually(limit(10), "routes to the other nodes", || {
            let routes = node.run(&["ip", "route", "show", "dev", "flannel.1"])?;
            ensure!(routes.lines().count() == NODES - 1, "{routes}");
            Ok(routes)
        })?;
        show::command("ip route show dev flannel.1", &routes);
        show::command(
            "ip neigh show dev flannel.1 nud permanent",
            &node.run(&["ip", "neigh", "show", "dev", "flannel.1", "nud", "permanent"])?,
        );
        show::command(
            "bridge fdb show dev flannel.1",
            &node.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?,
        );
    }
    Ok(())
}

/// Two pods on each node, in the order of the nodes.
pub fn add_pods(lab: &Lab) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for node in lab.nodes() {
        for letter in ["a", "b"] {
            let pod = node.add_pod(&format!("{}-{letter}", node.name()))?;
            show::say(&format!("{} has {}", pod.name(), pod.ip()));
            pods.push(pod);
        }
    }
    Ok(pods)
}

fn ping_matrix(pods: &[Pod]) -> Result<()> {
    let heads: String = pods.iter().map(|p| format!("{:>9}", p.name())).collect();
    show::output(&format!("{:9}{heads}", ""));
    for from in pods {
        let mut row = format!("{:9}", from.name());
        for to in pods {
            let time = eventually(
                limit(10),
                &format!("a ping from {} to {}", from.name(), to.name()),
                || round_trip(from, to),
            )?;
            row.push_str(&format!("{time:>9}"));
        }
        show::output(&row);
    }
    Ok(())
}

/// The average of three, in milliseconds.
fn round_trip(from: &Pod, to: &Pod) -> Result<String> {
    let wait = limit(2).as_secs().to_string();
    let said = from.run(&["ping", "-n", "-q", "-c", "3", "-i", "0.02", "-W", &wait, to.ip()])?;
    if !said.contains(" 0% packet loss") {
        bail!("lost packets: {said}");
    }
    let times = said
        .lines()
        .find_map(|l| l.strip_prefix("rtt min/avg/max/mdev = "))
        .context("no times")?;
    Ok(times.split('/').nth(1).unwrap_or_default().to_owned())
}

fn transfer(from: &Pod, to: &Pod) -> Result<()> {
    show::say(&format!(
        "from {} to {}, for {TRANSFER_SECONDS} seconds",
        from.name(),
        to.name()
    ));
    let rate = flannel_lab::transfer(from, to, TRANSFER_SECONDS)?.rate;
    ensure!(rate > 1e6, "only {rate} bits per second");
    show::say(&format!("{:.2} Gbit/s through VXLAN", rate / 1e9));
    Ok(())
}

fn outside(lab: &Lab, pod: &Pod) -> Result<()> {
    let node: &Node = lab.node(3)?;
    let target = format!("{OUTSIDE_ADDRESS}:{OUTSIDE_PORT}");
    let answer = eventually(limit(10), "an answer from outside", || pod.ask("tcp", &target))?;
    let seen = answer
        .strip_prefix("outside ")
        .context("a strange answer from outside")?;
    show::say(&format!(
        "{} ({}) asks {target}, which knows no pod network",
        pod.name(),
        pod.ip()
    ));
    show::say(&format!(
        "it was reached from {seen}: {}'s own address, by masquerade",
        node.name()
    ));
    ensure!(
        seen == node.address(),
        "the source outside is {seen}, not {}",
        node.address()
    );
    Ok(())
}
