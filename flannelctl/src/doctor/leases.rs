//! What the leases say, each beside the others and beside the network config.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use flannel_model::{BackendSettings, Mac, NetworkConfig, VxlanLeaseData};

use super::judge;
use crate::findings::{Finding, Level, number as plural};
use crate::output::span;
use crate::subnets::{Listing, Record, State, states};

/// Backends whose nodes publish no type, as in flannel.
const NAMELESS: [&str; 3] = ["udp", "alloc", "tencent-vpc"];

/// A node that is cut off from etcd for longer than its lease lives loses its subnet. An hour is what a node of flannel has in the
/// worst case, which renews a lease of a day an hour before its end.
const SHORT: u32 = 3600;

/// What can be said without a network config.
pub fn alone(listing: &Listing) -> Vec<Finding> {
    let found = states(listing);
    let in_state = |wanted: State| -> Vec<String> {
        let pairs = listing.records.iter().zip(&found);
        pairs
            .filter(|(_, state)| **state == wanted)
            .map(|(record, _)| named(record))
            .collect()
    };
    let number = listing.records.len();
    let unread: Vec<String> = listing
        .rejected
        .iter()
        .map(|record| format!("{} ({})", record.key, record.reason))
        .collect();
    vec![
        judge(
            "lease-values",
            Level::Error,
            &unread,
            "records that no node can use",
            format!("{} can be read", plural(number, "lease")),
            "delete them if their node is gone; a node that runs writes its own anew when it is restarted",
        ),
        judge(
            "lease-overlaps",
            Level::Error,
            &in_state(State::Overlap),
            "leases that share addresses with an older one",
            "no two leases share an address".to_owned(),
            "stop the node of the younger lease and release it: flannelctl subnets release SUBNET",
        ),
        judge(
            "lease-duplicates",
            Level::Warning,
            &in_state(State::Duplicate),
            "several leases of one node",
            "every node has one lease".to_owned(),
            "nodes behind one address need --public-ip of their own; leases that are left over expire, or can be released",
        ),
        judge(
            "lease-renewals",
            Level::Warning,
            &in_state(State::Expiring),
            "leases that were not renewed in time",
            "every lease was renewed in time".to_owned(),
            "look at these nodes: is flanneld running, does it reach etcd? They lose their subnet when the lease expires",
        ),
        lifetimes(listing),
        addresses(listing),
        vtep_addresses(listing),
    ]
}

fn lifetimes(listing: &Listing) -> Finding {
    let granted = |record: &Record| {
        record
            .lifetime
            .map(|life| life.granted)
            .filter(|granted| *granted > 0)
    };
    let short: Vec<String> = listing
        .records
        .iter()
        .filter_map(|record| Some((record, granted(record).filter(|granted| *granted < SHORT)?)))
        .map(|(record, granted)| format!("{} ({})", named(record), span(granted.into())))
        .collect();
    let shortest = listing.records.iter().filter_map(granted).min();
    let good = shortest.map_or("there is no lease that ends".to_owned(), |shortest| {
        format!(
            "every lease lives {} or longer without etcd",
            span(shortest.into())
        )
    });
    judge(
        "lease-lifetimes",
        Level::Warning,
        &short,
        "leases that live less than an hour",
        good,
        "start these nodes with a longer --subnet-lease-ttl: one that is cut off from etcd for longer loses its subnet",
    )
}

fn named(record: &Record) -> String {
    format!("{} of {}", record.key, record.address())
}

/// Addresses that no tunnel can lead to.
fn addresses(listing: &Listing) -> Finding {
    let pools = listing.pools.as_ref();
    let inside = |address: IpAddr| match address {
        IpAddr::V4(address) => pools
            .and_then(|p| p.ipv4())
            .is_some_and(|pool| pool.network.holds(address)),
        IpAddr::V6(address) => pools
            .and_then(|p| p.ipv6())
            .is_some_and(|pool| pool.network.holds(address)),
    };
    let useless = |address: IpAddr| match address {
        IpAddr::V4(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_link_local()
                || ip == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local()
        }
    };
    let is_bad = |record: &&Record| useless(record.address()) || inside(record.address());
    let bad: Vec<String> = listing.records.iter().filter(is_bad).map(named).collect();
    judge(
        "lease-addresses",
        Level::Error,
        &bad,
        "leases with an address that no tunnel can lead to",
        "every lease names an address that tunnels can lead to".to_owned(),
        "start these nodes with --public-ip or --iface; the address must be one of the host, outside the network of pods",
    )
}

/// The Ethernet address of a VTEP must tell nodes apart.
fn vtep_addresses(listing: &Listing) -> Finding {
    let mut by_mac: BTreeMap<Mac, Vec<String>> = BTreeMap::new();
    for record in &listing.records {
        for data in [&record.value.backend_data, &record.value.backend_v6_data]
            .into_iter()
            .flatten()
        {
            let vxlan = record.value.backend_type.as_deref() == Some("vxlan");
            if let (true, Ok(data)) = (vxlan, VxlanLeaseData::parse(data)) {
                by_mac.entry(data.vtep_mac).or_default().push(named(record));
            }
        }
    }
    let number = by_mac.len();
    let shared: Vec<String> = by_mac
        .into_iter()
        .filter(|(_, leases)| leases.len() > 1)
        .map(|(mac, leases)| format!("{mac}: {}", leases.join(" and ")))
        .collect();
    judge(
        "vtep-addresses",
        Level::Error,
        &shared,
        "nodes with the same Ethernet address on their VXLAN device",
        format!(
            "{}, each with an address of its own",
            plural(number, "VXLAN device")
        ),
        "cloned machines: delete the device on one of them (ip link delete flannel.VNI) and restart its flanneld",
    )
}

/// What the config means for the leases that are there.
pub fn config_and_leases(config: &NetworkConfig, listing: &Listing) -> Vec<Finding> {
    let outside: Vec<String> = listing
        .records
        .iter()
        .filter(|record| !crate::subnets::offers(&config.pools, &record.key))
        .map(named)
        .collect();
    let backend = config.backend.kind.as_str();
    let runs_another = |record: &&Record| match record.value.backend_type.as_deref() {
        Some(kind) => kind != backend,
        None => !NAMELESS.contains(&backend),
    };
    let others: Vec<String> = listing
        .records
        .iter()
        .filter(|record| record.is_in_use())
        .filter(runs_another)
        .map(|record| {
            format!(
                "{} ({})",
                named(record),
                record.value.backend_type.as_deref().unwrap_or("udp or alloc")
            )
        })
        .collect();
    let mut found = vec![
        judge(
            "lease-fit",
            Level::Warning,
            &outside,
            "leases that the network config does not offer",
            "the network config offers every lease".to_owned(),
            "these nodes take another subnet when flanneld is restarted; their pods have to be made anew then",
        ),
        judge(
            "lease-backends",
            Level::Error,
            &others,
            "nodes that run another backend than the network config names",
            format!("every node runs {backend}"),
            "restart flanneld on these nodes: nodes of different backends do not reach each other",
        ),
    ];
    if let BackendSettings::Vxlan(vxlan) = config.backend.settings {
        found.push(vnis(vxlan.vni, listing));
    }
    found
}

fn vnis(vni: u32, listing: &Listing) -> Finding {
    let other = |record: &&Record| {
        let data = record
            .value
            .backend_data
            .as_ref()
            .or(record.value.backend_v6_data.as_ref());
        let vxlan = record.value.backend_type.as_deref() == Some("vxlan");
        vxlan
            && data
                .and_then(|data| VxlanLeaseData::parse(data).ok())
                .is_some_and(|data| data.vni != vni)
    };
    let bad: Vec<String> = listing.records.iter().filter(other).map(named).collect();
    judge(
        "lease-vnis",
        Level::Error,
        &bad,
        "nodes with another VNI than the network config names",
        format!("every VXLAN lease has VNI {vni}"),
        "restart flanneld on these nodes: packets of another VNI are dropped",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::EtcdPrefix;
    use flannel_store::memory::MemoryStore;
    use flannel_store::{NewLease, Store};

    fn vxlan(ip: &str, vni: u32, mac: u8) -> String {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"8a:55:6f:01:02:{mac:02x}"}}}}"#
        )
    }

    async fn levels(leases: &[(&str, String)]) -> BTreeMap<&'static str, (Level, String)> {
        let store = MemoryStore::new();
        let text = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
        store.put("/n/config", text).await.unwrap();
        for (key, value) in leases {
            let key = format!("/n/subnets/{key}");
            store
                .create(&key, value, NewLease::any(86_400), &[])
                .await
                .unwrap();
        }
        let listing = crate::subnets::read(&store, &EtcdPrefix::new("/n"))
            .await
            .unwrap();
        let config = NetworkConfig::parse(text.as_bytes()).unwrap();
        let found = alone(&listing)
            .into_iter()
            .chain(config_and_leases(&config, &listing));
        found
            .map(|found| (found.check, (found.level, found.text)))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_sound_network_has_no_findings() {
        let found = levels(&[
            ("10.5.1.0-24", vxlan("192.168.50.11", 1, 1)),
            ("10.5.2.0-24", vxlan("192.168.50.12", 1, 2)),
        ])
        .await;
        assert!(found.values().all(|(level, _)| *level == Level::Ok), "{found:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_trouble_is_found_by_its_check() {
        let found = levels(&[
            ("10.5.1.0-24", vxlan("192.168.50.11", 1, 1)),
            ("10.5.2.0-24", vxlan("192.168.50.12", 7, 1)),
            ("10.5.3.0-24", vxlan("127.0.0.1", 1, 3)),
            ("10.5.4.0-24", vxlan("10.5.9.9", 1, 4)),
            (
                "10.5.1.128-25",
                r#"{"PublicIP":"192.168.50.15","BackendType":"host-gw"}"#.to_owned(),
            ),
            ("10.5.6.0-24", vxlan("192.168.50.11", 1, 6)),
            ("10.5.7.0-24", "junk".to_owned()),
        ])
        .await;
        for (check, level, part) in [
            ("lease-values", Level::Error, "10.5.7.0-24"),
            ("lease-overlaps", Level::Error, "10.5.1.128-25"),
            ("lease-duplicates", Level::Warning, "10.5.6.0-24"),
            ("lease-renewals", Level::Ok, ""),
            ("lease-lifetimes", Level::Ok, "24h0m or longer"),
            (
                "lease-addresses",
                Level::Error,
                "10.5.3.0-24 of 127.0.0.1, 10.5.4.0-24",
            ),
            (
                "vtep-addresses",
                Level::Error,
                "8a:55:6f:01:02:01: 10.5.1.0-24 of 192.168.50.11 and 10.5.2.0-24",
            ),
            ("lease-fit", Level::Warning, "10.5.1.128-25"),
            ("lease-backends", Level::Error, "(host-gw)"),
            ("lease-vnis", Level::Error, "10.5.2.0-24"),
        ] {
            let (found_level, text) = &found[check];
            assert!(
                *found_level == level && text.contains(part),
                "{check}: {found_level:?} {text}"
            );
        }
    }
}
