//! This host as a node of the network: its subnet.env, its lease, its devices and the way to every peer.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use flannel_model::{LeaseKey, NetworkConfig, SubnetEnv};
use flannel_plan::{Device, Tunnel as Wanted};

use super::{forwarding, host, judge, managers, ways};
use crate::findings::{Finding, Level};
use crate::node::{Expected, Seen, Tunnel, expected, look, own_key};
use crate::output::with_causes;
use crate::subnets::{Listing, Record};

/// Where a node keeps what belongs to it.
#[derive(Debug, Clone, Copy)]
pub struct Paths<'a> {
    /// `--subnet-file`.
    pub subnet_file: &'a Path,
    /// `--state-dir`.
    pub state_dir: &'a Path,
}

/// Reads the host and judges it. Where there is no subnet.env, this host is taken for none of the nodes.
pub fn findings(paths: Paths<'_>, config: &NetworkConfig, listing: &Listing) -> Vec<Finding> {
    let shown = paths.subnet_file.display();
    let env = match std::fs::read_to_string(paths.subnet_file) {
        Ok(text) => SubnetEnv::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text =
                format!("there is no {shown}: this host is no node, or flanneld has no subnet for pods yet");
            return vec![Finding::skipped("node", text)];
        }
        Err(error) => {
            let text = format!("{shown} cannot be read: {error}");
            return vec![Finding::warning("node", text, "run this as root")];
        }
    };
    let env = match env {
        Ok(env) => env,
        Err(error) => {
            let fix = "restart flanneld, which writes it anew; until then no pod can be added here";
            return vec![Finding::error("node", format!("{shown} {error}"), fix)];
        }
    };
    let Some(key) = own_key(&env) else {
        return Vec::new();
    };
    let own = listing.records.iter().find(|record| record.key == key);
    let mut found = vec![host::cache(paths.state_dir, own, SystemTime::now())];
    match look(&expected::devices(config)) {
        Ok(seen) => {
            found.extend(judge_node(&env, config, listing, &seen));
            let devices: Vec<String> = expected::devices(config)
                .iter()
                .map(ToString::to_string)
                .collect();
            found.push(managers::finding(devices.iter().map(String::as_str)));
            let planned = own.and_then(|own| expected::expected(config, own, listing, &seen, &[]).ok());
            found.extend(
                planned
                    .iter()
                    .flat_map(|expected| forwarding::findings(expected, &seen)),
            );
        }
        Err(error) => {
            let text = format!("the kernel cannot be asked: {}", with_causes(&error));
            found.push(Finding::warning("node", text, "run this on the node itself"));
        }
    }
    found
}

fn judge_node(env: &SubnetEnv, config: &NetworkConfig, listing: &Listing, seen: &Seen) -> Vec<Finding> {
    let Some(key) = own_key(env) else {
        return Vec::new();
    };
    let own = listing.records.iter().find(|record| record.key == key);
    let mut found = vec![own_lease(&key, own, seen)];
    let Some(own) = own else {
        return found;
    };
    found.extend(another_way_out(own, seen));
    let devices = expected::devices(config);
    found.extend(devices.iter().filter_map(|device| missing(*device, seen)));
    let expected = match expected::expected(config, own, listing, seen, &[]) {
        Ok(expected) => expected,
        Err(reason) => {
            found.push(Finding::skipped(
                "peer-routes",
                format!("not looked at: {reason}"),
            ));
            return found;
        }
    };
    found.extend(expected.overlays.iter().filter_map(|overlay| {
        let wanted = overlay.tunnel.as_ref()?;
        Some(device(
            wanted,
            seen.tunnels.get(&wanted.link.device)?,
            own,
            &expected,
        ))
    }));
    found.extend(peers(config, &expected, seen));
    found
}

fn own_lease(key: &LeaseKey, own: Option<&Record>, seen: &Seen) -> Finding {
    let Some(record) = own else {
        let text = format!("subnet.env says {key}, but there is no such lease");
        let fix = "is flanneld running (systemctl status flanneld)? It writes its lease anew";
        return Finding::error("own-lease", text, fix);
    };
    let address = record.address();
    match seen.holder(address) {
        Some(_) => Finding::ok("own-lease", format!("{key} belongs to this host ({address})")),
        // --public-ip may name an address that is translated on the way.
        None => Finding::warning(
            "own-lease",
            format!("{key} is published with the address {address}, which is none of this host's"),
            "fine behind address translation (--public-ip); otherwise another node has taken this subnet: \
             see flanneld's log",
        ),
    }
}

/// A node stays on the interface that it chose when it started; that may not be the one of the default route any more, or by a flag.
fn another_way_out(own: &Record, seen: &Seen) -> Option<Finding> {
    let here = seen.holder(own.address())?;
    let family = |route: &&flannel_netlink::route::Route| {
        route.destination.length() == 0 && route.destination.is_ipv4() == own.address().is_ipv4()
    };
    let best = seen
        .routes
        .iter()
        .filter(family)
        .min_by_key(|route| route.metric)?;
    let out = best.ifindex.filter(|ifindex| *ifindex != here.ifindex)?;
    let text = format!(
        "the node's address {} is on {}, the default route leaves by {}: right if a flag says so; otherwise flanneld stays where it \
         is until its next start",
        own.address(),
        here.name,
        seen.name(out)
    );
    Some(Finding::ok("interface", text))
}

const RESTART: &str =
    "restart flanneld; what deletes or changes the device (NetworkManager, systemd-networkd) should leave it";

fn missing(device: Device, seen: &Seen) -> Option<Finding> {
    let there = seen.tunnels.contains_key(&device);
    (!there).then(|| Finding::error("tunnel-device", format!("there is no device {device}"), RESTART))
}

fn device(wanted: &Wanted, there: &Tunnel, own: &Record, expected: &Expected) -> Finding {
    let check = "tunnel-device";
    let name = wanted.link.device;
    let error = |text: String| Finding::error(check, text, RESTART);
    if !there.up {
        return error(format!("{name} is down"));
    }
    if let Some(published) = other_identity(name, there, own) {
        return error(format!("{name} {published}: peers send to nobody"));
    }
    if !there.addresses.contains(&wanted.address) {
        return error(format!("{name} does not have its address {}", wanted.address));
    }
    if expected.sure && there.mtu > wanted.link.mtu {
        let text = format!(
            "{name} takes packets of {} bytes, but the interface below carries {}: large packets are lost",
            there.mtu, wanted.link.mtu
        );
        return Finding::warning(check, text, RESTART);
    }
    Finding::ok(check, format!("{name} is up, MTU {}", there.mtu))
}

/// The device's Ethernet address or key, where the lease says another.
fn other_identity(name: Device, there: &Tunnel, own: &Record) -> Option<String> {
    if let Device::Vxlan { family, .. } = name {
        let published = expected::published_mac(own, family == flannel_model::IpFamily::V6)?;
        let mac = there.mac.filter(|mac| *mac != published)?;
        return Some(format!(
            "has the Ethernet address {mac}, but the lease says {published}"
        ));
    }
    let published = expected::published_key(own)?;
    match there.wireguard.as_ref()?.public_key {
        Some(key) if key == published => None,
        Some(key) => Some(format!("has the key {key}, but the lease says {published}")),
        None => Some(format!("has no key, but the lease says {published}")),
    }
}

fn peers(config: &NetworkConfig, expected: &Expected, seen: &Seen) -> Vec<Finding> {
    let left = expected::stranded(&expected.peers, seen);
    let shown: Vec<String> = left.iter().map(ToString::to_string).collect();
    let skipped = expected
        .refused
        .iter()
        .map(|(key, reason)| format!("{key}: {reason}"));
    let skipped: Vec<String> = skipped.collect();
    let mut found = vec![
        judge(
            "peers",
            Level::Warning,
            &skipped,
            "records that this node does not use",
            format!("every record but the own is a peer: {}", expected.peers.len()),
            "see what each says; a node that is skipped is not reached from here",
        ),
        judge(
            "stranded-pods",
            Level::Error,
            &shown,
            "subnets that another node has by now, with pods here",
            "no pod lives in a subnet of another node".to_owned(),
            "create these pods anew: they reach each other, but nobody elsewhere",
        ),
    ];
    match config.backend.kind.as_str() {
        "alloc" => found.push(Finding::skipped(
            "peer-routes",
            "routes are not flanneld's in the backend alloc",
        )),
        _ => found.extend(ways::findings(expected, &left, seen)),
    }
    found
}

#[cfg(test)]
mod tests;
