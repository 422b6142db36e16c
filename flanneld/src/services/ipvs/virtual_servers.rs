//! Virtual servers in the kernel: what is there, and the changes carried out.

use std::collections::{BTreeMap, BTreeSet};

use flannel_model::{Ipv4Subnet, VirtualAddress};
use flannel_netlink::NetlinkError;
use flannel_netlink::generic::{self, Forward, Ipvs, IpvsKey, IpvsRequest};
use flannel_plan::{RealServer, ServiceOp, VirtualServer, VirtualServers, diff_services, is_inside};

use super::Status;

/// `IP_VS_SVC_F_PERSISTENT`: the timeout counts only with it.
const PERSISTENT: u32 = 1;

/// Brings the virtual servers inside `owned` to `desired`, adopting what is there. Answers whether all removals succeeded.
pub(super) fn programme(
    ipvs: &mut Ipvs,
    desired: &VirtualServers,
    owned: &[Ipv4Subnet],
    status: &mut Status,
) -> Result<bool, NetlinkError> {
    let observed = observe(ipvs, owned)?;
    let ops = diff_services(desired, &observed, owned);
    let requests: Vec<IpvsRequest> = ops.iter().map(request).collect();
    let results = ipvs.apply(&requests);
    let ours = desired.iter().filter(|(at, _)| is_inside(at, owned));
    let objects: usize = ours.map(|(_, server)| 1 + server.real.len()).sum();
    let touched = ops.iter().filter(|op| !is_removal(op)).count();
    status.unchanged += objects.saturating_sub(touched);
    Ok(count(&ops, results, status))
}

/// The virtual servers inside `owned`, with their real servers.
fn observe(ipvs: &mut Ipvs, owned: &[Ipv4Subnet]) -> Result<VirtualServers, NetlinkError> {
    let mut observed = BTreeMap::new();
    for server in ipvs.virtual_servers()? {
        let IpvsKey::Address(at) = server.key else {
            continue;
        };
        if !is_inside(&at, owned) {
            continue;
        }
        let real = ipvs.real_servers(&server.key)?.into_iter().map(|real| {
            let masquerade = real.forward == Forward::Masquerade;
            (
                real.address,
                RealServer {
                    weight: real.weight,
                    masquerade,
                },
            )
        });
        let real = real.collect();
        observed.insert(
            at,
            VirtualServer {
                scheduler: server.scheduler,
                flags: server.flags,
                timeout: if server.flags & PERSISTENT == 0 {
                    0
                } else {
                    server.timeout
                },
                real,
            },
        );
    }
    Ok(observed)
}

/// Files the results under `status`. Of one virtual server that cannot be made only the first failure is told: those of its real
/// servers follow from it.
fn count(ops: &[ServiceOp], results: Vec<Result<(), NetlinkError>>, status: &mut Status) -> bool {
    let mut broken: BTreeSet<VirtualAddress> = BTreeSet::new();
    let mut removed_all = true;
    for (op, result) in ops.iter().zip(results) {
        match result {
            Ok(()) if is_removal(op) => status.removed += 1,
            Ok(()) => status.added += 1,
            // Somebody else removed it between our look and our request.
            Err(error) if is_removal(op) && error.is_missing() => {}
            Err(error) => {
                removed_all &= !is_removal(op);
                if !broken.contains(&subject(op)) {
                    status.fail(&error);
                }
                if matches!(op, ServiceOp::AddVirtual { .. } | ServiceOp::SetVirtual { .. }) {
                    broken.insert(subject(op));
                }
            }
        }
    }
    removed_all
}

fn is_removal(op: &ServiceOp) -> bool {
    matches!(op, ServiceOp::RemoveVirtual { .. } | ServiceOp::RemoveReal { .. })
}

fn subject(op: &ServiceOp) -> VirtualAddress {
    match op {
        ServiceOp::AddVirtual { at, .. }
        | ServiceOp::SetVirtual { at, .. }
        | ServiceOp::RemoveVirtual { at }
        | ServiceOp::AddReal { at, .. }
        | ServiceOp::SetReal { at, .. }
        | ServiceOp::RemoveReal { at, .. } => *at,
    }
}

fn request(op: &ServiceOp) -> IpvsRequest {
    let key = IpvsKey::Address(subject(op));
    let server = |scheduler: &String, flags, timeout| generic::VirtualServer {
        key,
        scheduler: scheduler.clone(),
        flags,
        timeout,
    };
    match op {
        ServiceOp::AddVirtual {
            scheduler,
            flags,
            timeout,
            ..
        } => IpvsRequest::AddVirtual(server(scheduler, *flags, *timeout)),
        ServiceOp::SetVirtual {
            scheduler,
            flags,
            timeout,
            ..
        } => IpvsRequest::SetVirtual(server(scheduler, *flags, *timeout)),
        ServiceOp::RemoveVirtual { .. } => IpvsRequest::RemoveVirtual(key),
        ServiceOp::AddReal { real, weight, .. } => {
            IpvsRequest::AddReal(key, generic::RealServer::masquerade(*real, *weight))
        }
        ServiceOp::SetReal { real, weight, .. } => {
            IpvsRequest::SetReal(key, generic::RealServer::masquerade(*real, *weight))
        }
        ServiceOp::RemoveReal { real, .. } => IpvsRequest::RemoveReal(key, *real),
    }
}
