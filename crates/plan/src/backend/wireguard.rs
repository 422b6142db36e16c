//! WireGuard: every packet between nodes is encrypted (flannel's `wireguard`).
//!
//! One route leads the whole network into the device, and the device's own table knows which peer has what: a packet for a peer
//! whose key is not known is dropped, never sent in the clear, and what a peer sends from another subnet than its own is dropped
//! as well. Behind that route there is one that drops everything, for when the device is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flannel_lease::Peer as LeasePeer;
use flannel_model::{
    IpFamily, IpSubnet, LeaseKey, WIREGUARD_OVERHEAD, WireguardLeaseData, WireguardMode, WireguardOptions,
    WireguardPublicKey, WireguardSecret,
};

use super::{Backend, FamilyFacts, Reject, Useless, subnet_of};
use crate::device::Device;
use crate::overlay::{DesiredOverlay, LinkKind, Tunnel, Way, WireguardPeer, WireguardTunnel};

/// One device a family, or one for both.
#[derive(Debug, Clone, Copy)]
pub struct Wireguard {
    /// What the network config says.
    pub options: WireguardOptions,
    /// The node's private key.
    pub private: WireguardSecret,
    /// The public key that belongs to it.
    pub public: WireguardPublicKey,
    /// Whether the node itself has a global IPv6 address, for mode auto.
    pub global_ipv6: bool,
}

impl Backend for Wireguard {
    fn overlay(&self, facts: &FamilyFacts<'_>, peers: &[&LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
        let family = facts.family();
        let carrier = facts.carrier.mtu;
        let mtu = self
            .options
            .mtu
            .unwrap_or(carrier)
            .min(carrier)
            .saturating_sub(WIREGUARD_OVERHEAD);
        let mut overlay = facts.empty(mtu);
        let (peers, useless) = self.peers(family, peers);
        overlay.peers = peers.len();
        overlay.routes.insert(facts.network, Way::device());
        // While somebody's `ip link del` leaves the node without the device, the default route must not get its packets.
        overlay.blackholes.insert(facts.network);
        let device = Device::Wireguard {
            family: self.device_family(family),
        };
        overlay.tunnel = Some(Tunnel {
            wireguard: Some(WireguardTunnel {
                private: self.private,
                public: self.public,
                port: self.port(family),
                peers,
            }),
            ..facts.tunnel(device, mtu, LinkKind::Wireguard)
        });
        (overlay, useless)
    }
}

impl Wireguard {
    /// The family whose device carries pods of `family`: its own, or the one device of both.
    fn device_family(&self, family: IpFamily) -> IpFamily {
        match self.options.mode {
            WireguardMode::Separate => family,
            WireguardMode::Auto | WireguardMode::Ipv4 | WireguardMode::Ipv6 => IpFamily::V4,
        }
    }

    fn port(&self, family: IpFamily) -> u16 {
        match self.device_family(family) {
            IpFamily::V4 => self.options.port,
            IpFamily::V6 => self.options.port_v6,
        }
    }

    /// The peers of the device that carries pods of `family`.
    fn peers(
        &self,
        family: IpFamily,
        leases: &[&LeasePeer],
    ) -> (BTreeMap<WireguardPublicKey, WireguardPeer>, Vec<Useless>) {
        let mut oldest_first = leases.to_vec();
        // A newcomer cannot take over a key that is in use.
        oldest_first.sort_by_key(|lease| (lease.revisions.created, lease.key));
        let mut peers: BTreeMap<WireguardPublicKey, (LeaseKey, WireguardPeer)> = BTreeMap::new();
        let mut useless = Vec::new();
        for lease in oldest_first {
            let allowed = self.allowed(family, lease);
            if allowed.is_empty() {
                continue;
            }
            match self.peer(family, lease, allowed) {
                Err(reject) => useless.push((lease.key, reject)),
                Ok((key, peer)) => match peers.get_mut(&key) {
                    None => {
                        peers.insert(key, (lease.key, peer));
                    }
                    // A node that took a second subnet.
                    Some((_, known)) if known.endpoint == peer.endpoint => known.allowed.extend(peer.allowed),
                    Some((holder, _)) => useless.push((lease.key, Reject::SharedKey { holder: *holder })),
                },
            }
        }
        (
            peers.into_iter().map(|(key, (_, peer))| (key, peer)).collect(),
            useless,
        )
    }

    /// The subnets of a lease that the device of `family` carries.
    fn allowed(&self, family: IpFamily, lease: &LeasePeer) -> BTreeSet<IpSubnet> {
        let families: &[IpFamily] = match self.options.mode {
            WireguardMode::Separate => &[family],
            WireguardMode::Auto | WireguardMode::Ipv4 | WireguardMode::Ipv6 => &[IpFamily::V4, IpFamily::V6],
        };
        families
            .iter()
            .filter_map(|family| subnet_of(lease, *family))
            .collect()
    }

    fn peer(
        &self,
        family: IpFamily,
        lease: &LeasePeer,
        allowed: BTreeSet<IpSubnet>,
    ) -> Result<(WireguardPublicKey, WireguardPeer), Reject> {
        let value = &lease.value;
        let theirs = value.backend_type.as_deref();
        if theirs != Some("wireguard") {
            return Err(Reject::OtherBackend {
                theirs: theirs.map(ToOwned::to_owned),
                ours: "wireguard",
            });
        }
        let over = self.underlay_family(family, lease);
        let ipv4 = Some(value.public_ip)
            .filter(|ip| !ip.is_unspecified())
            .map(IpAddr::V4);
        let address = match over {
            IpFamily::V4 => ipv4.ok_or(Reject::NoPublicIpv4)?,
            IpFamily::V6 => value.public_ipv6.map(IpAddr::V6).ok_or(Reject::NoPublicIpv6)?,
        };
        let data = data(self.device_family(family), lease)?;
        if !data.public_key.is_usable() {
            return Err(Reject::Data {
                field: "BackendData",
                problem: "PublicKey is all zeros, which is nobody's key".to_owned(),
            });
        }
        if data.public_key == self.public {
            return Err(Reject::OwnKey);
        }
        let port = if data.port == 0 {
            self.port(family)
        } else {
            data.port
        };
        let peer = WireguardPeer {
            endpoint: SocketAddr::new(address, port),
            preshared: self.options.psk,
            keepalive: self.options.keepalive,
            allowed,
        };
        Ok((data.public_key, peer))
    }

    /// Over which family of the underlay a peer is reached.
    fn underlay_family(&self, family: IpFamily, lease: &LeasePeer) -> IpFamily {
        match self.options.mode {
            WireguardMode::Separate => family,
            WireguardMode::Ipv4 => IpFamily::V4,
            WireguardMode::Ipv6 => IpFamily::V6,
            WireguardMode::Auto => {
                let theirs = lease.value.public_ipv6.filter(is_global);
                if self.global_ipv6 && theirs.is_some() && is_private(lease.value.public_ip) {
                    IpFamily::V6
                } else {
                    IpFamily::V4
                }
            }
        }
    }
}

/// Global unicast: 2000::/3 (RFC 4291 §2.4 and IANA's registry).
pub fn is_global(ip: &Ipv6Addr) -> bool {
    ip.segments()[0] & 0xe000 == 0x2000
}

/// An address that is not routed between sites (RFC 1918, RFC 6598, link-local), or none at all.
fn is_private(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private() || ip.is_link_local() || ip.is_unspecified() || (a == 100 && b & 0xc0 == 64)
}

/// What the lease says for the device; a node with one device may have written it for either family.
fn data(device: IpFamily, lease: &LeasePeer) -> Result<WireguardLeaseData, Reject> {
    let (ipv4, ipv6) = (&lease.value.backend_data, &lease.value.backend_v6_data);
    let (field, raw) = match (device, ipv4, ipv6) {
        (IpFamily::V4, Some(raw), _) => ("BackendData", Some(raw)),
        (IpFamily::V6, _, Some(raw)) => ("BackendV6Data", Some(raw)),
        (_, Some(raw), None) => ("BackendData", Some(raw)),
        (_, None, Some(raw)) => ("BackendV6Data", Some(raw)),
        (_, None, None) => ("BackendData", None),
    };
    let bad = |problem: &str| Reject::Data {
        field,
        problem: format!("{problem}; expected PublicKey and Port"),
    };
    let raw = raw.ok_or_else(|| bad("missing"))?;
    WireguardLeaseData::parse(raw).map_err(|error| bad(&error.to_string()))
}

#[cfg(test)]
mod tests;
