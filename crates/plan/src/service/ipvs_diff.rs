//! From the virtual servers that a kernel has to those that it should have.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use flannel_model::ServerKey;

use super::ipvs::{VirtualServer, VirtualServers};
use super::real_servers::{RealServer, RealServers, masqueraded};

/// One change of IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceOp {
    /// Add a virtual server without real servers.
    AddVirtual(ServerKey, Settings),
    /// Change scheduler, flags and timeout of a virtual server.
    SetVirtual(ServerKey, Settings),
    /// Remove a virtual server with its real servers.
    RemoveVirtual(ServerKey),
    /// Add a real server of this weight that is reached by address translation.
    AddReal(ServerKey, SocketAddr, u32),
    /// Give a real server this weight and address translation.
    SetReal(ServerKey, SocketAddr, u32),
    /// Let a real server take no new connections; those that it has go on.
    DrainReal(ServerKey, SocketAddr),
    /// Remove a real server. Its connections end.
    RemoveReal(ServerKey, SocketAddr),
}

/// What a virtual server has besides real servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of its scheduler.
    pub scheduler: Cow<'static, str>,
    /// `IP_VS_SVC_F_*` flags.
    pub flags: u32,
    /// Seconds for which a client keeps its real server.
    pub timeout: u32,
}

impl From<&VirtualServer> for Settings {
    fn from(server: &VirtualServer) -> Self {
        Self {
            scheduler: server.scheduler.clone(),
            flags: server.flags,
            timeout: server.timeout,
        }
    }
}

impl ServiceOp {
    /// The virtual server that it changes.
    pub fn server(&self) -> ServerKey {
        match self {
            Self::AddVirtual(at, _)
            | Self::SetVirtual(at, _)
            | Self::RemoveVirtual(at)
            | Self::AddReal(at, ..)
            | Self::SetReal(at, ..)
            | Self::DrainReal(at, _)
            | Self::RemoveReal(at, _) => *at,
        }
    }

    /// Whether it changes a real server.
    fn is_real(&self) -> bool {
        !matches!(
            self,
            Self::AddVirtual(..) | Self::SetVirtual(..) | Self::RemoveVirtual(_)
        )
    }

    /// Whether something goes away.
    pub fn is_removal(&self) -> bool {
        matches!(self, Self::RemoveVirtual(_) | Self::RemoveReal(..))
    }

    /// Does to the real servers of one virtual server what the kernel does to its own.
    fn change_real(&self, real: &mut BTreeMap<SocketAddr, RealServer>) {
        match self {
            Self::AddReal(_, address, weight) | Self::SetReal(_, address, weight) => {
                real.insert(*address, masqueraded(*weight));
            }
            Self::DrainReal(_, address) => {
                real.insert(*address, masqueraded(0));
            }
            Self::RemoveReal(_, address) => {
                real.remove(address);
            }
            Self::AddVirtual(..) | Self::SetVirtual(..) | Self::RemoveVirtual(_) => {}
        }
    }
}

/// Does to `servers` what the kernel does to its own, in the order of `ops`.
pub fn carry_out<'a>(ops: impl Iterator<Item = &'a ServiceOp>, servers: &mut VirtualServers) {
    let mut ops = ops.peekable();
    while let Some(op) = ops.next() {
        let at = op.server();
        match op {
            ServiceOp::AddVirtual(_, settings) | ServiceOp::SetVirtual(_, settings) => {
                let server = servers.entry(at).or_insert_with(|| VirtualServer {
                    scheduler: Cow::Borrowed(""),
                    flags: 0,
                    timeout: 0,
                    real: RealServers::default(),
                });
                server.scheduler.clone_from(&settings.scheduler);
                (server.flags, server.timeout) = (settings.flags, settings.timeout);
            }
            ServiceOp::RemoveVirtual(_) => {
                servers.remove(&at);
            }
            ServiceOp::AddReal(..)
            | ServiceOp::SetReal(..)
            | ServiceOp::DrainReal(..)
            | ServiceOp::RemoveReal(..) => {
                let Some(server) = servers.get_mut(&at) else {
                    continue;
                };
                server.real.change(|real| {
                    op.change_real(real);
                    // those that follow are mostly of the same virtual server
                    while let Some(next) = ops.next_if(|next| next.is_real() && next.server() == at) {
                        next.change_real(real);
                    }
                });
            }
        }
    }
}

impl fmt::Display for ServiceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddVirtual(at, s) => write!(f, "add virtual server {at} {}", s.scheduler),
            Self::SetVirtual(at, s) => write!(f, "change virtual server {at} to {}", s.scheduler),
            Self::RemoveVirtual(at) => write!(f, "remove virtual server {at}"),
            Self::AddReal(at, real, weight) => write!(f, "add real server {real} weight {weight} to {at}"),
            Self::SetReal(at, real, weight) => {
                write!(f, "change real server {real} of {at} to weight {weight}")
            }
            Self::DrainReal(at, real) => write!(f, "drain real server {real} of {at}"),
            Self::RemoveReal(at, real) => write!(f, "remove real server {real} from {at}"),
        }
    }
}

/// The changes that lead one virtual server from `found` to `wanted`.
///
/// What is already as it should be is adopted. The virtual server comes before its real servers, and the new ones of these before
/// old ones go, so that a virtual server that has a successor for its real servers is never without any. With `drain` a real server
/// that goes away first gets the weight 0; one that has it already is left for the caller to remove when its connections are gone.
pub fn diff_server(
    at: ServerKey,
    wanted: Option<&VirtualServer>,
    found: Option<&VirtualServer>,
    drain: bool,
    ops: &mut Vec<ServiceOp>,
) {
    let Some(wanted) = wanted else {
        ops.extend(found.map(|_| ServiceOp::RemoveVirtual(at)));
        return;
    };
    let settings = Settings::from(wanted);
    match found.map(Settings::from) {
        None => ops.push(ServiceOp::AddVirtual(at, settings)),
        Some(found) if found == settings => {}
        Some(_) => ops.push(ServiceOp::SetVirtual(at, settings)),
    }
    let none = RealServers::default();
    let found = found.map_or(&none, |f| &f.real);
    for (real, server) in wanted.real.iter() {
        if !found.contains(&real) {
            ops.push(ServiceOp::AddReal(at, real, server.weight));
        }
    }
    for (real, server) in wanted.real.iter() {
        if found.get(&real).is_some_and(|f| f != server) {
            ops.push(ServiceOp::SetReal(at, real, server.weight));
        }
    }
    for (real, server) in found.iter() {
        if wanted.real.contains(&real) {
            continue;
        }
        if !drain {
            ops.push(ServiceOp::RemoveReal(at, real));
        } else if server.weight != 0 {
            ops.push(ServiceOp::DrainReal(at, real));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use flannel_model::{ServiceProtocol, VirtualAddress};
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    fn any_real() -> impl Strategy<Value = BTreeMap<SocketAddr, RealServer>> {
        let address = (1u8..5).prop_map(|n| SocketAddr::from(([10, 5, 1, n], 8080)));
        let real =
            (0u32..3, any::<bool>()).prop_map(|(weight, masquerade)| RealServer { weight, masquerade });
        btree_map(address, real, 0..4)
    }

    fn any_server() -> impl Strategy<Value = VirtualServer> {
        let scheduler = prop_oneof![Just("rr"), Just("lc")];
        (scheduler, 0u32..2, any_real()).prop_map(|(scheduler, flags, real)| VirtualServer {
            scheduler: scheduler.into(),
            flags,
            timeout: flags * 60,
            real: real.into_iter().collect(),
        })
    }

    fn at() -> ServerKey {
        ServerKey::Address(VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: IpAddr::from([10, 96, 0, 10]),
            port: 80,
        })
    }

    /// The kernel refuses what exists already and what is missing.
    fn check_possible(servers: &VirtualServers, op: &ServiceOp) {
        let server = servers.get(&op.server());
        match op {
            ServiceOp::AddVirtual(..) => assert_eq!(server, None, "{op}"),
            ServiceOp::SetVirtual(..) | ServiceOp::RemoveVirtual(_) => assert!(server.is_some(), "{op}"),
            ServiceOp::AddReal(_, real, _) => {
                assert!(server.is_some_and(|s| !s.real.contains(real)), "{op}")
            }
            ServiceOp::SetReal(_, real, _)
            | ServiceOp::DrainReal(_, real)
            | ServiceOp::RemoveReal(_, real) => {
                assert!(server.is_some_and(|s| s.real.contains(real)), "{op}")
            }
        }
    }

    proptest! {
        #[test]
        fn the_difference_leads_there(
            wanted in proptest::option::of(any_server()), before in proptest::option::of(any_server()), drain in any::<bool>()
        ) {
            let wanted = wanted.map(|mut w| {
                w.real.change(|real| real.values_mut().for_each(|r| r.masquerade = true));
                w
            });
            let mut kernel: VirtualServers = before.clone().map(|b| (at(), b)).into_iter().collect();
            let mut ops = Vec::new();
            diff_server(at(), wanted.as_ref(), before.as_ref(), drain, &mut ops);
            let both = |s: &Option<VirtualServer>| s.as_ref().is_some_and(|s| !s.real.is_empty());
            for op in &ops {
                check_possible(&kernel, op);
                carry_out(std::iter::once(op), &mut kernel);
                let empty = kernel.get(&at()).is_none_or(|s| s.real.is_empty());
                prop_assert!(!(both(&wanted) && both(&before) && empty), "{op} leaves no real server");
            }
            let mut after = kernel.get(&at()).cloned();
            if let (Some(after), Some(wanted)) = (&mut after, &wanted) {
                let left = |real: &SocketAddr| !wanted.real.contains(real);
                prop_assert!(after.real.iter().all(|(a, r)| !left(&a) || drain && r.weight == 0));
                after.real.change(|real| real.retain(|real, _| !left(real)));
            }
            prop_assert_eq!(&after, &wanted);
            let mut again = Vec::new();
            diff_server(at(), wanted.as_ref(), kernel.get(&at()), drain, &mut again);
            prop_assert_eq!(again, Vec::new(), "a second pass finds nothing to do");
        }
    }

    #[test]
    fn operations_read_like_sentences() {
        let real = "10.5.1.2:8080".parse().unwrap();
        let settings = Settings {
            scheduler: "rr".into(),
            flags: 0,
            timeout: 0,
        };
        let op = ServiceOp::AddVirtual(at(), settings);
        assert_eq!(op.to_string(), "add virtual server TCP 10.96.0.10:80 rr");
        let op = ServiceOp::RemoveReal(at(), real);
        assert_eq!(
            op.to_string(),
            "remove real server 10.5.1.2:8080 from TCP 10.96.0.10:80"
        );
        assert!(op.is_removal() && !ServiceOp::DrainReal(at(), real).is_removal());
    }
}
