//! One pass over the overlay: observe, compare, apply.

use std::path::PathBuf;

use flannel_model::Ipv4Subnet;
use flannel_netlink::monitor::Change;
use flannel_netlink::{NetlinkError, RouteConn, link};
use flannel_plan::{Device, Op, OverlayFacts, desired_overlay, diff_overlay};

use crate::kernel;
use crate::reconciler::Report;
use crate::said::chain;

/// The world as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Our subnet.
    pub own: Ipv4Subnet,
    /// What the overlay is made from.
    pub overlay: OverlayFacts,
}

/// What a pass found and did.
#[derive(Debug)]
pub struct Pass {
    /// How it ended.
    pub report: Report,
    /// The writes that succeeded.
    pub done: Vec<Op>,
    /// What failed, with the kernel's reason.
    pub problems: Vec<String>,
}

/// Compares the kernel with the facts and writes the difference. A failed write stops no other.
pub fn reconcile(facts: &Facts) -> Pass {
    let desired = desired_overlay(&facts.overlay);
    let report = Report {
        own: facts.own,
        device_up: false,
        ifindex: None,
        mtu: desired.link.mtu,
        peers: facts.overlay.peers.len(),
        failed: 0,
    };
    let mut pass = Pass {
        report,
        done: Vec::new(),
        problems: Vec::new(),
    };
    if let Err(error) = write_difference(&desired, &mut pass) {
        pass.problems.push(chain(&error));
    }
    pass.report.failed = pass.problems.len();
    pass
}

fn write_difference(desired: &flannel_plan::DesiredOverlay, pass: &mut Pass) -> Result<(), NetlinkError> {
    let device = desired.link.device;
    let mut conn = RouteConn::open()?;
    let observed = kernel::observe(&mut conn, device)?;
    let ops = diff_overlay(desired, &observed);
    let mut link_failed = false;
    for (op, result) in kernel::apply(&mut conn, &ops) {
        match result {
            Ok(()) => pass.done.push(op),
            Err(error) => {
                link_failed |= op.is_link();
                pass.problems.push(chain(&error));
            }
        }
    }
    let link = link::by_name(&mut conn, &device.to_string())?;
    pass.report.ifindex = link.map(|link| link.ifindex);
    pass.report.device_up = !link_failed && pass.report.ifindex.is_some();
    refuse_router_advertisements(device);
    Ok(())
}

/// Router advertisements inside the overlay are nobody's business: a pod could give the node a default route by one.
fn refuse_router_advertisements(device: Device) {
    let file = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"));
    // Without IPv6 there is no such file, and nothing to refuse.
    if std::fs::read_to_string(&file).is_ok_and(|value| value.trim() != "0")
        && let Err(error) = std::fs::write(&file, "0")
    {
        tracing::warn!(file = %file.display(), %error, "router advertisements on the overlay cannot be refused");
    }
}

/// Whether a change in the kernel may have touched what is ours. `device` is the index that our device had in the last pass.
pub fn concerns(change: &Change, device: Option<u32>) -> bool {
    match change {
        // A new device may have taken an old index, and the underlay is a device as well.
        Change::Link { .. } | Change::Address { .. } | Change::Overrun => true,
        Change::Route {
            deleted,
            ifindex,
            ours,
        } => *deleted && (*ours || ifindex.is_some() && *ifindex == device),
        Change::Neighbour { deleted, ifindex, .. } => *deleted && Some(*ifindex) == device,
    }
}
