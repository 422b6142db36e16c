//! Brings what is on and about the device in order: addresses, routes, FDB entries, neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{IpSubnet, Mac};

use crate::device::Device;
use crate::observed::{OUR_PROTOCOL, ObservedOverlay, ObservedRoute};
use crate::op::Op;
use crate::overlay::{DesiredOverlay, LinkKind, Out, Tunnel, Way};

/// What remains when the device is made anew: routes that lead elsewhere.
pub(super) fn without_device(observed: &ObservedOverlay) -> ObservedOverlay {
    let elsewhere = observed
        .routes
        .iter()
        .filter(|route| route.way.out != Out::Tunnel);
    ObservedOverlay {
        routes: elsewhere.copied().collect(),
        blackholes: observed.blackholes.clone(),
        ..ObservedOverlay::default()
    }
}

pub(super) struct Changes<'a> {
    desired: &'a DesiredOverlay,
    observed: &'a ObservedOverlay,
    forgets_neighbours: bool,
    /// Some of the wanted routes lead over no tunnel.
    makes_plain: bool,
    ops: Vec<Op>,
}

impl<'a> Changes<'a> {
    /// With `forgets_neighbours` the kernel loses the neighbours before these changes are made.
    pub(super) fn new(
        desired: &'a DesiredOverlay,
        observed: &'a ObservedOverlay,
        forgets_neighbours: bool,
    ) -> Self {
        Self {
            desired,
            observed,
            forgets_neighbours,
            makes_plain: desired.routes.values().any(|way| way.out != Out::Tunnel),
            ops: Vec::new(),
        }
    }

    pub(super) fn write(mut self, ops: &mut Vec<Op>) {
        let tunnel = self.desired.tunnel.as_ref();
        self.missing_blackholes();
        if let Some(tunnel) = tunnel {
            self.addresses(tunnel);
        }
        self.superfluous_routes();
        let late = tunnel
            .map(|tunnel| self.superfluous_entries(tunnel))
            .unwrap_or_default();
        if let Some(tunnel) = tunnel {
            self.missing_entries(tunnel);
        }
        self.missing_routes();
        self.superfluous_blackholes();
        ops.append(&mut self.ops);
        ops.extend(late);
    }

    /// The new address comes before old ones go: a device without any address loses its routes (`fib_disable_ip`).
    fn addresses(&mut self, tunnel: &Tunnel) {
        let device = tunnel.link.device;
        let wanted = (tunnel.address, self.desired.family().bits());
        if !self.observed.addresses.contains(&wanted) {
            self.ops.push(Op::AddressAdd {
                device,
                address: wanted.0,
                length: wanted.1,
            });
        }
        let leftovers = self.observed.addresses.iter();
        let leftovers = leftovers.filter(|a| **a != wanted && self.desired.network.holds(a.0));
        let deletions = leftovers.map(|(address, length)| Op::AddressDelete {
            device,
            address: *address,
            length: *length,
        });
        self.ops.extend(deletions);
    }

    /// Whether we may change or delete a route: it bears our mark, or it is exactly what flannel makes for a peer.
    pub(super) fn is_ours(&self, route: &ObservedRoute) -> bool {
        route.is_marked() || (route.is_plain_boot() && self.has_flannels_shape(route))
    }

    /// flannel's routes over a VXLAN device lead to the subnet's first address; those over an IPIP device and those over no tunnel
    /// lead to a node, and only their prefix tells them from others: a route that an operator made to exactly a peer's subnet, on
    /// a node whose backend makes such routes, is taken for flannel's.
    fn has_flannels_shape(&self, route: &ObservedRoute) -> bool {
        let kind = self.desired.tunnel.as_ref().map(|tunnel| &tunnel.link.kind);
        let Some(gateway) = route.way.gateway else {
            // The one route of a WireGuard device.
            let into_device = route.way.out == Out::Tunnel && route.destination == self.desired.network;
            return into_device && kind == Some(&LinkKind::Wireguard);
        };
        let to_a_peer = route.destination.length() == self.desired.own_subnet.length();
        match (route.way.out, kind) {
            (Out::Tunnel, Some(LinkKind::Ipip(_))) => route.way.onlink && to_a_peer,
            (Out::Tunnel, _) => route.way.onlink && gateway == route.destination.network(),
            (Out::Interface(_), _) => self.makes_plain && !route.way.onlink && to_a_peer,
        }
    }

    /// They come before all else and go after all else, so that no packet slips past them.
    fn missing_blackholes(&mut self) {
        let missing = self.desired.blackholes.difference(&self.observed.blackholes);
        self.ops.extend(missing.map(|destination| Op::BlackholeAdd {
            destination: *destination,
        }));
    }

    fn superfluous_blackholes(&mut self) {
        let superfluous = self.observed.blackholes.difference(&self.desired.blackholes);
        self.ops
            .extend(superfluous.map(|destination| Op::BlackholeDelete {
                destination: *destination,
            }));
    }

    fn superfluous_routes(&mut self) {
        let desired = self.desired;
        let unwanted = |r: &&ObservedRoute| {
            (r.metric != 0 || !desired.routes.contains_key(&r.destination)) && self.is_ours(r)
        };
        let device = desired.device();
        let deletions: Vec<Op> = self
            .observed
            .routes
            .iter()
            .filter(unwanted)
            .map(|route| Op::RouteDelete {
                device,
                route: *route,
            })
            .collect();
        self.ops.extend(deletions);
    }

    /// Deletes entries of the device that nobody needs; gives back the deletions that have to wait for the additions.
    fn superfluous_entries(&mut self, tunnel: &Tunnel) -> Vec<Op> {
        let device = tunnel.link.device;
        let observed = self.observed;
        // Peers that stay: packets to them are on their way by these entries until neighbour or route say otherwise.
        let staying: BTreeSet<IpAddr> = self.desired.routes.keys().map(IpSubnet::network).collect();
        let in_use: BTreeSet<Mac> = observed
            .neighbours
            .iter()
            .filter(|(address, _)| staying.contains(address))
            .map(|(_, mac)| *mac)
            .collect();
        let fdb = observed
            .fdb
            .iter()
            .filter(|(mac, _)| !tunnel.fdb.contains_key(mac));
        let fdb = fdb.map(|(mac, dst)| {
            let op = Op::FdbDelete {
                device,
                mac: *mac,
                dst: *dst,
            };
            (in_use.contains(mac), op)
        });
        let neighbours = observed
            .neighbours
            .keys()
            .filter(|a| !tunnel.neighbours.contains_key(a));
        let neighbours = neighbours.filter(|_| !self.forgets_neighbours).map(|address| {
            let op = Op::NeighbourDelete {
                device,
                address: *address,
            };
            (staying.contains(address), op)
        });
        let (late, early): (Vec<_>, Vec<_>) = fdb.chain(neighbours).partition(|(late, _)| *late);
        self.ops.extend(early.into_iter().map(|(_, op)| op));
        late.into_iter().map(|(_, op)| op).collect()
    }

    fn missing_entries(&mut self, tunnel: &Tunnel) {
        let device = tunnel.link.device;
        let (observed, forgotten) = (self.observed, self.forgets_neighbours);
        let fdb = tunnel
            .fdb
            .iter()
            .filter(|(mac, dst)| observed.fdb.get(mac) != Some(dst));
        self.ops.extend(fdb.map(|(mac, dst)| Op::FdbReplace {
            device,
            mac: *mac,
            dst: *dst,
        }));
        let stands = |address, mac| !forgotten && observed.neighbours.get(address) == Some(mac);
        let neighbours = tunnel
            .neighbours
            .iter()
            .filter(|(address, mac)| !stands(address, mac));
        self.ops
            .extend(neighbours.map(|(address, mac)| Op::NeighbourReplace {
                device,
                address: *address,
                mac: *mac,
            }));
    }

    fn missing_routes(&mut self) {
        let device = self.desired.device();
        // Of several to one destination the first serves; the others are somebody's that ours was put before, or the other way round.
        let mut present: BTreeMap<IpSubnet, &ObservedRoute> = BTreeMap::new();
        for route in self.observed.routes.iter().filter(|r| r.metric == 0) {
            present.entry(route.destination).or_insert(route);
        }
        for (destination, way) in &self.desired.routes {
            let present = present.get(destination).copied();
            let op = self.route_op(device, *destination, *way, present);
            if let Some(Op::RoutePrepend { .. }) = op {
                self.covered_routes(*destination);
            }
            self.ops.extend(op);
        }
    }

    /// Ours that somebody else's stands before: it serves nobody, and would be in the way of its successor.
    fn covered_routes(&mut self, destination: IpSubnet) {
        let device = self.desired.device();
        let same = |r: &&ObservedRoute| r.metric == 0 && r.destination == destination && self.is_ours(r);
        let covered: Vec<Op> = self
            .observed
            .routes
            .iter()
            .filter(same)
            .map(|route| Op::RouteDelete {
                device,
                route: *route,
            })
            .collect();
        self.ops.extend(covered);
    }

    /// The change, if any, that makes the route to `destination` what it should be.
    fn route_op(
        &self,
        device: Option<Device>,
        destination: IpSubnet,
        way: Way,
        present: Option<&ObservedRoute>,
    ) -> Option<Op> {
        let add = Op::RouteAdd {
            device,
            destination,
            way,
        };
        let Some(present) = present else {
            return Some(add);
        };
        let replace = Op::RouteReplace {
            device,
            destination,
            way,
        };
        match (present.way == way, self.is_ours(present)) {
            // Somebody else's route that leads the right way serves as well as ours.
            (true, false) => None,
            (true, true) if present.protocol == OUR_PROTOCOL => None,
            // Flannel's own becomes ours, with no moment without a route.
            (_, true) => Some(replace),
            // It may have taken the place of ours (`ip route replace`): that is put back, and theirs is not touched.
            (false, false) if destination.is_ipv4() => Some(Op::RoutePrepend {
                device,
                destination,
                way,
            }),
            // The kernel will refuse it, which tells the operator of the foreign route.
            (false, false) => Some(add),
        }
    }
}
