//! What the kernel of this node should have: the daemon's own plan, made from what etcd says.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_lease::{
    Identity, Limits, Patience, Peer, PeerTable, PeerView, Protected, RejectReason, Revisions,
};
use flannel_model::{
    BackendSettings, Families, IpFamily, IpSubnet, LeaseKey, Mac, NetworkConfig, VxlanLeaseData,
    WireguardLeaseData, WireguardMode, WireguardPublicKey, WireguardSecret,
};
use flannel_plan::backend::{Alloc, Backend, FamilyFacts, HostGw, Ipip, Udp, Vxlan, Wireguard, is_global};
use flannel_plan::{DefaultRoute, DesiredOverlay, Device, Underlay, UnderlayOptions, choose_underlay};

use super::kernel::Seen;
use crate::subnets::{Listing, Record};

/// A device without a key has this one, which is no node's.
const NOBODY: WireguardPublicKey = WireguardPublicKey([0; 32]);

/// What should be there.
#[derive(Debug)]
pub struct Expected {
    /// One for each family.
    pub overlays: Vec<DesiredOverlay>,
    /// The peers that the node uses.
    pub peers: Vec<Peer>,
    /// Records that it does not use, and why; each once.
    pub refused: Vec<(String, String)>,
    /// Those of them that are of no use to an overlay, in the order of the overlays.
    pub useless: Vec<BTreeSet<LeaseKey>>,
    /// Whether the interface of the tunnels is known, or only guessed because the published address is none of this host's.
    pub sure: bool,
}

/// The devices that a backend may have.
pub fn devices(config: &NetworkConfig) -> Vec<Device> {
    let families = [
        config.pools.ipv4().map(|_| IpFamily::V4),
        config.pools.ipv6().map(|_| IpFamily::V6),
    ];
    let each = families.into_iter().flatten();
    match config.backend.settings {
        BackendSettings::Vxlan(vxlan) => each
            .map(|family| Device::Vxlan {
                vni: vxlan.vni,
                family,
            })
            .collect(),
        BackendSettings::Wireguard(options) => match options.mode {
            WireguardMode::Separate => each.map(|family| Device::Wireguard { family }).collect(),
            WireguardMode::Auto | WireguardMode::Ipv4 | WireguardMode::Ipv6 => {
                vec![Device::Wireguard { family: IpFamily::V4 }]
            }
        },
        BackendSettings::Ipip(_) => vec![Device::Ipip],
        BackendSettings::Udp(_) => vec![Device::Tun],
        BackendSettings::HostGw | BackendSettings::Alloc | BackendSettings::Unread => Vec::new(),
    }
}

/// What the kernel should have; the reason when that cannot be said.
pub fn expected(
    config: &NetworkConfig,
    own: &Record,
    listing: &Listing,
    seen: &Seen,
    etcd: &[IpAddr],
) -> Result<Expected, String> {
    let underlay = underlay(config, own, seen)?;
    let backend = backend(config, own, seen, &underlay)
        .ok_or_else(|| format!("the backend {} is not known here", config.backend.kind))?;
    let own_addresses = [
        underlay.address.ipv4().map(|ip| IpAddr::from(*ip)),
        underlay.address.ipv6().map(|ip| IpAddr::from(*ip)),
    ];
    let mut protected: Vec<Protected> = etcd
        .iter()
        .map(|address| (*address, "an etcd endpoint"))
        .collect();
    protected.extend(
        own_addresses
            .into_iter()
            .flatten()
            .map(|address| (address, "this node's own address")),
    );
    let view = peers(config, own, listing, &protected);
    let mut refused: Vec<(String, String)> = view
        .rejects
        .iter()
        .filter(|reject| reject.reason != RejectReason::OwnLease)
        .map(|reject| (reject.key.clone(), reject.reason.to_string()))
        .collect();
    let peers: Vec<Peer> = view.peers.into_values().map(Arc::unwrap_or_clone).collect();
    let used: Vec<&Peer> = peers.iter().collect();
    let (mut overlays, mut useless) = (Vec::new(), Vec::new());
    for family in [IpFamily::V4, IpFamily::V6] {
        let Some((network, own_subnet)) = subnets(config, &own.key, family) else {
            continue;
        };
        let Some(carrier) = underlay.carrier(family) else {
            continue;
        };
        let facts = FamilyFacts {
            network,
            own_subnet,
            carrier,
            connected: &underlay.connected,
        };
        let (overlay, rejects) = backend.overlay(&facts, &used);
        useless.push(rejects.iter().map(|(key, _)| *key).collect());
        refused.extend(
            rejects
                .iter()
                .map(|(key, reason)| (key.to_string(), reason.to_string())),
        );
        overlays.push(overlay);
    }
    refused.sort();
    refused.dedup();
    Ok(Expected {
        overlays,
        peers,
        refused,
        useless,
        sure: seen.holder(own.address()).is_some(),
    })
}

fn subnets(config: &NetworkConfig, own: &LeaseKey, family: IpFamily) -> Option<(IpSubnet, IpSubnet)> {
    Some(match family {
        IpFamily::V4 => (config.pools.ipv4()?.network.into(), own.ipv4()?.into()),
        IpFamily::V6 => (config.pools.ipv6()?.network.into(), own.ipv6()?.into()),
    })
}

/// The interface of the tunnels: that of the VXLAN device, else that of the published address, else that of the default route.
fn underlay(config: &NetworkConfig, own: &Record, seen: &Seen) -> Result<Underlay, String> {
    let bound = seen.tunnels.values().find_map(|tunnel| tunnel.underlay);
    let options = UnderlayOptions {
        iface: bound.map(|ifindex| seen.name(ifindex)).into_iter().collect(),
        public_ip: Some(own.value.public_ip).filter(|ip| !ip.is_unspecified()),
        public_ipv6: own.value.public_ipv6,
        ..UnderlayOptions::for_families(config.pools.which())
    };
    let defaults: Vec<DefaultRoute> = seen
        .routes
        .iter()
        .filter(|route| route.destination.length() == 0)
        .filter_map(|route| {
            Some(DefaultRoute {
                family: IpFamily::of(route.destination.network()),
                ifindex: route.ifindex?,
                metric: route.metric,
            })
        })
        .collect();
    choose_underlay(&seen.interfaces, &defaults, &options).map_err(|error| error.to_string())
}

fn backend(
    config: &NetworkConfig,
    own: &Record,
    seen: &Seen,
    underlay: &Underlay,
) -> Option<Box<dyn Backend>> {
    Some(match config.backend.settings {
        BackendSettings::Vxlan(options) => {
            let mac = |family| {
                mac(
                    own,
                    seen,
                    Device::Vxlan {
                        vni: options.vni,
                        family,
                    },
                )
            };
            let ipv4 = config.pools.ipv4().map(|_| mac(IpFamily::V4));
            let ipv6 = config.pools.ipv6().map(|_| mac(IpFamily::V6));
            Box::new(Vxlan {
                options,
                macs: Families::new(ipv4, ipv6)?,
                // It decides nothing that is compared.
                udp_checksum: true,
            })
        }
        BackendSettings::HostGw => Box::new(HostGw),
        BackendSettings::Ipip(options) => Box::new(Ipip {
            direct_routing: options.direct_routing,
        }),
        BackendSettings::Wireguard(options) => {
            let mut devices = seen
                .tunnels
                .values()
                .filter_map(|tunnel| tunnel.wireguard.as_ref());
            Box::new(Wireguard {
                options,
                // Nothing that is compared comes from it.
                private: WireguardSecret::preshared([0; 32]),
                public: published_key(own)
                    .or_else(|| devices.find_map(|device| device.public_key))
                    .unwrap_or(NOBODY),
                global_ipv6: underlay.public_ip.ipv6().is_some_and(is_global),
            })
        }
        BackendSettings::Udp(options) => Box::new(Udp {
            options,
            carried_by: match underlay.address.ipv4() {
                Some(_) => IpFamily::V4,
                None => IpFamily::V6,
            },
        }),
        BackendSettings::Alloc => Box::new(Alloc),
        BackendSettings::Unread => return None,
    })
}

/// The Ethernet address of the own VTEP: what the lease says, else that of the device, else one that nobody has.
fn mac(own: &Record, seen: &Seen, device: Device) -> Mac {
    let of_ipv6 = matches!(
        device,
        Device::Vxlan {
            family: IpFamily::V6,
            ..
        }
    );
    published_mac(own, of_ipv6)
        .or_else(|| seen.tunnels.get(&device).and_then(|tunnel| tunnel.mac))
        .unwrap_or_else(|| Mac::local_unicast([0; 6]))
}

/// What a lease says of its WireGuard device.
pub fn published_key(record: &Record) -> Option<WireguardPublicKey> {
    let value = &record.value;
    let data = value.backend_data.as_ref().or(value.backend_v6_data.as_ref())?;
    Some(WireguardLeaseData::parse(data).ok()?.public_key)
}

/// What a lease says of its VXLAN device in a family.
pub fn published_mac(record: &Record, ipv6: bool) -> Option<Mac> {
    let data = if ipv6 {
        &record.value.backend_v6_data
    } else {
        &record.value.backend_data
    };
    let vxlan = record.value.backend_type.as_deref() == Some("vxlan");
    let data = data.as_ref().filter(|_| vxlan)?;
    Some(VxlanLeaseData::parse(data).ok()?.vtep_mac)
}

/// The peers as flanneld chooses them.
fn peers(config: &NetworkConfig, own: &Record, listing: &Listing, protected: &[Protected]) -> PeerView {
    let families = |key: &LeaseKey| key.ipv4().is_some();
    let records = listing
        .records
        .iter()
        // Nodes of IPv6 alone have a range of their own.
        .filter(|record| families(&record.key) == families(&own.key))
        .map(|record| flannel_lease::Record {
            key: record.key.to_string(),
            value: record.kv.value.clone(),
            revisions: Revisions {
                created: record.kv.create_revision,
                modified: record.kv.mod_revision,
            },
            lease: record.kv.lease.0,
        });
    let now = std::time::Duration::ZERO;
    let mut table = PeerTable::new(Patience {
        hold: now,
        grace: now,
    });
    table.reset(records, 1, now);
    table.view(&Limits {
        pools: &config.pools,
        own: &own.key,
        identity: &Identity::of(&own.value),
        stranded: &[],
        protected,
    })
}

/// Subnets of peers in which this host still has an address: pods that a lost lease left behind.
pub fn stranded(peers: &[Peer], seen: &Seen) -> Vec<IpSubnet> {
    let addresses: Vec<IpAddr> = seen
        .interfaces
        .iter()
        .flat_map(|interface| interface.addresses.iter().map(|a| a.address))
        .collect();
    let subnets = peers.iter().flat_map(|peer| {
        let ipv4 = peer.key.ipv4().map(IpSubnet::from);
        ipv4.into_iter().chain(peer.key.ipv6().map(IpSubnet::from))
    });
    subnets
        .filter(|subnet| addresses.iter().any(|address| subnet.holds(*address)))
        .collect()
}
