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
}

impl Underlay {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nic => "nic",
            Self::Wire => "wire",
        }
    }
}

/// A contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// Ours.
    Ours,
    /// Ours on a kernel that has none of the offloads.
    OursPlain,
    /// flannel's algorithm, one packet a system call.
    Plain,
    /// The kernel's VXLAN.
    Vxlan,
    /// The same with transmit checksum offload off on the device, as flannel's documents advise for some NICs.
    VxlanNoOffload,
    /// The same without the outer UDP checksum (RFC 7348 §5).
    VxlanNoChecksum,
    /// Plain routes.
    HostGw,
}

impl DataPath {
    /// Every contender, ours first.
    pub const ALL: &[Self] = &[
        Self::Ours,
        Self::OursPlain,
        Self::Plain,
        Self::Vxlan,
        Self::VxlanNoOffload,
        Self::VxlanNoChecksum,
        Self::HostGw,
    ];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursPlain => "ours-none",
            Self::Plain => "plain",
            Self::Vxlan => "vxlan",
            Self::VxlanNoOffload => "vxlan-notx",
            Self::VxlanNoChecksum => "vxlan-nosum",
            Self::HostGw => "host-gw",
        }
    }

    /// Largest packet of pods on an underlay of 1500 bytes.
    fn mtu(self) -> u32 {
        match self {
            Self::Ours | Self::OursPlain | Self::Plain => 1472,
            Self::Vxlan | Self::VxlanNoOffload | Self::VxlanNoChecksum => 1450,
            Self::HostGw => 1500,
        }
    }
}

/// Two nodes, their pods and what runs on them.
pub struct Pair {
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
            first,
            forwarders,
            _running: running,
        })
    }
}

fn wire_node(here: &Place, n: u32, node: &str, pod: &str, path: DataPath, underlay: Underlay) -> Result<()> {
    let mtu = path.mtu();
    // A device that carries one segment at a time makes the kernel cut everything before it.
    let cut = match underlay {
        Underlay::Wire => format!("ip -n {node} link set u{n} gso_max_segs 1;"),
        Underlay::Nic => String::new(),
    };
    here.shell(&format!(
        "{cut} ip -n {node} addr add 192.168.50.1{n}/24 dev u{n}; ip -n {node} link set u{n} up; \
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
        DataPath::Ours | DataPath::OursPlain | DataPath::Plain => {
            let program = format!("{}/udp-forwarder", sandbox::BINARIES);
            let (local, own) = (format!("192.168.50.1{n}:8285"), format!("10.5.{n}.0/24"));
            let peer = format!("10.5.{other}.0/24=192.168.50.1{other}:8285");
            let (mode, offloads) = match path {
                DataPath::Plain => ("plain", "none"),
                DataPath::OursPlain => ("ours", "none"),
                _ => ("ours", "all"),
            };
            let argv = [program.as_str(), mode, "flannel0", &local, &own, &peer];
            let forwarder = node.spawn(
                &format!("forwarder-{}-{n}", path.name()),
                &argv,
                &Environment::with(&[("OFFLOADS", offloads)]),
            )?;
            eventually(limit(10), "flannel0", || node.shell("ip link show flannel0"))?;
            node.shell(&format!(
                "ip addr add 10.5.{n}.0/32 dev flannel0; ip link set flannel0 mtu 1472 up; ip route add 10.5.0.0/16 dev flannel0"
            ))?;
            Ok(Some(forwarder))
        }
        DataPath::Vxlan | DataPath::VxlanNoOffload | DataPath::VxlanNoChecksum => {
            let checksum = match path {
                DataPath::VxlanNoChecksum => "noudpcsum",
                _ => "udpcsum",
            };
            node.shell(&format!(
                "ip link add flannel.1 type vxlan id 1 local 192.168.50.1{n} dev u{n} dstport 8472 nolearning {checksum}; \
                 ip link set flannel.1 address 02:00:00:00:00:0{n} up; ip addr add 10.5.{n}.0/32 dev flannel.1; \
                 ip neigh add 10.5.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent; \
                 bridge fdb add 02:00:00:00:00:0{other} dev flannel.1 dst 192.168.50.1{other} self; \
                 ip route add 10.5.{other}.0/24 via 10.5.{other}.0 dev flannel.1 onlink"
            ))?;
            if path == DataPath::VxlanNoOffload {
                node.shell("ethtool -K flannel.1 tx-checksum-ip-generic off")?;
            }
            Ok(None)
        }
        DataPath::HostGw => {
            node.shell(&format!("ip route add 10.5.{other}.0/24 via 192.168.50.1{other}"))?;
            Ok(None)
        }
    }
}
