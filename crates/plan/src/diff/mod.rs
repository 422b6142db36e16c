//! From the overlay that a kernel has to the one that it should have.

mod difference;
mod entries;
mod exchange;
mod link;
#[cfg(test)]
mod tests;
mod wireguard;

pub use difference::{Difference, DifferenceKind, Object, device_setting_ops, differences};
pub use exchange::exchange_ops;

use crate::observed::ObservedOverlay;
use crate::op::Op;
use crate::overlay::{DesiredOverlay, LinkKind, Tunnel};

/// The changes that lead from `observed` to `desired`, in the order in which they are to be made.
///
/// What is as it should be is adopted. Superfluous entries go first: a route before its FDB entry and neighbour. New ones
/// come in the order FDB entry, neighbour, route, so that no packet takes a way whose end is unknown; and a peer's old
/// FDB entry goes only when its neighbour has the new address.
///
/// Never changed: routes that are neither marked nor of flannel's shape, anything outside the network, and whatever the
/// observation leaves out (learned neighbours, FDB entries without a destination).
pub fn diff_overlay(desired: &DesiredOverlay, observed: &ObservedOverlay) -> Vec<Op> {
    // Before its reader has opened it, nothing can be done about a TUN device, and nothing on it.
    let is_tun = |tunnel: &Tunnel| tunnel.link.kind == LinkKind::Tun;
    if observed.link.is_none() && desired.tunnel.as_ref().is_some_and(is_tun) {
        return Vec::new();
    }
    let mut ops = match &desired.tunnel {
        Some(tunnel) => link::ops(&tunnel.link, observed.link.as_ref()),
        None => Vec::new(),
    };
    let fresh = ops.iter().any(|op| matches!(op, Op::LinkCreate(_)));
    let forgets_neighbours = ops.iter().any(|op| matches!(op, Op::LinkSetMac { .. }));
    let emptied;
    let observed = if fresh {
        emptied = entries::without_device(observed);
        &emptied
    } else {
        observed
    };
    if let Some(tunnel) = &desired.tunnel {
        wireguard::ops(tunnel, observed.wireguard.as_ref(), &mut ops);
    }
    entries::Changes::new(desired, observed, forgets_neighbours).write(&mut ops);
    ops
}
