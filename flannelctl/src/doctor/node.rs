//! This host as a node of the network: its subnet.env, its lease, its devices and the way to every peer.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use flannel_model::{
    BackendSettings, Families, IpSubnet, LeaseKey, Mac, NetworkConfig, SubnetEnv, VxlanLeaseData,
};

use super::judge;
use super::kernel::{Seen, look};
use crate::findings::{Finding, Level};
use crate::output::with_causes;
use crate::subnets::{Listing, Record};

/// Reads the host and judges it. Where there is no subnet.env, this host is taken for none of the nodes.
pub fn findings(file: &Path, config: &NetworkConfig, listing: &Listing) -> Vec<Finding> {
    let shown = file.display();
    let env = match std::fs::read_to_string(file) {
        Ok(text) => SubnetEnv::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text =
                format!("there is no {shown}: this host is no node, or flanneld has no subnet for pods yet");
            return vec![Finding::skipped("node", text)];
        }
        Err(error) => {
            let fix = "run this as root";
            return vec![Finding::warning(
                "node",
                format!("{shown} cannot be read: {error}"),
                fix,
            )];
        }
    };
    let env = match env {
        Ok(env) => env,
        Err(error) => {
            let fix = "restart flanneld, which writes it anew; until then no pod can be added here";
            return vec![Finding::error("node", format!("{shown} {error}"), fix)];
        }
    };
    match look(&tunnels(config)) {
        Ok(seen) => judge_node(&env, config, listing, &seen),
        Err(error) => {
            let text = format!("the kernel cannot be asked: {}", with_causes(&error));
            vec![Finding::warning("node", text, "run this on the node itself")]
        }
    }
}

/// The names of the VXLAN devices of a node, IPv4 first; none for other backends.
fn tunnels(config: &NetworkConfig) -> Vec<String> {
    let BackendSettings::Vxlan(vxlan) = config.backend.settings else {
        return Vec::new();
    };
    let ipv4 = config.pools.ipv4().map(|_| format!("flannel.{}", vxlan.vni));
    let ipv6 = config.pools.ipv6().map(|_| format!("flannel-v6.{}", vxlan.vni));
    ipv4.into_iter().chain(ipv6).collect()
}

fn judge_node(env: &SubnetEnv, config: &NetworkConfig, listing: &Listing, seen: &Seen) -> Vec<Finding> {
    let subnets = Families::new(
        env.ipv4.as_ref().map(|(_, own)| *own),
        env.ipv6.as_ref().map(|(_, own)| *own),
    );
    let Some(key) = subnets.map(LeaseKey::new) else {
        return Vec::new();
    };
    let own = listing.records.iter().find(|record| record.key == key);
    let mut found = vec![own_lease(&key, own, seen)];
    let peers: Vec<&Record> = listing
        .records
        .iter()
        .filter(|record| record.key != key && record.is_in_use())
        .collect();
    let tunnels = tunnels(config);
    found.extend(tunnels.iter().map(|name| device(name, own, seen)));
    found.push(routes(config, &peers, seen));
    if !tunnels.is_empty() {
        found.push(vxlan_entries(&tunnels, &peers, seen));
    }
    found
}

fn own_lease(key: &LeaseKey, own: Option<&Record>, seen: &Seen) -> Finding {
    let Some(record) = own else {
        let text = format!("subnet.env says {key}, but there is no such lease");
        let fix = "is flanneld running (systemctl status flanneld)? It writes its lease anew";
        return Finding::error("own-lease", text, fix);
    };
    let address = record.address();
    match seen.addresses.contains(&address) {
        true => Finding::ok("own-lease", format!("{key} belongs to this host ({address})")),
        // --public-ip may name an address that is translated on the way.
        false => Finding::warning(
            "own-lease",
            format!("{key} is published with the address {address}, which is none of this host's"),
            "fine behind address translation (--public-ip); otherwise another node has taken this subnet: \
             see flanneld's log",
        ),
    }
}

fn device(name: &str, own: Option<&Record>, seen: &Seen) -> Finding {
    let check = "tunnel-device";
    let restart = "restart flanneld; what deletes or changes the device (NetworkManager, systemd-networkd) should leave it";
    let Some(device) = seen.devices.get(name) else {
        return Finding::error(check, format!("there is no device {name}"), restart);
    };
    if !device.up {
        return Finding::error(check, format!("{name} is down"), restart);
    }
    let published = own.and_then(|record| vtep(record, name.starts_with("flannel-v6")));
    match (published, device.mac) {
        (Some(published), Some(mac)) if published != mac => Finding::error(
            check,
            format!(
                "{name} has the Ethernet address {mac}, but the lease says {published}: peers send to nobody"
            ),
            restart,
        ),
        (_, _) => Finding::ok(check, format!("{name} is up, MTU {}", device.mtu)),
    }
}

/// What a lease says of its VXLAN device in a family.
fn vtep(record: &Record, ipv6: bool) -> Option<Mac> {
    let data = if ipv6 {
        &record.value.backend_v6_data
    } else {
        &record.value.backend_data
    };
    let vxlan = record.value.backend_type.as_deref() == Some("vxlan");
    let data = data.as_ref().filter(|_| vxlan)?;
    Some(VxlanLeaseData::parse(data).ok()?.vtep_mac)
}

fn subnets_of(record: &Record) -> impl Iterator<Item = IpSubnet> {
    let ipv4 = record.key.ipv4().map(IpSubnet::from);
    ipv4.into_iter().chain(record.key.ipv6().map(IpSubnet::from))
}

const REPAIR: &str =
    "is flanneld running? It repairs what is missing at once, and names peers that it skips in its log";

fn routes(config: &NetworkConfig, peers: &[&Record], seen: &Seen) -> Finding {
    if matches!(config.backend.settings, BackendSettings::Alloc) {
        return Finding::skipped("peer-routes", "routes are not flanneld's in the backend alloc");
    }
    let offered = |subnet: &IpSubnet| match subnet {
        IpSubnet::V4(subnet) => config.pools.ipv4().is_some_and(|pool| pool.offers(subnet)),
        IpSubnet::V6(subnet) => config.pools.ipv6().is_some_and(|pool| pool.offers(subnet)),
    };
    let wanted: Vec<IpSubnet> = peers
        .iter()
        .flat_map(|peer| subnets_of(peer))
        .filter(offered)
        .collect();
    // A device that knows its peers itself, as WireGuard's does, has one route for the whole network.
    let networks = [
        config.pools.ipv4().map(|pool| IpSubnet::from(pool.network)),
        config.pools.ipv6().map(|pool| IpSubnet::from(pool.network)),
    ];
    let whole = |subnet: &IpSubnet| {
        let of_subnet = networks.iter().flatten().find(|network| network.contains(subnet));
        of_subnet.is_some_and(|network| seen.routes.contains(network))
    };
    let missing: Vec<String> = wanted
        .iter()
        .filter(|subnet| !seen.routes.contains(subnet) && !whole(subnet))
        .map(ToString::to_string)
        .collect();
    let good = format!("{} subnets of {} peers have routes", wanted.len(), peers.len());
    judge(
        "peer-routes",
        Level::Error,
        &missing,
        "subnets of peers without a route",
        good,
        REPAIR,
    )
}

/// The neighbour and the forwarding entry of each peer on the VXLAN devices.
fn vxlan_entries(tunnels: &[String], peers: &[&Record], seen: &Seen) -> Finding {
    let mut missing = Vec::new();
    let mut number = 0;
    for peer in peers {
        for subnet in subnets_of(peer) {
            let ipv6 = !subnet.is_ipv4();
            let name = tunnels.iter().find(|name| name.starts_with("flannel-v6") == ipv6);
            let device = name.and_then(|name| seen.devices.get(name));
            let (Some(device), Some(mac), Some(address)) = (device, vtep(peer, ipv6), tunnel_end(peer, ipv6))
            else {
                continue;
            };
            number += 1;
            if device.neighbours.get(&subnet.network()) != Some(&mac)
                || device.fdb.get(&mac) != Some(&address)
            {
                missing.push(format!("{subnet} of {address}"));
            }
        }
    }
    let good = format!("{number} peers have their neighbour and forwarding entries");
    let what = "peers whose entries on the VXLAN device are missing or others (fine where DirectRouting serves them)";
    judge("peer-entries", Level::Warning, &missing, what, good, REPAIR)
}

fn tunnel_end(peer: &Record, ipv6: bool) -> Option<IpAddr> {
    match ipv6 {
        false => Some(peer.value.public_ip.into()),
        true => peer.value.public_ipv6.map(IpAddr::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::kernel::Device;
    use flannel_model::EtcdPrefix;
    use flannel_store::memory::MemoryStore;
    use flannel_store::{NewLease, Store};

    const ENV: &str =
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

    fn mac(n: u8) -> Mac {
        format!("8a:55:6f:01:02:{n:02x}").parse().unwrap()
    }

    async fn network() -> (NetworkConfig, Listing) {
        let store = MemoryStore::new();
        for n in [1, 2] {
            let value = format!(
                r#"{{"PublicIP":"192.168.50.{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}}}}"#,
                mac(n)
            );
            let key = format!("/n/subnets/10.5.{n}.0-24");
            store
                .create(&key, &value, NewLease::any(86_400), &[])
                .await
                .unwrap();
        }
        let listing = crate::subnets::read(&store, &EtcdPrefix::new("/n"))
            .await
            .unwrap();
        let config =
            NetworkConfig::parse(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        (config, listing)
    }

    fn good() -> Seen {
        let device = Device {
            mac: Some(mac(1)),
            mtu: 1450,
            up: true,
            neighbours: [("10.5.2.0".parse().unwrap(), mac(2))].into(),
            fdb: [(mac(2), "192.168.50.2".parse().unwrap())].into(),
        };
        Seen {
            addresses: ["192.168.50.1".parse().unwrap()].into(),
            devices: [("flannel.1".to_owned(), device)].into(),
            routes: ["10.5.2.0/24".parse().unwrap()].into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sound_node_has_no_findings_and_each_loss_has_one() {
        let (config, listing) = network().await;
        let env = SubnetEnv::parse(ENV).unwrap();
        let bad = |seen: &Seen| -> Vec<&'static str> {
            let found = judge_node(&env, &config, &listing, seen);
            found
                .iter()
                .filter(|found| found.level > Level::Ok)
                .map(|found| found.check)
                .collect()
        };
        assert_eq!(bad(&good()), [""; 0]);
        let with = |change: fn(&mut Seen)| {
            let mut seen = good();
            change(&mut seen);
            bad(&seen)
        };
        assert_eq!(with(|seen| seen.addresses.clear()), ["own-lease"]);
        assert_eq!(with(|seen| seen.routes.clear()), ["peer-routes"]);
        let whole: fn(&mut Seen) = |seen| seen.routes = ["10.5.0.0/16".parse().unwrap()].into();
        assert_eq!(with(whole), [""; 0]);
        assert_eq!(with(|seen| seen.devices.clear()), ["tunnel-device"]);
        assert_eq!(
            with(|seen| seen.devices.values_mut().for_each(|d| d.up = false)),
            ["tunnel-device"]
        );
        assert_eq!(
            with(|seen| seen.devices.values_mut().for_each(|d| d.mac = Some(mac(9)))),
            ["tunnel-device"]
        );
        assert_eq!(
            with(|seen| seen.devices.values_mut().for_each(|d| d.fdb.clear())),
            ["peer-entries"]
        );
        assert_eq!(
            with(|seen| seen.devices.values_mut().for_each(|d| d.neighbours.clear())),
            ["peer-entries"]
        );
        let gone = Listing {
            records: Vec::new(),
            ..listing
        };
        assert_eq!(
            judge_node(&env, &config, &gone, &good())[0].level,
            Level::Error,
            "a lease that is gone"
        );
    }

    #[test]
    fn a_host_without_subnet_env_is_no_node() {
        let config =
            NetworkConfig::parse(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        let listing = Listing {
            records: Vec::new(),
            rejected: Vec::new(),
            pools: None,
            notes: std::collections::BTreeMap::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subnet.env");
        assert_eq!(findings(&file, &config, &listing)[0].level, Level::Skipped);
        std::fs::write(&file, "FLANNEL_NETWORK=10.5.0.0/16\n").unwrap();
        assert_eq!(findings(&file, &config, &listing)[0].level, Level::Error);
    }
}
