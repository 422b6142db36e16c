//! A model of the kernel.

use super::wireguard::{KEY, heard};
use super::*;

/// What a kernel does with an operation.
pub fn apply(kernel: &mut ObservedOverlay, op: &Op) -> Result<(), &'static str> {
    match op {
        Op::LinkDelete { .. } => {
            let before = std::mem::take(kernel);
            let elsewhere = before.routes.into_iter().filter(|r| r.way.out != Out::Tunnel);
            kernel.routes = elsewhere.collect();
            kernel.blackholes = before.blackholes;
        }
        Op::LinkCreate(link) if kernel.link.is_none() => {
            kernel.link = Some(ObservedLink {
                up: false,
                ..link_of(link)
            });
        }
        Op::LinkCreate(_) => return Err("EEXIST"),
        Op::LinkSetMac { .. }
        | Op::LinkSetMtu { .. }
        | Op::LinkSetLearning { .. }
        | Op::LinkSetLocal { .. }
        | Op::LinkUp { .. } => return apply_link(kernel, op),
        entry => return apply_entry(kernel, entry),
    }
    Ok(())
}

fn apply_link(kernel: &mut ObservedOverlay, op: &Op) -> Result<(), &'static str> {
    let link = kernel.link.as_mut().ok_or("ENODEV")?;
    match op {
        Op::LinkSetMac { mac, .. } => {
            link.mac = Some(*mac);
            kernel.neighbours.clear();
        }
        Op::LinkSetMtu { mtu, .. } => link.mtu = *mtu,
        Op::LinkSetLearning { learning, .. } => vxlan_of(link).learning = *learning,
        Op::LinkSetLocal { local, .. } => vxlan_of(link).local = Some(*local),
        Op::LinkUp { .. } => link.up = true,
        _ => return Err("not a link"),
    }
    Ok(())
}

fn apply_entry(kernel: &mut ObservedOverlay, op: &Op) -> Result<(), &'static str> {
    let at = |routes: &[ObservedRoute], d: IpSubnet| {
        routes.iter().position(|r| r.destination == d && r.metric == 0)
    };
    match op {
        Op::WireguardIdentity { port, .. } => {
            let device = kernel.wireguard.get_or_insert_default();
            (device.public, device.port) = (Some(KEY), *port);
        }
        Op::WireguardPeerSet {
            key, peer, endpoint, ..
        } => {
            let device = kernel.wireguard.as_mut().ok_or("ENODEV")?;
            // A subnet belongs to whoever got it last.
            for other in device.peers.values_mut() {
                other.allowed.retain(|subnet| !peer.allowed.contains(subnet));
            }
            let known = device.peers.get(key).and_then(|known| known.endpoint);
            let endpoint = Some(peer.endpoint).filter(|_| *endpoint).or(known);
            device.peers.insert(*key, heard(peer, endpoint));
        }
        Op::WireguardPeerRemove { key, .. } => {
            let device = kernel.wireguard.as_mut().ok_or("ENODEV")?;
            device.peers.remove(key).ok_or("ENOENT")?;
        }
        Op::AddressAdd { address, length, .. } => kernel.addresses.push((*address, *length)),
        Op::AddressDelete { address, length, .. } => {
            kernel.addresses.retain(|a| *a != (*address, *length));
            if kernel.addresses.is_empty() {
                kernel.routes.retain(|r| r.way.out != Out::Tunnel);
            }
        }
        Op::NeighbourReplace { address, mac, .. } => {
            kernel.neighbours.insert(*address, *mac);
        }
        Op::NeighbourDelete { address, .. } => {
            kernel.neighbours.remove(address).ok_or("ENOENT")?;
        }
        Op::FdbReplace { mac, dst, .. } => {
            kernel.fdb.insert(*mac, *dst);
        }
        Op::FdbDelete { mac, dst, .. } => {
            if kernel.fdb.get(mac) != Some(dst) {
                return Err("ENOENT");
            }
            kernel.fdb.remove(mac);
        }
        Op::RouteAdd { destination, .. } if at(&kernel.routes, *destination).is_some() => {
            return Err("EEXIST");
        }
        Op::RouteAdd { destination, way, .. } | Op::RouteReplace { destination, way, .. } => {
            if way.out == Out::Tunnel && !kernel.link.as_ref().is_some_and(|l| l.up) {
                return Err("ENETDOWN");
            }
            if let Some(i) = at(&kernel.routes, *destination) {
                kernel.routes.remove(i);
            }
            kernel.routes.push(ObservedRoute {
                destination: *destination,
                way: *way,
                protocol: OUR_PROTOCOL,
                metric: 0,
            });
        }
        Op::RoutePrepend { destination, way, .. } => {
            if way.out == Out::Tunnel && !kernel.link.as_ref().is_some_and(|l| l.up) {
                return Err("ENETDOWN");
            }
            let route = ObservedRoute {
                destination: *destination,
                way: *way,
                protocol: OUR_PROTOCOL,
                metric: 0,
            };
            if kernel.routes.contains(&route) {
                return Err("EEXIST");
            }
            let first = at(&kernel.routes, *destination).unwrap_or(kernel.routes.len());
            kernel.routes.insert(first, route);
        }
        Op::RouteDelete { route, .. } => {
            let i = kernel.routes.iter().position(|r| r == route).ok_or("ESRCH")?;
            kernel.routes.remove(i);
        }
        Op::BlackholeAdd { destination } if !kernel.blackholes.insert(*destination) => return Err("EEXIST"),
        Op::BlackholeDelete { destination } if !kernel.blackholes.remove(destination) => return Err("ESRCH"),
        Op::BlackholeAdd { .. } | Op::BlackholeDelete { .. } => {}
        _ => return Err("not an entry"),
    }
    Ok(())
}
