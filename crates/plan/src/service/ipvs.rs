//! Frontends as virtual and real servers of IPVS.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{ServerKey, ServiceProtocol, VirtualAddress};

use super::frontend::{Backends, Frontend, FrontendKey};
use super::real_servers::RealServers;

/// `IP_VS_SVC_F_PERSISTENT` (linux/ip_vs.h): a client keeps its real server.
const PERSISTENT: u32 = 1;
/// The scheduler that picks by the client's address.
const SOURCE_HASH: &str = "sh";

/// A virtual server as it should be, or as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// Name of its scheduler.
    pub scheduler: Cow<'static, str>,
    /// `IP_VS_SVC_F_*` flags without HASHED, which is the kernel's own.
    pub flags: u32,
    /// Seconds for which a client keeps its real server; 0 without the flag PERSISTENT.
    pub timeout: u32,
    /// Its real servers.
    pub real: RealServers,
}

/// Virtual servers by their identity.
pub type VirtualServers = BTreeMap<ServerKey, VirtualServer>;

/// What a frontend needs to be spelled out.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Addresses of the node that answer on node ports.
    pub node_addresses: &'a BTreeSet<IpAddr>,
    /// The mark that packets from outside carry where endpoints see who asks.
    pub mark: Option<u32>,
}

/// The virtual servers of one frontend: one for each of its addresses, with who answers from inside, and where outside is
/// another matter, one for the mark that packets from outside get before IPVS sees them.
pub fn servers_of(key: &FrontendKey, frontend: &Frontend, around: Surroundings<'_>) -> VirtualServers {
    let address = |at: VirtualAddress| (ServerKey::Address(at), virtual_server(frontend, &frontend.inside));
    let mut servers: VirtualServers = match key {
        FrontendKey::Address(at) => [address(*at)].into(),
        FrontendKey::NodePort(port) => {
            let addresses = around
                .node_addresses
                .iter()
                .filter(|ip| ip.is_ipv4() == port.ipv4);
            let at = |ip: &IpAddr| VirtualAddress {
                protocol: port.protocol,
                address: *ip,
                port: port.port,
            };
            addresses.map(|ip| address(at(ip))).collect()
        }
    };
    if let Some(mark) = around.mark {
        let key = ServerKey::Mark {
            ipv6: !key.is_ipv4(),
            mark,
        };
        servers.insert(key, marked_server(frontend));
    }
    servers
}

fn virtual_server(frontend: &Frontend, backends: &Backends) -> VirtualServer {
    let persistent = if frontend.affinity.is_some() {
        PERSISTENT
    } else {
        0
    };
    VirtualServer {
        scheduler: frontend.scheduler.as_str().into(),
        flags: frontend.flags.bits() | persistent,
        timeout: frontend.affinity.unwrap_or(0),
        real: RealServers::Endpoints(backends.clone()),
    }
}

/// The virtual server for outside. A persistent one for a mark keeps the port of the packet (ip_vs_sched_persist in ip_vs_core.c
/// compares with the virtual server's port, which is 0 for marks), so that packets would miss the endpoint's: a hash of the
/// client's address keeps a client where it is as well, without a timeout.
fn marked_server(frontend: &Frontend) -> VirtualServer {
    let server = virtual_server(frontend, &frontend.outside);
    if frontend.affinity.is_none() {
        return server;
    }
    VirtualServer {
        scheduler: SOURCE_HASH.into(),
        flags: 0,
        timeout: 0,
        real: server.real,
    }
}

/// Whether a real server that goes away may keep its connections for a while. Answers of a UDP or SCTP endpoint that is gone never
/// come, so its clients must move at once.
pub fn drains(protocol: ServiceProtocol) -> bool {
    protocol == ServiceProtocol::Tcp
}
