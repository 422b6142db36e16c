//! What a client of a Service talks to, and who answers: the one value that every programmer translates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flannel_model::{IpSubnet, Scheduler, SchedulerFlags, ServiceName, ServiceProtocol, VirtualAddress};

use super::counted::Counted;

/// A port that Services take on the chosen addresses of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodePort {
    /// Whether it is for IPv4: the two families have endpoints of their own.
    pub ipv4: bool,
    /// Transport protocol.
    pub protocol: ServiceProtocol,
    /// The port.
    pub port: u16,
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv4 { "IPv4" } else { "IPv6" };
        write!(f, "{} nodePort {} ({family})", self.protocol, self.port)
    }
}

/// What clients talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKey {
    /// A virtual address with a port.
    Address(VirtualAddress),
    /// A port of the node itself.
    NodePort(NodePort),
}

impl FrontendKey {
    /// Transport protocol.
    pub fn protocol(&self) -> ServiceProtocol {
        match self {
            Self::Address(at) => at.protocol,
            Self::NodePort(at) => at.protocol,
        }
    }

    /// Whether it is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        match self {
            Self::Address(at) => at.address.is_ipv4(),
            Self::NodePort(at) => at.ipv4,
        }
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(at) => at.fmt(f),
            Self::NodePort(at) => at.fmt(f),
        }
    }
}

/// Which of a Service's addresses a frontend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// One of its cluster addresses.
    ClusterIp,
    /// One of its `externalIPs`.
    ExternalIp,
    /// An address of its load balancer.
    LoadBalancer,
    /// A port of the node.
    NodePort,
}

/// One endpoint that takes traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// Share of new connections for weighted schedulers; 0 takes none.
    pub weight: u32,
    /// Whether it runs on this node.
    pub local: bool,
}

/// Endpoints in the order of their addresses, each once. Shared where several frontends have the same.
pub type Backends = Arc<[Backend]>;

/// What one port of a Service does at one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The Service.
    pub service: ServiceName,
    /// Name of its port; empty for an unnamed one.
    pub port_name: String,
    /// Which of its addresses this is.
    pub kind: FrontendKind,
    /// How new connections are spread.
    pub scheduler: Scheduler,
    /// Flags of the scheduler.
    pub flags: SchedulerFlags,
    /// Seconds for which a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// Who may connect from outside, of the frontend's family: `None` is anybody, an empty list nobody. Pods are asked, too.
    pub source_ranges: Option<Arc<[IpSubnet]>>,
    /// Who answers pods of the cluster and the node itself. Nobody: refuse at once.
    pub inside: Backends,
    /// Who answers everybody else. Nobody: refuse at once.
    pub outside: Backends,
    /// Endpoints see the address of a client from outside (`externalTrafficPolicy: Local`): it must not be masqueraded. All of
    /// `outside` runs on this node then.
    pub keep_source: bool,
}

impl Frontend {
    /// Whether pods and outside clients reach different endpoints.
    pub fn is_split(&self) -> bool {
        self.keep_source && self.inside != self.outside
    }
}

/// What a node answers to the health check of a load balancer for one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ServiceName,
    /// How many of its endpoints on this node are ready.
    pub local_endpoints: usize,
}

/// Everything that a node should do for Services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontends {
    /// The service CIDRs that are sound, of both families, none inside another.
    pub cidrs: Vec<IpSubnet>,
    /// What clients talk to.
    pub by_key: BTreeMap<FrontendKey, Arc<Frontend>>,
    /// Addresses of external and load balancer frontends: they lie outside `cidrs` and need deliveries of their own. Counted by
    /// frontends.
    pub external_ips: Counted<IpAddr>,
    /// Addresses of this node that answer on node ports.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Addresses of endpoints on this node, which may reach themselves through a frontend. Counted by frontends.
    pub local_endpoints: Counted<IpAddr>,
    /// Health checks by their port.
    pub health_checks: BTreeMap<u16, HealthCheck>,
    /// Longest time in seconds that a connection may hold an endpoint that is on its way out.
    pub drain_timeout: u32,
}

/// Something about a Service that is not, or not wholly, programmed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceNote {
    /// Which Service, as `namespace/name`, or which key.
    pub subject: String,
    /// What and why.
    pub text: String,
}

impl fmt::Display for ServiceNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}
