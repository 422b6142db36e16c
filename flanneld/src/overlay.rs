//! One pass over the overlays of all families: observe, compare, apply.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_model::{Families, IpFamily, LeaseKey};
use flannel_netlink::overlay::{Written, observe, observe_wireguard};
use flannel_netlink::{NetlinkError, RouteConn, link, sysctl};
use flannel_plan::{DesiredOverlay, Device, LinkKind, Op, diff_overlay};
use tokio::time::Instant;

use crate::fights::Fights;
use crate::kernel;
use crate::reconciler::Report;
use crate::said::chain;
use crate::settings;
use crate::udp::UdpFacts;
use crate::wireguard;

mod steps;

pub use steps::{Stand, Step, Steps};

/// The world as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Our lease.
    pub own: LeaseKey,
    /// Our address of each family.
    pub addresses: Vec<IpAddr>,
    /// Addresses of the other nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// What the udp backend's data path needs, for a network with that backend.
    pub udp: Option<UdpFacts>,
    /// The interfaces that carry everything, by their indices.
    pub carriers: BTreeSet<u32>,
    /// The overlay that each family should have.
    pub overlays: Families<DesiredOverlay, DesiredOverlay>,
    /// How they came about.
    pub steps: Steps,
}

impl Facts {
    /// The overlays, IPv4 first.
    pub fn overlays(&self) -> impl Iterator<Item = &DesiredOverlay> {
        self.overlays.ipv4().into_iter().chain(self.overlays.ipv6())
    }

    /// Peers that have a way, in the family that has more of them.
    pub fn peers(&self) -> usize {
        self.overlays().map(|overlay| overlay.peers).max().unwrap_or(0)
    }

    /// The overlay of a family; `None` when the network does not have it.
    pub fn overlay(&self, family: IpFamily) -> Option<&DesiredOverlay> {
        match family {
            IpFamily::V4 => self.overlays.ipv4(),
            IpFamily::V6 => self.overlays.ipv6(),
        }
    }
}

/// What passes remember.
#[derive(Debug, Default)]
pub struct Memory {
    /// What earlier passes wrote into WireGuard devices.
    pub written: Written,
    /// Where former values of kernel settings are noted.
    pub notes: Option<PathBuf>,
    /// What it shares with repairs of single objects, which do not wait for a pass.
    pub shared: Shared,
}

/// What passes and repairs of single objects both know. Each looks only for a moment.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Common>>);

/// See [`Shared`].
#[derive(Debug, Default)]
pub struct Common {
    /// Who keeps changing what is ours.
    pub fights: Fights,
    /// Kernel settings that cannot be written; each is told once.
    pub refused: BTreeSet<String>,
    /// Repairs since the last pass began: what it finds done when it comes to it is done.
    repaired: Vec<Op>,
}

impl Shared {
    /// Looks.
    pub fn lock(&self) -> MutexGuard<'_, Common> {
        // Whoever panicked left numbers behind and no half-made structure.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a failed write has failed because a repair was faster.
    fn was_done(&self, op: &Op, error: &NetlinkError) -> bool {
        error.is_exists() && self.lock().repaired.contains(op)
    }
}

/// Why a pass is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The world changed: what is written is news.
    Facts,
    /// The kernel may have changed, or it is time to look: what is written is a repair.
    Audit,
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

/// Compares the kernel with the facts and writes the difference. A failed write stops no other, and the families do not wait
/// for each other.
pub fn reconcile(facts: &Facts, cause: Cause, memory: &mut Memory) -> Pass {
    let report = Report {
        own: facts.own,
        devices_up: true,
        devices: Vec::new(),
        // Pods have one MTU for both families.
        mtu: facts.overlays().map(|overlay| overlay.mtu).min().unwrap_or(0),
        peers: facts.peers(),
        failed: 0,
        fights: Vec::new(),
    };
    let mut pass = Pass {
        report,
        done: Vec::new(),
        problems: Vec::new(),
    };
    memory.shared.lock().repaired.clear();
    for overlay in facts.overlays() {
        if let Err(error) = write_difference(overlay, cause, memory, &mut pass) {
            pass.problems.push(chain(&error));
            pass.report.devices_up = false;
        }
    }
    pass.report.failed = pass.problems.len();
    pass.report.fights = memory.shared.lock().fights.told();
    pass
}

/// Carries out the operations for single peers, of one family each, without looking at anything else. What failed is told in words;
/// then the kernel is not as it was thought to be.
///
/// # Errors
/// When the kernel cannot be asked at all.
pub fn write_few(of_families: &[Vec<Op>], memory: &mut Memory) -> Result<Vec<String>, NetlinkError> {
    let mut conn = RouteConn::open()?;
    let mut problems = Vec::new();
    for ops in of_families.iter().filter(|ops| !ops.is_empty()) {
        for (op, result) in kernel::apply(&mut conn, ops) {
            match result {
                Ok(()) => wireguard::remember(&mut memory.written, &op),
                Err(error) => problems.push(chain(&error)),
            }
        }
    }
    Ok(problems)
}

/// Carries out repairs of single objects, without looking at anything else, on devices with these indices. Answers those that were
/// made; what fails is left to the next pass.
pub fn repair(conn: &mut RouteConn, ops: Vec<Op>, devices: &[(Device, u32)], shared: &Shared) -> Vec<Op> {
    let admitted = {
        let mut common = shared.lock();
        let now = Instant::now();
        let admitted: Vec<Op> = ops
            .into_iter()
            .filter(|op| common.fights.admits(op, now))
            .collect();
        common.repaired.extend(admitted.iter().cloned());
        admitted
    };
    let results = kernel::apply_on(conn, &admitted.iter().collect::<Vec<_>>(), devices);
    let made: Vec<Op> = results
        .into_iter()
        .filter_map(|(op, result)| result.is_ok().then_some(op))
        .collect();
    note_repairs(&made, shared);
    made
}

/// Counts repairs, and says of which somebody undoes them again and again.
pub fn note_repairs<'a>(ops: impl IntoIterator<Item = &'a Op>, shared: &Shared) {
    let now = Instant::now();
    let mut common = shared.lock();
    for op in ops {
        if common.fights.repaired(op, now) {
            tracing::warn!(
                "somebody undoes `{op}` again and again (another flanneld, NetworkManager, systemd-networkd?); it is repaired \
                 less often from now on"
            );
        }
    }
}

fn write_difference(
    desired: &DesiredOverlay,
    cause: Cause,
    memory: &mut Memory,
    pass: &mut Pass,
) -> Result<(), NetlinkError> {
    let mut conn = RouteConn::open()?;
    let mut observed = observe(&mut conn, desired)?;
    observed.wireguard = observe_wireguard(desired, &memory.written)?;
    let mut ops = diff_overlay(desired, &observed);
    if cause == Cause::Audit {
        let now = Instant::now();
        let mut common = memory.shared.lock();
        common.fights.forget_old(now);
        ops.retain(|op| common.fights.admits(op, now));
    }
    let already = pass.done.len();
    note_side_effects(&ops, memory.notes.as_deref());
    let mut link_failed = false;
    for (op, result) in kernel::apply(&mut conn, &ops) {
        match result {
            Ok(()) => {
                wireguard::remember(&mut memory.written, &op);
                pass.done.push(op);
            }
            Err(error) if memory.shared.was_done(&op, &error) => {}
            Err(error) => {
                link_failed |= op.is_link();
                pass.problems.push(chain(&error));
            }
        }
    }
    if cause == Cause::Audit {
        note_repairs(&pass.done[already..], &memory.shared);
    }
    let Some(device) = desired.device() else {
        return Ok(());
    };
    let link = link::by_name(&mut conn, &device.to_string())?;
    pass.report.devices_up &= !link_failed && link.is_some();
    pass.report
        .devices
        .extend(link.map(|link| (device, link.ifindex)));
    // Those of a device that was made just now were not seen.
    let kept = settings::keep(device, cause, &memory.shared);
    pass.done.extend(kept);
    Ok(())
}

/// The kernel turns redirects off for the whole host when a WireGuard device goes up (`wg_open`, drivers/net/wireguard/device.c).
fn note_side_effects(ops: &[Op], notes: Option<&Path>) {
    const REDIRECTS: &str = "net/ipv4/conf/all/send_redirects";
    let makes_wireguard = |op: &Op| matches!(op, Op::LinkCreate(link) if link.kind == LinkKind::Wireguard);
    let before = std::fs::read_to_string(Path::new("/proc/sys").join(REDIRECTS));
    if let (Some(notes), Ok(before)) = (notes, before)
        && ops.iter().any(makes_wireguard)
        && before.trim() != "0"
    {
        // Without a note the setting has no way back, which is no reason to have no tunnel.
        let _ = sysctl::note(notes, REDIRECTS, before.trim(), "0");
    }
}
