//! flannel's iptables chains, found when a node is taken over from it: our own table does what they did, and rules of a network of
//! another day would go on translating packets. They are removed once at the start, when our rules stand, and nothing else is.

mod legacy;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_model::IpFamily;
use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{commit, delete_chain, ruleset};
use flannel_plan::DesiredOverlay;
use flannel_plan::packet_filter::{OldChain, Packet, old_chains};

use crate::overlay::Facts;
use crate::said::chain;

/// Somebody outside, in the ranges for documentation (RFC 5737, RFC 3849).
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);
/// The chain that lets packets of pods pass.
const FORWARD: &str = "FLANNEL-FWD";

/// Removes them. One without which other rules of its table would drop packets of pods stays as long as pods are to be forwarded
/// for (`forward`), because an accept of our own table does not keep another from dropping. What fails is said and hinders nothing.
pub fn remove(facts: &Facts, forward: bool) {
    for overlay in facts.overlays() {
        let family = overlay.family();
        if let Err(error) = of_nf_tables(overlay, forward) {
            tracing::warn!(
                "flannel's iptables chains cannot be looked for: {}",
                chain(&error)
            );
        }
        legacy::remove(family, forward);
    }
}

fn of_nf_tables(overlay: &DesiredOverlay, forward: bool) -> Result<(), NetlinkError> {
    let family = overlay.family();
    let found = old_chains(&ruleset(family)?, &packets(overlay));
    for old in found {
        if old.needed && forward {
            kept(&old.table, &old.name);
        } else {
            delete(family, &old);
        }
    }
    Ok(())
}

fn delete(family: IpFamily, old: &OldChain) {
    let table = old
        .table
        .split_once(' ')
        .map_or(old.table.as_str(), |(_, name)| name);
    let what = format!("remove flannel's chain {} from table {}", old.name, old.table);
    match commit(family.into(), &delete_chain(table, &old.name, &old.jumps), &what) {
        Ok(()) => removed(&old.table, &old.name, old.jumps.len()),
        Err(error) => tracing::warn!("{}", chain(&error)),
    }
}

fn removed(table: &str, name: &str, jumps: usize) {
    tracing::info!(
        "flannel's iptables chain {name} in table {table} is removed, with {jumps} rules that led there; our own table does its work"
    );
}

fn kept(table: &str, name: &str) {
    tracing::warn!(
        "flannel's iptables chain {name} in table {table} stays: without it, other rules of that table would drop packets of pods \
         (flannelctl doctor says which)"
    );
}

/// What pods of this node and elsewhere, and others, send each other by way of this node.
fn packets(overlay: &DesiredOverlay) -> Vec<Packet> {
    let here = overlay.own_subnet.network();
    let elsewhere = overlay
        .routes
        .keys()
        .next()
        .map_or(here, |subnet| subnet.network());
    let outside: IpAddr = match overlay.family() {
        IpFamily::V4 => OUTSIDE.0.into(),
        IpFamily::V6 => OUTSIDE.1.into(),
    };
    let ways = [
        (here, elsewhere),
        (elsewhere, here),
        (here, outside),
        (outside, here),
    ];
    let packet = |(source, destination)| Packet {
        source,
        destination,
        input: None,
        output: None,
    };
    ways.map(packet).into()
}
