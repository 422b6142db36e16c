//! Tells the CNI plugin's guard the UDP ports at which nodes take each other's packets of pods, where they are not flannel's own by
//! default: a container that could send to them would send as any other container of any node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{
    DEFAULT_TUNNEL_PORTS, Family, GUARD_TABLE, GUARDED_PORTS, commit, delete_elements, guard_ports,
    has_element, port_element,
};
use flannel_plan::LinkKind;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::overlay::Facts;
use crate::said::{Said, chain};
use crate::table_changes::table_changes;

/// Looked at this often, should the kernel not have told that somebody removed the table: the plugin makes it anew with the default
/// ports alone.
const AGAIN: Duration = Duration::from_secs(30);

/// Starts the task. It ends when the facts' sender is gone.
pub fn start(facts: watch::Receiver<Option<Arc<Facts>>>) {
    tokio::spawn(run(facts));
}

async fn run(mut facts: watch::Receiver<Option<Arc<Facts>>>) {
    let mut told = BTreeSet::new();
    let mut said = Said::default();
    let mut due = Instant::now() + AGAIN;
    // Every pod changes the table: only where there is a port to guard is it followed.
    let mut changes = None;
    loop {
        tokio::select! {
            changed = facts.changed() => if changed.is_err() { return },
            () = change_of(&mut changes) => {}
            () = sleep_until(due) => {}
        }
        due = Instant::now() + AGAIN;
        let wanted = facts.borrow_and_update().as_deref().map(ports);
        let Some(wanted) = wanted else { continue };
        if wanted.is_empty() {
            changes = None;
        } else if changes.is_none() {
            changes = Some(table_changes(&[GUARD_TABLE], None));
        }
        let gone: BTreeSet<u16> = told.difference(&wanted).copied().collect();
        let now = wanted.clone();
        let done = tokio::task::spawn_blocking(move || tell(&now, &gone)).await;
        match done
            .map_err(|e| e.to_string())
            .and_then(|done| done.map_err(|e| chain(&e)))
        {
            Ok(()) => {
                said.clear();
                told = wanted;
            }
            Err(problem) if said.is_news(&problem) => tracing::warn!(
                "containers can send to the nodes' tunnels at {wanted:?} as long as this fails: {problem}"
            ),
            Err(_) => {}
        }
    }
}

/// Waits for the next change; for ever where nothing is followed, or the kernel tells nothing.
async fn change_of(changes: &mut Option<mpsc::Receiver<()>>) {
    if let Some(changes) = changes
        && changes.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// The ports that the plugin does not know by itself: those of VXLAN devices, and the udp backend's, on this node and on others.
fn ports(facts: &Facts) -> BTreeSet<u16> {
    let devices = facts.overlays().filter_map(|overlay| {
        let tunnel = overlay.tunnel.as_ref()?;
        match &tunnel.link.kind {
            LinkKind::Vxlan(link) => Some(link.port),
            LinkKind::Ipip(_) | LinkKind::Wireguard | LinkKind::Tun => None,
        }
    });
    let udp = facts.udp.iter().flat_map(|udp| {
        let peers = udp.peers.iter().map(|peer| peer.endpoint.port());
        peers.chain([udp.listen.port()])
    });
    let all = devices.chain(udp);
    all.filter(|port| *port != 0 && !DEFAULT_TUNNEL_PORTS.contains(port))
        .collect()
}

/// Has `wanted` guarded, and `gone` not any more. Where there is nothing to say, nothing is made.
fn tell(wanted: &BTreeSet<u16>, gone: &BTreeSet<u16>) -> Result<(), NetlinkError> {
    let has = |port: u16| has_element(Family::Bridge, GUARD_TABLE, GUARDED_PORTS, &port.to_be_bytes());
    let mut missing = Vec::new();
    for port in wanted {
        if !has(*port)? {
            missing.push(*port);
        }
    }
    let mut messages = match missing.is_empty() {
        true => Vec::new(),
        false => guard_ports(missing),
    };
    for port in gone {
        if has(*port)? {
            messages.extend(delete_elements(
                GUARD_TABLE,
                GUARDED_PORTS,
                [&port_element(*port)],
            ));
        }
    }
    match messages.is_empty() {
        true => Ok(()),
        false => commit(Family::Bridge, &messages, "guard the ports of the nodes' tunnels"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flannel_model::Families;
    use flannel_plan::{DesiredOverlay, Device, Tunnel, TunnelLink, VxlanLink};

    use super::*;
    use crate::udp::UdpFacts;

    fn facts(vxlan: u16, udp: Option<u16>) -> Facts {
        let link = VxlanLink {
            id: 1,
            underlay: 2,
            local: "192.0.2.1".parse().unwrap(),
            port: vxlan,
            mac: "8a:00:00:00:00:01".parse().unwrap(),
            learning: false,
            gbp: false,
            udp_checksum: true,
        };
        let overlay = DesiredOverlay {
            network: "10.5.0.0/16".parse().unwrap(),
            own_subnet: "10.5.1.0/24".parse().unwrap(),
            mtu: 1450,
            tunnel: Some(Tunnel {
                link: TunnelLink {
                    device: Device::Vxlan {
                        vni: 1,
                        family: flannel_model::IpFamily::V4,
                    },
                    mtu: 1450,
                    kind: LinkKind::Vxlan(link),
                },
                address: "10.5.1.0".parse().unwrap(),
                neighbours: BTreeMap::new(),
                fdb: BTreeMap::new(),
                wireguard: None,
                senders: BTreeSet::new(),
                vteps: BTreeMap::new(),
            }),
            routes: BTreeMap::new(),
            blackholes: BTreeSet::new(),
            peers: 0,
        };
        Facts {
            own: "10.5.1.0-24".parse().unwrap(),
            addresses: Vec::new(),
            nodes: BTreeSet::new(),
            udp: udp.map(|port| UdpFacts {
                listen: ("0.0.0.0".parse::<std::net::IpAddr>().unwrap(), port).into(),
                peers: Vec::new(),
            }),
            carriers: BTreeSet::new(),
            overlays: Families::Ipv4(overlay),
            steps: crate::overlay::Steps::default(),
        }
    }

    #[test]
    fn ports_that_the_plugin_does_not_know() {
        assert_eq!(ports(&facts(8472, None)), BTreeSet::new());
        assert_eq!(ports(&facts(8472, Some(8285))), BTreeSet::new());
        assert_eq!(ports(&facts(4789, Some(9000))), BTreeSet::from([4789, 9000]));
    }
}
