//! From the virtual servers that a kernel has to those that it should have.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use flannel_model::{Ipv4Subnet, VirtualAddress};

use super::ipvs::{RealServer, VirtualServer};

/// One change of IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceOp {
    /// Add a virtual server without real servers.
    AddVirtual {
        /// Its identity.
        at: VirtualAddress,
        /// Name of its scheduler.
        scheduler: String,
        /// `IP_VS_SVC_F_*` flags.
        flags: u32,
        /// Seconds for which a client keeps its real server.
        timeout: u32,
    },
    /// Change scheduler and flags of a virtual server.
    SetVirtual {
        /// Its identity.
        at: VirtualAddress,
        /// Name of its new scheduler.
        scheduler: String,
        /// New `IP_VS_SVC_F_*` flags.
        flags: u32,
        /// Seconds for which a client keeps its real server.
        timeout: u32,
    },
    /// Remove a virtual server with its real servers.
    RemoveVirtual {
        /// Its identity.
        at: VirtualAddress,
    },
    /// Add a real server that is reached by address translation.
    AddReal {
        /// The virtual server.
        at: VirtualAddress,
        /// The real server.
        real: SocketAddr,
        /// Its weight.
        weight: u32,
    },
    /// Give a real server another weight and address translation.
    SetReal {
        /// The virtual server.
        at: VirtualAddress,
        /// The real server.
        real: SocketAddr,
        /// Its new weight.
        weight: u32,
    },
    /// Remove a real server. Its connections end.
    RemoveReal {
        /// The virtual server.
        at: VirtualAddress,
        /// The real server.
        real: SocketAddr,
    },
}

impl fmt::Display for ServiceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddVirtual { at, scheduler, .. } => write!(f, "add virtual server {at} {scheduler}"),
            Self::SetVirtual { at, scheduler, .. } => write!(f, "change virtual server {at} to {scheduler}"),
            Self::RemoveVirtual { at } => write!(f, "remove virtual server {at}"),
            Self::AddReal { at, real, weight } => write!(f, "add real server {real} weight {weight} to {at}"),
            Self::SetReal { at, real, weight } => {
                write!(f, "change real server {real} of {at} to weight {weight}")
            }
            Self::RemoveReal { at, real } => write!(f, "remove real server {real} from {at}"),
        }
    }
}

/// Virtual servers by their identity.
pub type VirtualServers = BTreeMap<VirtualAddress, VirtualServer>;

/// The changes that lead from `observed` to `desired`.
///
/// Only virtual servers whose address lies inside `owned` are considered, on either side; all others are somebody else's.
/// What is already as it should be is adopted. Superfluous virtual servers go first; then, one virtual server after the
/// other, it comes before its real servers and the new ones of these before the removal of old ones, so that a virtual
/// server that has a successor for its real servers is never without any.
pub fn diff_services(
    desired: &VirtualServers,
    observed: &VirtualServers,
    owned: &[Ipv4Subnet],
) -> Vec<ServiceOp> {
    let ours = |at: &VirtualAddress| is_inside(at, owned);
    let superfluous = observed.keys().filter(|at| ours(at) && !desired.contains_key(at));
    let mut ops: Vec<ServiceOp> = superfluous
        .map(|at| ServiceOp::RemoveVirtual { at: *at })
        .collect();
    for (at, wanted) in desired.iter().filter(|(at, _)| ours(at)) {
        let found = observed.get(at);
        ops.extend(virtual_op(*at, wanted, found));
        static NONE: BTreeMap<SocketAddr, RealServer> = BTreeMap::new();
        diff_real(*at, &wanted.real, found.map_or(&NONE, |f| &f.real), &mut ops);
    }
    ops
}

/// Whether the address of a virtual server lies inside one of `cidrs`.
pub fn is_inside(at: &VirtualAddress, cidrs: &[Ipv4Subnet]) -> bool {
    matches!(at.address, IpAddr::V4(ip) if cidrs.iter().any(|c| c.holds(ip)))
}

fn virtual_op(
    at: VirtualAddress,
    wanted: &VirtualServer,
    found: Option<&VirtualServer>,
) -> Option<ServiceOp> {
    let (scheduler, flags, timeout) = (wanted.scheduler.clone(), wanted.flags, wanted.timeout);
    match found {
        None => Some(ServiceOp::AddVirtual {
            at,
            scheduler,
            flags,
            timeout,
        }),
        Some(found) if (&found.scheduler, found.flags, found.timeout) == (&scheduler, flags, timeout) => None,
        Some(_) => Some(ServiceOp::SetVirtual {
            at,
            scheduler,
            flags,
            timeout,
        }),
    }
}

fn diff_real(
    at: VirtualAddress,
    wanted: &BTreeMap<SocketAddr, RealServer>,
    found: &BTreeMap<SocketAddr, RealServer>,
    ops: &mut Vec<ServiceOp>,
) {
    for (real, RealServer { weight, .. }) in wanted.iter().filter(|(real, _)| !found.contains_key(real)) {
        ops.push(ServiceOp::AddReal {
            at,
            real: *real,
            weight: *weight,
        });
    }
    for (real, wanted) in wanted {
        if found.get(real).is_some_and(|found| found != wanted) {
            ops.push(ServiceOp::SetReal {
                at,
                real: *real,
                weight: wanted.weight,
            });
        }
    }
    for real in found.keys().filter(|real| !wanted.contains_key(real)) {
        ops.push(ServiceOp::RemoveReal { at, real: *real });
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;
    use flannel_model::ServiceProtocol;

    fn any_real() -> impl Strategy<Value = BTreeMap<SocketAddr, RealServer>> {
        let address = (1u8..5).prop_map(|n| SocketAddr::from(([10, 5, 1, n], 8080)));
        let real =
            (0u32..3, any::<bool>()).prop_map(|(weight, masquerade)| RealServer { weight, masquerade });
        btree_map(address, real, 0..4)
    }

    /// Virtual servers of which some lie inside 10.96.0.0/16 and some outside.
    fn any_servers() -> impl Strategy<Value = VirtualServers> {
        let protocol = prop_oneof![Just(ServiceProtocol::Tcp), Just(ServiceProtocol::Udp)];
        let at = (protocol, 96u8..98, 1u8..4).prop_map(|(protocol, b, d)| VirtualAddress {
            protocol,
            address: IpAddr::from([10, b, 0, d]),
            port: 80,
        });
        let server = (prop_oneof![Just("rr"), Just("lc")], 0u32..2, any_real()).prop_map(
            |(scheduler, flags, real)| VirtualServer {
                scheduler: scheduler.into(),
                flags,
                timeout: flags * 60,
                real,
            },
        );
        btree_map(at, server, 0..6)
    }

    fn as_desired(mut servers: VirtualServers) -> VirtualServers {
        servers
            .values_mut()
            .flat_map(|s| s.real.values_mut())
            .for_each(|r| r.masquerade = true);
        servers
    }

    /// What the kernel does: it refuses what exists already and what is missing.
    fn carry_out(servers: &mut VirtualServers, op: &ServiceOp) {
        match op.clone() {
            ServiceOp::AddVirtual {
                at,
                scheduler,
                flags,
                timeout,
            } => {
                let new = VirtualServer {
                    scheduler,
                    flags,
                    timeout,
                    real: BTreeMap::new(),
                };
                assert_eq!(servers.insert(at, new), None, "{op}");
            }
            ServiceOp::SetVirtual {
                at,
                scheduler,
                flags,
                timeout,
            } => {
                let server = servers.get_mut(&at).expect("exists");
                (server.scheduler, server.flags, server.timeout) = (scheduler, flags, timeout);
            }
            ServiceOp::RemoveVirtual { at } => assert!(servers.remove(&at).is_some(), "{op}"),
            ServiceOp::AddReal { at, real, weight } => {
                let new = RealServer {
                    weight,
                    masquerade: true,
                };
                assert_eq!(
                    servers.get_mut(&at).expect("exists").real.insert(real, new),
                    None,
                    "{op}"
                );
            }
            ServiceOp::SetReal { at, real, weight } => {
                *servers
                    .get_mut(&at)
                    .expect("exists")
                    .real
                    .get_mut(&real)
                    .expect("exists") = RealServer {
                    weight,
                    masquerade: true,
                };
            }
            ServiceOp::RemoveReal { at, real } => {
                assert!(
                    servers.get_mut(&at).expect("exists").real.remove(&real).is_some(),
                    "{op}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn the_difference_leads_there_and_touches_nothing_else(wanted in any_servers(), before in any_servers()) {
            let owned = ["10.96.0.0/16".parse().unwrap()];
            let wanted = as_desired(wanted);
            let mut kernel = before.clone();
            for op in diff_services(&wanted, &before, &owned) {
                carry_out(&mut kernel, &op);
                for (at, server) in &kernel {
                    let (b, w) = (before.get(at), wanted.get(at));
                    let both = b.is_some_and(|b| !b.real.is_empty()) && w.is_some_and(|w| !w.real.is_empty());
                    prop_assert!(!both || !server.real.is_empty(), "{op} leaves {at} without a real server");
                }
            }
            for (at, server) in &kernel {
                let expected = if is_inside(at, &owned) { wanted.get(at) } else { before.get(at) };
                prop_assert_eq!(Some(server), expected);
            }
            let inside = |s: &VirtualServers| s.keys().filter(|at| is_inside(at, &owned)).count();
            prop_assert_eq!(inside(&kernel), inside(&wanted));
            prop_assert_eq!(kernel.len() - inside(&kernel), before.len() - inside(&before));
            prop_assert_eq!(diff_services(&wanted, &kernel, &owned), Vec::new(), "a second pass finds nothing to do");
        }
    }

    #[test]
    fn operations_read_like_sentences() {
        let at = VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: IpAddr::from([10, 96, 0, 10]),
            port: 80,
        };
        let real = "10.5.1.2:8080".parse().unwrap();
        let op = ServiceOp::AddVirtual {
            at,
            scheduler: "rr".into(),
            flags: 0,
            timeout: 0,
        };
        assert_eq!(op.to_string(), "add virtual server TCP 10.96.0.10:80 rr");
        let op = ServiceOp::RemoveReal { at, real };
        assert_eq!(
            op.to_string(),
            "remove real server 10.5.1.2:8080 from TCP 10.96.0.10:80"
        );
    }
}
