//! Two nodes with a pod each, joined by one data path.

use anyhow::Result;
use flannel_lab::command::Environment;
use flannel_lab::{Place, Process, eventually, limit, sandbox};

/// What passes packets on between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// Super-packets stay whole.
    Nic,
    /// Everything is cut to the MTU.
    Wire,
    /// Everything is cut to the MTU, and merged again where the kernel's GRO merges what a NIC's driver hands it.
    Gro,
}

impl Underlay {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nic => "nic",
            Self::Wire => "wire",
            Self::Gro => "gro",
        }
    }

    /// What makes a veth, called `device` here, such an underlay.
    fn commands(self, node: &str, device: &str) -> String {
        // A device that carries one segment at a time makes the kernel cut everything before it.
        let cut = format!("ip -n {node} link set {device} gso_max_segs 1;");
        match self {
            Self::Nic => String::new(),
            Self::Wire => cut,
            // A veth hands its peer's GRO only what it could not have passed on whole (veth_skb_is_eligible_for_gro).
            Self::Gro => format!("{cut} ip netns exec {node} ethtool -K {device} tso off gro on;"),
        }
    }
}

/// A contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// Ours, with one queue: what flanneld opens on two processors.
    Ours,
    /// Ours with two queues and threads.
    OursTwoQueues,
    /// Ours on a kernel that has none of the offloads.
    OursPlain,
    /// flannel's algorithm, one packet a system call.
    Plain,
    /// The kernel's VXLAN, as flanneld makes it by default, with this changed.
    Vxlan(Change),
    /// Plain routes.
    HostGw,
}

/// What is changed about the kernel's VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// No outer UDP checksum (RFC 7348 §5; `--vxlan-udp-checksum=false`).
    NoChecksum,
    /// Transmit checksum offload off on the device, as flannel's documents advise for some NICs.
    NoOffload,
    /// BIG TCP: super-packets of up to 192 KiB on every device of the way.
    BigTcp,
    /// GRO on both ends of the pods' veths.
    VethGro,
    /// UDP packets that are passed on are merged as well (rx-udp-gro-forwarding), where they arrive and on the veths.
    ForwardGro,
    /// As [`Self::ForwardGro`], in lists (rx-gro-list).
    GroList,
    /// Packets on the bridge pass netfilter (net.bridge.bridge-nf-call-iptables).
    BridgeNetfilter,
}

impl DataPath {
    /// The kernel's VXLAN, each change beside none.
    pub const ALL_VXLAN: &[Self] = &[
        Self::Vxlan(Change::Nothing),
        Self::Vxlan(Change::NoChecksum),
        Self::Vxlan(Change::NoOffload),
        Self::Vxlan(Change::BigTcp),
        Self::Vxlan(Change::VethGro),
        Self::Vxlan(Change::ForwardGro),
        Self::Vxlan(Change::GroList),
        Self::Vxlan(Change::BridgeNetfilter),
    ];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursTwoQueues => "ours-2q",
            Self::OursPlain => "ours-none",
            Self::Plain => "plain",
            Self::HostGw => "host-gw",
            Self::Vxlan(change) => match change {
                Change::Nothing => "vxlan",
                Change::NoChecksum => "nosum",
                Change::NoOffload => "notx",
                Change::BigTcp => "bigtcp",
                Change::VethGro => "vethgro",
                Change::ForwardGro => "fwdgro",
                Change::GroList => "grolist",
                Change::BridgeNetfilter => "bridgenf",
            },
        }
    }

    /// Largest packet of pods on an underlay of 1500 bytes.
    fn mtu(self) -> u32 {
        match self {
            Self::Ours | Self::OursTwoQueues | Self::OursPlain | Self::Plain => 1472,
            Self::Vxlan(_) => 1450,
            Self::HostGw => 1500,
        }
    }
}

/// Bytes of a super-packet with BIG TCP, as Cilium sets it.
const BIG_TCP: u32 = 196_608;

/// Two nodes, their pods and what runs on them.
pub struct Pair {
    /// What joins them.
    pub path: DataPath,
    /// The pod that sends.
    pub first: Place,
    /// Forwarders in user space, one a node.
    pub forwarders: Vec<Process>,
    _running: Vec<Process>,
}

/// The address of the pod that answers.
pub const SECOND: &str = "10.5.2.2";

impl Pair {
    /// Wires the nodes and starts what the path and the loads need.
    pub fn new(path: DataPath, underlay: Underlay) -> Result<Self> {
        let name = |what: &str, n: u32| format!("{}-{}-{what}{n}", underlay.name(), path.name());
        let here = Place::sandbox();
        for n in [1, 2] {
            let (node, pod) = (name("n", n), name("p", n));
            here.shell(&format!(
                "ip netns add {node}; ip netns add {pod}; ip -n {node} link set lo up; ip -n {pod} link set lo up; \
                 ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1"
            ))?;
        }
        here.shell(&format!(
            "ip link add u1 netns {} type veth peer name u2 netns {}",
            name("n", 1),
            name("n", 2)
        ))?;
        for n in [1, 2] {
            wire_node(&here, n, &name("n", n), &name("p", n), path, underlay)?;
        }
        let mut forwarders = Vec::new();
        for n in [1, 2] {
            let node = Place::netns(&name("n", n));
            forwarders.extend(start_path(&node, n, path)?);
        }
        let mut running = Vec::new();
        let (first, second) = (Place::netns(&name("p", 1)), Place::netns(&name("p", 2)));
        running.push(second.spawn(&name("iperf", 2), &["iperf3", "-s"], &Environment::default())?);
        let load = format!("{}/net-load", sandbox::BINARIES);
        running.push(second.spawn(
            &name("load", 2),
            &[&load, "echo", "7777"],
            &Environment::default(),
        )?);
        eventually(limit(10), "the first packet between the pods", || {
            first.ping(SECOND)
        })?;
        Ok(Self {
            path,
            first,
            forwarders,
            _running: running,
        })
    }
}

fn wire_node(here: &Place, n: u32, node: &str, pod: &str, path: DataPath, underlay: Underlay) -> Result<()> {
    let mtu = path.mtu();
    let cut = underlay.commands(node, &format!("u{n}"));
    // Where the host has it on, every packet of a pod passes netfilter on the bridge, whatever the path: a cost of its own, measured by itself.
    // A host whose kernel has no such setting has it off.
    let bridge_netfilter = match path {
        DataPath::Vxlan(Change::BridgeNetfilter) => "-qw net.bridge.bridge-nf-call-iptables=1",
        _ => "-eqw net.bridge.bridge-nf-call-iptables=0",
    };
    here.shell(&format!(
        "{cut} ip -n {node} addr add 192.168.50.1{n}/24 dev u{n}; ip -n {node} link set u{n} up; \
         ip netns exec {node} sysctl {bridge_netfilter}; \
         ip -n {node} link add cni0 type bridge; ip -n {node} addr add 10.5.{n}.1/24 dev cni0; \
         ip -n {node} link add v{n} type veth peer name eth0 netns {pod}; \
         ip -n {node} link set v{n} mtu {mtu} master cni0 up; ip -n {node} link set cni0 mtu {mtu} up; \
         ip -n {pod} addr add 10.5.{n}.2/24 dev eth0; ip -n {pod} link set eth0 mtu {mtu} up; \
         ip -n {pod} route add default via 10.5.{n}.1"
    ))
    .map(drop)
}

fn start_path(node: &Place, n: u32, path: DataPath) -> Result<Option<Process>> {
    let other = 3 - n;
    match path {
        DataPath::Ours | DataPath::OursTwoQueues | DataPath::OursPlain | DataPath::Plain => {
            let program = format!("{}/udp-forwarder", sandbox::BINARIES);
            let (local, own) = (format!("192.168.50.1{n}:8285"), format!("10.5.{n}.0/24"));
            let peer = format!("10.5.{other}.0/24=192.168.50.1{other}:8285");
            let (mode, offloads) = match path {
                DataPath::Plain => ("plain", "none"),
                DataPath::OursPlain => ("ours", "none"),
                _ => ("ours", "all"),
            };
            let queues = match path {
                DataPath::OursTwoQueues => "2",
                _ => "1",
            };
            let argv = [program.as_str(), mode, "flannel0", &local, &own, &peer];
            let forwarder = node.spawn(
                &format!("forwarder-{}-{n}", path.name()),
                &argv,
                &Environment::with(&[("OFFLOADS", offloads), ("QUEUES", queues)]),
            )?;
            eventually(limit(10), "flannel0", || node.shell("ip link show flannel0"))?;
            node.shell(&format!(
                "ip addr add 10.5.{n}.0/32 dev flannel0; ip link set flannel0 mtu 1472 up; ip route add 10.5.0.0/16 dev flannel0"
            ))?;
            Ok(Some(forwarder))
        }
        DataPath::Vxlan(change) => {
            make_vxlan(node, n, change)?;
            Ok(None)
        }
        DataPath::HostGw => {
            node.shell(&format!("ip route add 10.5.{other}.0/24 via 192.168.50.1{other}"))?;
            Ok(None)
        }
    }
}

fn make_vxlan(node: &Place, n: u32, change: Change) -> Result<()> {
    let other = 3 - n;
    let checksum = match change {
        Change::NoChecksum => "noudpcsum",
        _ => "udpcsum",
    };
    node.shell(&format!(
        "ip link add flannel.1 type vxlan id 1 local 192.168.50.1{n} dev u{n} dstport 8472 nolearning {checksum}; \
         ip link set flannel.1 address 02:00:00:00:00:0{n} up; ip addr add 10.5.{n}.0/32 dev flannel.1; \
         ip neigh add 10.5.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent; \
         bridge fdb add 02:00:00:00:00:0{other} dev flannel.1 dst 192.168.50.1{other} self; \
         ip route add 10.5.{other}.0/24 via 10.5.{other}.0 dev flannel.1 onlink"
    ))?;
    let pod = node.name().replace("-n", "-p");
    let in_pod = format!("ip netns exec {pod}");
    let command = match change {
        Change::Nothing | Change::NoChecksum | Change::BridgeNetfilter => return Ok(()),
        Change::NoOffload => "ethtool -K flannel.1 tx-checksum-ip-generic off".to_owned(),
        Change::BigTcp => {
            let segments = format!("{}/net-load segments {BIG_TCP}", sandbox::BINARIES);
            format!("{segments} u{n} flannel.1 v{n}; {in_pod} {segments} eth0")
        }
        Change::VethGro => format!("ethtool -K v{n} gro on; {in_pod} ethtool -K eth0 gro on"),
        Change::ForwardGro => format!(
            "for d in u{n} flannel.1 v{n}; do ethtool -K $d gro on rx-udp-gro-forwarding on; done; {in_pod} ethtool -K eth0 gro on"
        ),
        Change::GroList => format!(
            "for d in u{n} flannel.1 v{n}; do ethtool -K $d gro on rx-gro-list on; done; {in_pod} ethtool -K eth0 gro on"
        ),
    };
    node.shell(&command).map(drop)
}
