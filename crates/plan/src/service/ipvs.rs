//! Frontends as virtual and real servers of IPVS.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flannel_model::VirtualAddress;

use super::frontend::{Backend, Frontend, FrontendKey, FrontendKind, Frontends};

/// `IP_VS_SVC_F_PERSISTENT` (linux/ip_vs.h): a client keeps its real server.
const PERSISTENT: u32 = 1;

/// A virtual server as it should be, or as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// Name of its scheduler.
    pub scheduler: String,
    /// `IP_VS_SVC_F_*` flags without HASHED, which is the kernel's own.
    pub flags: u32,
    /// Seconds for which a client keeps its real server; 0 without the flag PERSISTENT.
    pub timeout: u32,
    /// Its real servers.
    pub real: BTreeMap<SocketAddr, RealServer>,
}

/// A real server as it should be, or as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealServer {
    /// Share of new connections for weighted schedulers; 0 takes none.
    pub weight: u32,
    /// Whether it is reached by address translation, as all of ours are.
    pub masquerade: bool,
}

/// The virtual servers of all cluster addresses of IPv4.
pub fn virtual_servers(frontends: &Frontends) -> BTreeMap<VirtualAddress, VirtualServer> {
    let servers = frontends.by_key.iter().filter_map(|(key, frontend)| match key {
        FrontendKey::Address(at) if at.address.is_ipv4() && frontend.kind == FrontendKind::ClusterIp => {
            Some((*at, virtual_server(frontend, &frontend.inside)))
        }
        FrontendKey::Address(_) | FrontendKey::NodePort(_) => None,
    });
    servers.collect()
}

fn virtual_server(frontend: &Frontend, backends: &[Backend]) -> VirtualServer {
    let real = backends.iter().map(|b| {
        let real = RealServer {
            weight: b.weight,
            masquerade: true,
        };
        (b.address, real)
    });
    let persistent = if frontend.affinity.is_some() {
        PERSISTENT
    } else {
        0
    };
    VirtualServer {
        scheduler: frontend.scheduler.to_string(),
        flags: frontend.flags.bits() | persistent,
        timeout: frontend.affinity.unwrap_or(0),
        real: real.collect(),
    }
}
