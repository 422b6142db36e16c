//! Packets in UDP datagrams, carried by the daemon itself (flannel's `udp`): one TUN device, one route to the whole network, and a
//! table of peers that the data path has.

use std::net::{IpAddr, SocketAddr};

use flannel_lease::Peer as LeasePeer;
use flannel_model::{IpFamily, IpSubnet, UdpLeaseData, UdpOptions};

use super::{Backend, FamilyFacts, Reject, Useless, subnet_of};
use crate::device::Device;
use crate::overlay::{DesiredOverlay, LinkKind, Way};

/// Bytes of the outer IPv4 and UDP headers.
pub const UDP_OVERHEAD_V4: u32 = 28;
/// The same with an IPv6 header.
pub const UDP_OVERHEAD_V6: u32 = 48;

/// One TUN device for both families of pods, one socket.
#[derive(Debug, Clone, Copy)]
pub struct Udp {
    /// What the network config says.
    pub options: UdpOptions,
    /// The family of the underlay that carries everything.
    pub carried_by: IpFamily,
}

/// Another node, as the data path needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpPeer {
    /// Where its datagrams come from and go to.
    pub endpoint: SocketAddr,
    /// Its pods, of one family.
    pub subnet: IpSubnet,
    /// It is behind a NAT: its datagrams come from any port of its address.
    pub any_port: bool,
    /// It reads the outer ECN bits.
    pub ecn: bool,
}

impl Backend for Udp {
    fn overlay(&self, facts: &FamilyFacts<'_>, peers: &[&LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
        let overhead = match self.carried_by {
            IpFamily::V4 => UDP_OVERHEAD_V4,
            IpFamily::V6 => UDP_OVERHEAD_V6,
        };
        let mtu = facts.carrier.mtu.saturating_sub(overhead);
        let mut overlay = facts.empty(mtu);
        overlay.tunnel = Some(facts.tunnel(Device::Tun, mtu, LinkKind::Tun));
        // The data path knows the peers; the kernel only has to hand everything over.
        overlay.routes.insert(facts.network, Way::device());
        let (found, useless) = self.peers(facts.family(), peers);
        overlay.peers = found.len();
        (overlay, useless)
    }
}

impl Udp {
    /// The peers with a subnet of the family, and the leases that are of no use.
    ///
    /// flannel routes every lease that it sees, whatever its backend; a node of another backend has nobody who listens here.
    pub fn peers(&self, family: IpFamily, peers: &[&LeasePeer]) -> (Vec<UdpPeer>, Vec<Useless>) {
        let mut found = Vec::with_capacity(peers.len());
        let mut useless = Vec::new();
        for lease in peers.iter().copied() {
            let Some(subnet) = subnet_of(lease, family) else {
                continue;
            };
            match self.read(lease, subnet) {
                Ok(peer) => found.push(peer),
                Err(reject) => useless.push((lease.key, reject)),
            }
        }
        (found, useless)
    }

    fn read(&self, lease: &LeasePeer, subnet: IpSubnet) -> Result<UdpPeer, Reject> {
        if let Some(theirs) = lease
            .value
            .backend_type
            .as_deref()
            .filter(|name| !matches!(*name, "" | "udp"))
        {
            return Err(Reject::OtherBackend {
                theirs: Some(theirs.to_owned()),
                ours: "udp",
            });
        }
        let data = match &lease.value.backend_data {
            Some(raw) => UdpLeaseData::parse(raw).map_err(|error| Reject::Data {
                field: "BackendData",
                problem: format!("{error}; expected Port and ECN, or nothing"),
            })?,
            None => UdpLeaseData::default(),
        };
        let address: IpAddr = match self.carried_by {
            IpFamily::V4 => lease.value.public_ip.into(),
            IpFamily::V6 => lease.value.public_ipv6.ok_or(Reject::NoPublicIpv6)?.into(),
        };
        Ok(UdpPeer {
            endpoint: SocketAddr::new(address, data.port.unwrap_or(self.options.port)),
            subnet,
            any_port: data.port.is_some(),
            ecn: data.ecn,
        })
    }
}
