//! This host as a node of the network: what etcd says of it, what its kernel has, and how the two differ. It works without the
//! daemon, by the daemon's own plan.

pub mod expected;
pub mod filter;
mod kernel;
mod own;
mod rules;
mod sources;

use std::net::IpAddr;
use std::path::Path;

use flannel_model::{EtcdPrefix, IpFamily, NetworkConfig};
use flannel_netlink::overlay::{Written, observe, observe_wireguard};
use flannel_netlink::{NetlinkError, RouteConn};
use flannel_plan::{
    DesiredOverlay, Difference, ObservedOverlay, Op, device_setting_ops, diff_overlay, differences,
};
use flannel_store::Store;

use crate::failure::Failure;
use crate::output::with_causes;
use crate::subnets::{self, Listing, Record};

pub use expected::Expected;
pub use kernel::{Seen, Tunnel, look};
pub use own::own_key;
pub use rules::{RuleDifference, compare as compare_rules};
pub use sources::Sources;

/// What is asked about this node, and where.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a, S> {
    /// etcd.
    pub store: &'a S,
    /// The network's keys.
    pub prefix: &'a EtcdPrefix,
    /// Addresses of etcd, which no peer's route may cover.
    pub etcd: &'a [IpAddr],
    /// Where flanneld writes the subnet of this node.
    pub subnet_file: &'a Path,
}

/// A node as it should be and as it is.
#[derive(Debug)]
pub struct NodeView {
    /// The network config.
    pub config: NetworkConfig,
    /// All leases.
    pub listing: Listing,
    /// This node's.
    pub own: Record,
    /// What the kernel has, of whomever.
    pub seen: Seen,
    /// What it should have.
    pub expected: Expected,
    /// The overlay of each family, IPv4 first.
    pub overlays: Vec<OverlayView>,
    /// Whether flanneld masquerades; `None` without subnet.env.
    pub masquerades: Option<bool>,
    /// Where all this comes from.
    pub sources: Sources,
}

/// The overlay of one family as it should be and as it is.
#[derive(Debug)]
pub struct OverlayView {
    /// As it should be.
    pub desired: DesiredOverlay,
    /// As it is.
    pub observed: ObservedOverlay,
    /// What flanneld would write.
    pub ops: Vec<Op>,
    /// How the two differ.
    pub differences: Vec<Difference>,
}

impl OverlayView {
    /// The family of its pods.
    pub fn family(&self) -> IpFamily {
        self.desired.family()
    }
}

/// Reads etcd and the kernel, and compares.
pub async fn read<S: Store>(asked: Asked<'_, S>) -> Result<NodeView, Failure> {
    let key = asked.prefix.config();
    let (found, _) = asked.store.get(&key).await?;
    let Some(kv) = found else {
        return Err(Failure::NotFound(format!("there is no network config at {key}")));
    };
    let config = NetworkConfig::parse(&kv.value).map_err(|problems| {
        Failure::Content(format!(
            "the network config at {key} cannot be used: {}",
            with_causes(&problems)
        ))
    })?;
    let listing = subnets::read(asked.store, asked.prefix).await?;
    let seen = look(&expected::devices(&config)).map_err(|error| unanswered(&error))?;
    let own::Own {
        record: own,
        by,
        masquerades,
    } = own::find(asked.subnet_file, &listing, &seen)?;
    let expected = expected::expected(&config, &own, &listing, &seen, asked.etcd).map_err(|reason| {
        Failure::NotFound(format!("what this node should have cannot be said: {reason}"))
    })?;
    let mut sources = Sources::new(asked, by, kv.mod_revision);
    let mut overlays = Vec::new();
    for desired in &expected.overlays {
        let overlay = compare(desired.clone(), &seen, &mut sources).map_err(|error| unanswered(&error))?;
        overlays.push(overlay);
    }
    Ok(NodeView {
        config,
        listing,
        own,
        seen,
        expected,
        overlays,
        masquerades,
        sources,
    })
}

fn unanswered(error: &NetlinkError) -> Failure {
    Failure::Usage(anyhow::anyhow!(
        "the kernel cannot be asked: {}",
        with_causes(error)
    ))
}

/// What flags of flanneld decide is not known here: where the kernel has it, it is taken for wanted.
fn compare(
    mut desired: DesiredOverlay,
    seen: &Seen,
    sources: &mut Sources,
) -> Result<OverlayView, NetlinkError> {
    let mut conn = RouteConn::open()?;
    let mut observed = observe(&mut conn, &desired)?;
    // The kernel shows the peers of a WireGuard device to root alone.
    let wireguard = observe_wireguard(&desired, &Written::new());
    observed.wireguard = wireguard.unwrap_or_default();
    if observed.blackholes.contains(&desired.own_subnet) {
        desired.blackholes.insert(desired.own_subnet);
        sources.add("--ip-blackhole-route: taken for given, because the route is there");
    }
    let configured = desired
        .tunnel
        .as_ref()
        .and_then(|tunnel| tunnel.wireguard.as_ref());
    if let Some(wanted) = configured
        && wanted.peers.values().all(|peer| peer.preshared.is_none())
        && let Some(there) = &mut observed.wireguard
    {
        there.peers.values_mut().for_each(|peer| peer.preshared = None);
        sources.add("--wireguard-psk-file: not read, so preshared keys are not compared");
    }
    let name = |index| seen.name(index);
    let mut ops = diff_overlay(&desired, &observed);
    ops.extend(device_setting_ops(&desired, &observed));
    Ok(OverlayView {
        ops,
        differences: differences(&desired, &observed, &name),
        desired,
        observed,
    })
}
