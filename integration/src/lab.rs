//! The lab's map: an underlay switch, a router with the world behind it, an etcd host and the nodes.
//!
//! ```text
//!   outside 192.0.2.10 ── 192.0.2.1 router 192.168.50.1 ─┐
//!   etcd 192.168.50.2 ───────────────────────────────────┤
//!   operator (the sandbox itself) 192.168.50.3 ──────────┤ underlay: a bridge
//!   node1 192.168.50.11 · node2 192.168.50.12 · … ───────┘
//! ```
//!
//! The router knows no pod network: a pod's packet reaches the outside and comes back only if the node puts its own address on it.

use anyhow::{Context, Result, bail};

use crate::etcd::{self, Etcd};
use crate::node::Node;
use crate::place::Place;
use crate::pod;
use crate::process::Process;
use crate::{binaries, sandbox};

/// The address of the host outside (TEST-NET-1, RFC 5737).
pub const OUTSIDE_ADDRESS: &str = "192.0.2.10";
/// Where the host outside answers, by TCP and UDP, with `outside <source address>`.
pub const OUTSIDE_PORT: u16 = 8080;
/// The key of the network configuration under flannel's default prefix.
pub const CONFIG_KEY: &str = "/coreos.com/network/config";
/// Every lease's key begins with this.
pub const SUBNETS_PREFIX: &str = "/coreos.com/network/subnets/";
/// The pod network that the lab uses unless a test wants another.
pub const DEFAULT_CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

const ROUTER_ADDRESS: &str = "192.168.50.1";
/// The address of the operator, which is the sandbox itself.
pub const OPERATOR_ADDRESS: &str = "192.168.50.3";
/// The infrastructure hosts; `underlay` is the switch.
const INFRASTRUCTURE: [&str; 4] = ["underlay", "router", "outside", "etcd"];
/// The last byte of the last node's address is at most 254.
const MAX_NODES: usize = 200;

/// What a lab consists of.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// How many nodes there are.
    pub nodes: usize,
    /// Whether etcd runs from the start.
    pub etcd: bool,
    /// The network configuration to write once etcd runs.
    pub config: Option<String>,
    /// Whether nodes, router and outside have IPv6 addresses beside those of IPv4.
    pub ipv6: bool,
}

impl LabOptions {
    /// `nodes` nodes, a running etcd, and [`DEFAULT_CONFIG`] in it.
    pub fn nodes(nodes: usize) -> Self {
        Self {
            nodes,
            etcd: true,
            config: Some(DEFAULT_CONFIG.into()),
            ipv6: false,
        }
    }

    /// With this network configuration.
    pub fn config(self, config: &str) -> Self {
        Self {
            config: Some(config.into()),
            ..self
        }
    }

    /// With IPv6 on the underlay: nodes fd00:50::11, fd00:50::12, …, router fd00:50::1, outside 2001:db8:2::10.
    pub fn ipv6(self) -> Self {
        Self { ipv6: true, ..self }
    }

    /// With no network configuration in etcd.
    pub fn without_config(self) -> Self {
        Self { config: None, ..self }
    }

    /// With etcd still down.
    pub fn without_etcd(self) -> Self {
        Self {
            etcd: false,
            config: None,
            ..self
        }
    }
}

/// A running lab. One sandbox holds one.
#[derive(Debug)]
pub struct Lab {
    etcd: Etcd,
    nodes: Vec<Node>,
    outside: Place,
    _responder: Process,
}

impl Lab {
    /// Builds the lab in this process's sandbox.
    pub fn new(options: &LabOptions) -> Result<Self> {
        if options.nodes > MAX_NODES {
            bail!("a lab has at most {MAX_NODES} nodes, not {}", options.nodes);
        }
        binaries::check(sandbox::BINARIES.as_ref(), &["lab-tool"])?;
        let names: Vec<String> = (1..=options.nodes).map(|n| format!("node{n}")).collect();
        wire(&names).context("cannot wire the lab")?;
        if options.ipv6 {
            wire_ipv6(&names).context("cannot wire IPv6")?;
        }
        let mut etcd = Etcd::new(Place::netns("etcd"))?;
        if options.etcd {
            etcd.start_without_waiting()?; // the nodes are furnished meanwhile
        }
        let nodes = names
            .iter()
            .enumerate()
            .map(|(i, name)| Node::new(name, &node_address(i + 1), &node_ipv6_address(i + 1)))
            .collect::<Result<_>>()?;
        let outside = Place::netns("outside");
        let responder = pod::respond(&outside, "outside", OUTSIDE_PORT)?;
        if options.etcd {
            etcd.wait_ready()?;
        }
        let lab = Self {
            etcd,
            nodes,
            outside,
            _responder: responder,
        };
        if let Some(config) = &options.config {
            lab.etcd.put(CONFIG_KEY, config.as_str())?;
        }
        Ok(lab)
    }

    /// The etcd.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// The etcd, to stop or start it.
    pub fn etcd_mut(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// Node `number`, counted from 1 as in its name and address.
    pub fn node(&self, number: usize) -> Result<&Node> {
        let index = number.checked_sub(1).context("nodes are counted from 1")?;
        self.nodes
            .get(index)
            .with_context(|| format!("the lab has {} nodes, not {number}", self.nodes.len()))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The host outside, which answers at [`OUTSIDE_ADDRESS`] port [`OUTSIDE_PORT`].
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    /// The operator's machine: the sandbox itself.
    pub fn operator(&self) -> Place {
        Place::sandbox()
    }

    /// Runs flannelctl on the operator's machine against the lab's etcd.
    pub fn flannelctl(&self, arguments: &[&str]) -> Result<crate::Output> {
        let program = format!("{}/flannelctl", sandbox::BINARIES);
        let fixed = [
            program.as_str(),
            "--etcd-insecure",
            "--etcd-endpoints",
            etcd::ENDPOINT,
        ];
        self.operator().exec(&[&fixed, arguments].concat())
    }
}

/// The address of node `number` on the underlay.
pub fn node_address(number: usize) -> String {
    format!("192.168.50.{}", 10 + number)
}

/// Its IPv6 address, in a lab that has IPv6.
pub fn node_ipv6_address(number: usize) -> String {
    format!("fd00:50::{}", 10 + number)
}

/// Makes the namespaces and the cables and gives out the addresses.
fn wire(nodes: &[String]) -> Result<()> {
    let all: Vec<&str> = INFRASTRUCTURE
        .into_iter()
        .chain(nodes.iter().map(String::as_str))
        .collect();
    let mut lines: Vec<String> = all.iter().map(|name| format!("netns add {name}")).collect();
    let on_underlay: Vec<&str> = all
        .iter()
        .copied()
        .filter(|n| !["underlay", "outside"].contains(n))
        .collect();
    lines.extend(
        on_underlay
            .iter()
            .map(|n| format!("link add name eth0 netns {n} type veth peer name {n} netns underlay")),
    );
    lines.push("link add name eth1 netns router type veth peer name eth0 netns outside".into());
    lines.push("link add name lab0 type veth peer name operator netns underlay".into());
    lines.extend(host("lab0", OPERATOR_ADDRESS, Some(ROUTER_ADDRESS)));
    Place::sandbox().ip_batch(&lines)?;
    wire_underlay(&on_underlay)?;
    wire_router()?;
    Place::netns("outside").ip_batch(&host("eth0", OUTSIDE_ADDRESS, Some("192.0.2.1")))?;
    Place::netns("etcd").ip_batch(&host("eth0", etcd::ADDRESS, Some(ROUTER_ADDRESS)))?;
    nodes.iter().enumerate().try_for_each(|(i, name)| {
        Place::netns(name).ip_batch(&host("eth0", &node_address(i + 1), Some(ROUTER_ADDRESS)))
    })
}

fn wire_underlay(ports: &[&str]) -> Result<()> {
    let mut lines = vec![
        "link set lo up".into(),
        "link add name br0 type bridge".into(),
        "link set br0 up".into(),
    ];
    lines.extend(
        ports
            .iter()
            .chain(&["operator"])
            .map(|port| format!("link set {port} master br0 up")),
    );
    Place::netns("underlay").ip_batch(&lines)
}

fn wire_router() -> Result<()> {
    let router = Place::netns("router");
    let mut lines = host("eth0", ROUTER_ADDRESS, None);
    lines.extend(host("eth1", "192.0.2.1", None));
    router.ip_batch(&lines)?;
    router.shell("echo 1 > /proc/sys/net/ipv4/ip_forward").map(drop)
}

/// Gives the nodes, the router and the host outside IPv6. There is no address detection, so they serve at once.
fn wire_ipv6(nodes: &[String]) -> Result<()> {
    let address = |link: &str, address: &str| format!("address add {address}/64 dev {link} nodad");
    let router = Place::netns("router");
    router.ip_batch(&[address("eth0", "fd00:50::1"), address("eth1", "2001:db8:2::1")])?;
    router.shell("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")?;
    let with_gateway = |place: &str, own: &str, gateway: &str| {
        Place::netns(place).ip_batch(&[
            address("eth0", own),
            format!("route add ::/0 via {gateway} dev eth0"),
        ])
    };
    with_gateway("outside", "2001:db8:2::10", "2001:db8:2::1")?;
    nodes
        .iter()
        .enumerate()
        .try_for_each(|(i, name)| with_gateway(name, &node_ipv6_address(i + 1), "fd00:50::1"))
}

/// What gives `link` its address, and the host its default route.
fn host(link: &str, address: &str, gateway: Option<&str>) -> Vec<String> {
    let mut lines = vec![
        "link set lo up".into(),
        format!("address add {address}/24 dev {link}"),
        format!("link set {link} up"),
    ];
    lines.extend(gateway.map(|g| format!("route add default via {g}")));
    lines
}
