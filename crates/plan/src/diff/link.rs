//! Brings the tunnel device itself in order.

use crate::device::Device;
use crate::observed::{ObservedIpip, ObservedKind, ObservedLink, ObservedVxlan};
use crate::op::Op;
use crate::overlay::{IpipLink, LinkKind, TunnelLink, VxlanLink};

/// The changes that make the device what it should be.
pub(super) fn ops(wanted: &TunnelLink, observed: Option<&ObservedLink>) -> Vec<Op> {
    let device = wanted.device;
    let create = [Op::LinkCreate(*wanted), Op::LinkUp { device }];
    let Some(link) = observed else {
        return create.into();
    };
    let of_kind = match (&wanted.kind, &link.kind) {
        (LinkKind::Vxlan(wanted), ObservedKind::Vxlan(vxlan)) => vxlan_ops(device, wanted, link, vxlan),
        (LinkKind::Ipip(wanted), ObservedKind::Ipip(ipip)) => ipip_ops(wanted, ipip),
        (LinkKind::Wireguard, ObservedKind::Wireguard) => Ok(Vec::new()),
        (LinkKind::Wireguard, _) => Err("it is not a WireGuard device".to_owned()),
        // Its name is taken by what it is; whoever opens it finds out.
        (LinkKind::Tun, _) => Ok(Vec::new()),
        (LinkKind::Vxlan(_), _) => Err("it is not a VXLAN device".to_owned()),
        (LinkKind::Ipip(_), _) => Err("it is not an IPIP device".to_owned()),
    };
    let mut ops = match of_kind {
        Ok(ops) => ops,
        Err(reason) => {
            let mut ops = vec![Op::LinkDelete { device, reason }];
            ops.extend(create);
            return ops;
        }
    };
    if link.mtu != wanted.mtu {
        ops.push(Op::LinkSetMtu {
            device,
            mtu: wanted.mtu,
        });
    }
    if !link.up {
        ops.push(Op::LinkUp { device });
    }
    ops
}

/// What can be changed while the device stands, or why it cannot be turned into the wanted one. The kernel refuses to change
/// the rest (`vxlan_nl2conf`, drivers/net/vxlan/vxlan_core.c).
fn vxlan_ops(
    device: Device,
    wanted: &VxlanLink,
    link: &ObservedLink,
    vxlan: &ObservedVxlan,
) -> Result<Vec<Op>, String> {
    adoptable(wanted, vxlan)?;
    let mut ops = Vec::new();
    if link.mac != Some(wanted.mac) {
        ops.push(Op::LinkSetMac {
            device,
            mac: wanted.mac,
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
    Ok(ops)
}

fn adoptable(wanted: &VxlanLink, vxlan: &ObservedVxlan) -> Result<(), String> {
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
        Ok(())
    } else {
        Err(reasons.join(", "))
    }
}

/// An IPIP device is made anew when its ends differ; flannel does the same.
fn ipip_ops(wanted: &IpipLink, ipip: &ObservedIpip) -> Result<Vec<Op>, String> {
    if let Some(remote) = ipip.remote {
        return Err(format!("it leads to {remote} alone"));
    }
    if ipip.local != Some(wanted.local) {
        let is = ipip
            .local
            .map_or_else(|| "any".to_owned(), |local| local.to_string());
        return Err(format!("local is {is}, not {}", wanted.local));
    }
    Ok(Vec::new())
}
