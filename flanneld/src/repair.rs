//! What a change in the kernel asks for: nothing, the repair of one object at once, or a look at everything. Pure.

use flannel_netlink::monitor::Change;
use flannel_netlink::neighbour::Neighbour;
use flannel_netlink::route::{DEFAULT_METRIC_V6, Route, RouteKind, TABLE_MAIN};
use flannel_netlink::{OUR_PROTOCOL, fdb::FdbEntry};
use flannel_plan::{DesiredOverlay, Device, Op, Out, Way};

use crate::overlay::Facts;

/// What is to be done about a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is none of ours, or it is what we want.
    Fine,
    /// Somebody took or changed this one object.
    Repair(Box<Op>),
    /// It may have touched more than one.
    Look,
}

/// Judges a change by what should be there. `devices` are our devices with their indices as of the last pass.
pub fn judge(change: &Change, facts: &Facts, devices: &[(Device, u32)]) -> Verdict {
    match change {
        Change::Overrun => Verdict::Look,
        Change::Link { ifindex, name, .. } => {
            let named = facts
                .overlays()
                .filter_map(DesiredOverlay::device)
                .any(|device| device.to_string() == *name);
            look_if(named || is_known(*ifindex, facts, devices))
        }
        Change::Address { ifindex, .. } => look_if(is_known(*ifindex, facts, devices)),
        Change::Route { route, deleted } => {
            let overlay = facts
                .overlays()
                .find(|overlay| overlay.network.contains(&route.destination));
            overlay.map_or(Verdict::Fine, |overlay| {
                judge_route(route, *deleted, overlay, devices)
            })
        }
        Change::Neighbour { neighbour, deleted } => on_device(neighbour.ifindex, facts, devices)
            .map(|(overlay, device)| judge_neighbour(neighbour, *deleted, overlay, device))
            .find(|verdict| *verdict != Verdict::Fine)
            .unwrap_or(Verdict::Fine),
        Change::Fdb { entry, deleted } => on_device(entry.ifindex, facts, devices)
            .map(|(overlay, device)| judge_entry(entry, *deleted, overlay, device))
            .find(|verdict| *verdict != Verdict::Fine)
            .unwrap_or(Verdict::Fine),
    }
}

fn look_if(condition: bool) -> Verdict {
    if condition { Verdict::Look } else { Verdict::Fine }
}

/// Whether a device is ours, or carries what leaves ours.
fn is_known(ifindex: u32, facts: &Facts, devices: &[(Device, u32)]) -> bool {
    devices.iter().any(|(_, index)| *index == ifindex) || facts.carriers.contains(&ifindex)
}

fn on_device<'a>(
    ifindex: u32,
    facts: &'a Facts,
    devices: &'a [(Device, u32)],
) -> impl Iterator<Item = (&'a DesiredOverlay, Device)> {
    facts.overlays().filter_map(move |overlay| {
        let device = overlay.device()?;
        devices.contains(&(device, ifindex)).then_some((overlay, device))
    })
}

fn judge_route(route: &Route, deleted: bool, overlay: &DesiredOverlay, devices: &[(Device, u32)]) -> Verdict {
    if route.table != TABLE_MAIN {
        return Verdict::Fine;
    }
    if route.kind == RouteKind::Blackhole {
        return look_if(
            overlay.blackholes.contains(&route.destination) == deleted && route.protocol == OUR_PROTOCOL,
        );
    }
    let plain = match route.destination.is_ipv4() {
        true => route.metric == 0,
        false => route.metric == DEFAULT_METRIC_V6,
    };
    let wanted = overlay.routes.get(&route.destination).filter(|_| plain);
    match (wanted, deleted) {
        (Some(way), true) => Verdict::Repair(Box::new(Op::RouteAdd {
            device: overlay.device(),
            destination: route.destination,
            way: *way,
        })),
        // A route to the same destination and with the same priority has taken the place of ours, unless it is ours.
        (Some(way), false) => look_if(!is_as_wanted(route, way, overlay, devices)),
        (None, true) => Verdict::Fine,
        (None, false) => look_if(route.protocol == OUR_PROTOCOL),
    }
}

fn is_as_wanted(route: &Route, way: &Way, overlay: &DesiredOverlay, devices: &[(Device, u32)]) -> bool {
    let out = match way.out {
        Out::Interface(index) => Some(index),
        Out::Tunnel => {
            let device = overlay.device();
            let known = devices.iter().find(|(known, _)| Some(*known) == device);
            known.map(|(_, index)| *index)
        }
    };
    route.protocol == OUR_PROTOCOL
        && route.ifindex == out
        && route.gateway == way.gateway
        && route.onlink == way.onlink
}

fn judge_neighbour(
    neighbour: &Neighbour,
    deleted: bool,
    overlay: &DesiredOverlay,
    device: Device,
) -> Verdict {
    let wanted = overlay
        .tunnel
        .as_ref()
        .and_then(|tunnel| tunnel.neighbours.get(&neighbour.address));
    match wanted {
        Some(mac) if !deleted && neighbour.permanent && neighbour.mac == Some(*mac) => Verdict::Fine,
        Some(mac) => Verdict::Repair(Box::new(Op::NeighbourReplace {
            device,
            address: neighbour.address,
            mac: *mac,
        })),
        None => look_if(!deleted && neighbour.permanent && overlay.network.holds(neighbour.address)),
    }
}

fn judge_entry(entry: &FdbEntry, deleted: bool, overlay: &DesiredOverlay, device: Device) -> Verdict {
    let wanted = overlay
        .tunnel
        .as_ref()
        .and_then(|tunnel| tunnel.fdb.get(&entry.mac));
    match wanted {
        Some(dst) if !deleted && entry.permanent && entry.plain && entry.dst == *dst => Verdict::Fine,
        // The other end of an entry that we have led elsewhere ourselves.
        Some(dst) if deleted && entry.dst != *dst => Verdict::Fine,
        Some(dst) => Verdict::Repair(Box::new(Op::FdbReplace {
            device,
            mac: entry.mac,
            dst: *dst,
        })),
        None => look_if(!deleted && entry.permanent && entry.plain),
    }
}

#[cfg(test)]
mod tests;
