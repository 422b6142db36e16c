//! From the overlay that a kernel has to the one that it should have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{IpSubnet, Mac};

use crate::op::Op;
use crate::vxlan::{DesiredOverlay, Device, VxlanLink};

/// The number that marks our routes (the kernel's `rtm_protocol`).
pub const OUR_PROTOCOL: u8 = 70;
/// The number of flannel's routes (RTPROT_BOOT), which it shares with routes made by hand.
const PROTOCOL_BOOT: u8 = 3;

/// What a kernel has on and about the device `flannel.<VNI>` or `flannel-v6.<VNI>`, in the device's family. Everything is empty when there is no such device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedOverlay {
    /// The device of that name, of whatever kind.
    pub link: Option<ObservedLink>,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The permanent entries of its forwarding table that have an outer destination of the family and
    /// nothing special.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// The unicast routes of table main whose only device it is.
    pub routes: Vec<ObservedRoute>,
}

/// The device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// What makes it a VXLAN device; `None` when it is something else.
    pub vxlan: Option<ObservedVxlan>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Set up.
    pub up: bool,
}

/// What makes a VXLAN device what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// VXLAN network identifier.
    pub id: u32,
    /// Index of the interface that carries it.
    pub underlay: Option<u32>,
    /// Source address of outer packets.
    pub local: Option<IpAddr>,
    /// UDP port.
    pub port: u16,
    /// It learns source addresses.
    pub learning: bool,
    /// It carries the group policy extension.
    pub gbp: bool,
}

/// A route over the device as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedRoute {
    /// Where to.
    pub destination: IpSubnet,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// The gateway is taken to be on the link.
    pub onlink: bool,
    /// Who made it.
    pub protocol: u8,
    /// Its priority; 0 for the family's default.
    pub metric: u32,
}

impl ObservedRoute {
    /// Whether we may change or delete it: it bears our mark, or it is exactly what flannel makes.
    pub fn is_ours(&self) -> bool {
        let of_flannel = self.protocol == PROTOCOL_BOOT
            && self.metric == 0
            && self.onlink
            && self.gateway == Some(self.destination.network());
        self.protocol == OUR_PROTOCOL || of_flannel
    }
}

/// The changes that lead from `observed` to `desired`, in the order in which they are to be made.
///
/// What is as it should be is adopted. Superfluous entries go first: a route before its FDB entry and neighbour. New ones
/// come in the order FDB entry, neighbour, route, so that no packet takes a way whose end is unknown; and a peer's old
/// FDB entry goes only when its neighbour has the new address.
///
/// Never changed: routes that are neither marked nor of flannel's shape, addresses outside the network, and whatever the
/// observation leaves out (learned neighbours, FDB entries without a destination).
pub fn diff_overlay(desired: &DesiredOverlay, observed: &ObservedOverlay) -> Vec<Op> {
    let link = link_ops(&desired.link, observed.link.as_ref());
    let fresh = link.iter().any(|op| matches!(op, Op::LinkCreate(_)));
    let forgets_neighbours = link.iter().any(|op| matches!(op, Op::LinkSetMac { .. }));
    let mut ops = link;
    // A new device has nothing on it, whatever the old one had.
    let nothing = ObservedOverlay::default();
    let observed = if fresh { &nothing } else { observed };
    let mut changes = Changes {
        device: desired.link.device,
        desired,
        observed,
        ops: &mut ops,
    };
    changes.addresses();
    let late = changes.superfluous(forgets_neighbours);
    changes.missing(forgets_neighbours);
    ops.extend(late);
    ops
}

/// Brings the device itself in order.
fn link_ops(wanted: &VxlanLink, observed: Option<&ObservedLink>) -> Vec<Op> {
    let device = wanted.device;
    let create = [Op::LinkCreate(*wanted), Op::LinkUp { device }];
    let Some(link) = observed else {
        return create.into();
    };
    let vxlan = match adoptable(wanted, link) {
        Ok(vxlan) => vxlan,
        Err(reason) => {
            let mut ops = vec![Op::LinkDelete { device, reason }];
            ops.extend(create);
            return ops;
        }
    };
    let mut ops = Vec::new();
    if link.mac != Some(wanted.mac) {
        ops.push(Op::LinkSetMac {
            device,
            mac: wanted.mac,
        });
    }
    if link.mtu != wanted.mtu {
        ops.push(Op::LinkSetMtu {
            device,
            mtu: wanted.mtu,
        });
    }
    if vxlan.learning != wanted.learning {
        ops.push(Op::LinkSetLearning {
            device,
            learning: wanted.learning,
        });
    }
    if vxlan.local != Some(wanted.local) {
        ops.push(Op::LinkSetLocal {
            device,
            local: wanted.local,
        });
    }
    if !link.up {
        ops.push(Op::LinkUp { device });
    }
    ops
}

/// Whether the device can be turned into the wanted one while it stands. The kernel refuses to change the rest
/// (`vxlan_nl2conf`, drivers/net/vxlan/vxlan_core.c).
fn adoptable<'a>(wanted: &VxlanLink, link: &'a ObservedLink) -> Result<&'a ObservedVxlan, String> {
    let vxlan = link
        .vxlan
        .as_ref()
        .ok_or_else(|| "it is not a VXLAN device".to_owned())?;
    let index = |underlay: Option<u32>| underlay.map_or_else(|| "none".to_owned(), |i| i.to_string());
    let mut reasons = Vec::new();
    if vxlan.id != wanted.id {
        reasons.push(format!("VNI is {}, not {}", vxlan.id, wanted.id));
    }
    if vxlan.underlay != Some(wanted.underlay) {
        reasons.push(format!(
            "underlay is link {}, not {}",
            index(vxlan.underlay),
            wanted.underlay
        ));
    }
    if vxlan.port != wanted.port {
        reasons.push(format!("port is {}, not {}", vxlan.port, wanted.port));
    }
    if vxlan.gbp != wanted.gbp {
        let (is, wanted) = if vxlan.gbp { ("on", "off") } else { ("off", "on") };
        reasons.push(format!("GBP is {is}, not {wanted}"));
    }
    if reasons.is_empty() {
        Ok(vxlan)
    } else {
        Err(reasons.join(", "))
    }
}

struct Changes<'a> {
    device: Device,
    desired: &'a DesiredOverlay,
    observed: &'a ObservedOverlay,
    ops: &'a mut Vec<Op>,
}

impl Changes<'_> {
    /// The new address comes before old ones go: a device without any address loses its routes (`fib_disable_ip`).
    fn addresses(&mut self) {
        let device = self.device;
        let wanted = (self.desired.address, self.device.family.bits());
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

    /// Deletes what is ours and not wanted; gives back the deletions that have to wait for the additions.
    fn superfluous(&mut self, forgets_neighbours: bool) -> Vec<Op> {
        let device = self.device;
        let (desired, observed) = (self.desired, self.observed);
        let unwanted = |r: &&ObservedRoute| {
            r.is_ours() && (r.metric != 0 || !desired.routes.contains_key(&r.destination))
        };
        let routes = observed.routes.iter().filter(unwanted);
        self.ops.extend(routes.map(|route| Op::RouteDelete {
            device,
            route: *route,
        }));

        // Addresses of peers that stay: frames to them are on their way until the neighbour has its new address.
        let in_use: BTreeSet<Mac> = observed
            .neighbours
            .iter()
            .filter(|(address, _)| desired.neighbours.contains_key(address))
            .map(|(_, mac)| *mac)
            .collect();
        let unwanted = observed
            .fdb
            .iter()
            .filter(|(mac, _)| !desired.fdb.contains_key(mac));
        let (late, early): (Vec<_>, Vec<_>) = unwanted.partition(|(mac, _)| in_use.contains(mac));
        let deletion = |(mac, dst): (&Mac, &IpAddr)| Op::FdbDelete {
            device,
            mac: *mac,
            dst: *dst,
        };
        self.ops.extend(early.into_iter().map(deletion));

        if !forgets_neighbours {
            let unwanted = observed
                .neighbours
                .keys()
                .filter(|a| !desired.neighbours.contains_key(a));
            self.ops.extend(unwanted.map(|address| Op::NeighbourDelete {
                device,
                address: *address,
            }));
        }
        late.into_iter().map(deletion).collect()
    }

    /// Adds what is wanted and not there.
    fn missing(&mut self, forgets_neighbours: bool) {
        let device = self.device;
        let (desired, observed) = (self.desired, self.observed);
        let fdb = desired
            .fdb
            .iter()
            .filter(|(mac, dst)| observed.fdb.get(mac) != Some(dst));
        self.ops.extend(fdb.map(|(mac, dst)| Op::FdbReplace {
            device,
            mac: *mac,
            dst: *dst,
        }));

        let stands = |address, mac| !forgets_neighbours && observed.neighbours.get(address) == Some(mac);
        let neighbours = desired
            .neighbours
            .iter()
            .filter(|(address, mac)| !stands(address, mac));
        let replacement = |(address, mac): (&IpAddr, &Mac)| Op::NeighbourReplace {
            device,
            address: *address,
            mac: *mac,
        };
        self.ops.extend(neighbours.map(replacement));

        // One route each: the kernel has at most one with a destination and a metric.
        let present: BTreeMap<IpSubnet, &ObservedRoute> = observed
            .routes
            .iter()
            .filter(|r| r.metric == 0)
            .map(|r| (r.destination, r))
            .collect();
        for (destination, gateway) in &desired.routes {
            let present = present.get(destination).copied();
            self.ops.extend(route_op(device, *destination, *gateway, present));
        }
    }
}

/// The change, if any, that makes the route to `destination` what it should be.
fn route_op(
    device: Device,
    destination: IpSubnet,
    gateway: IpAddr,
    present: Option<&ObservedRoute>,
) -> Option<Op> {
    let Some(present) = present else {
        return Some(Op::RouteAdd {
            device,
            destination,
            gateway,
        });
    };
    let right_way = present.gateway == Some(gateway) && present.onlink;
    match (right_way, present.is_ours()) {
        // Somebody else's route that leads the right way serves as well as ours.
        (true, false) => None,
        (true, true) if present.protocol == OUR_PROTOCOL => None,
        // Flannel's own becomes ours, with no moment without a route.
        (_, true) => Some(Op::RouteReplace {
            device,
            destination,
            gateway,
        }),
        // The kernel will refuse it, which tells the operator of the foreign route.
        (false, false) => Some(Op::RouteAdd {
            device,
            destination,
            gateway,
        }),
    }
}
