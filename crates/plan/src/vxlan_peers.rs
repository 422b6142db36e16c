//! Which of the checked peers can be reached over our VXLAN, and which records stand in the way.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use flannel_lease::Peer as LeasePeer;
use flannel_model::{IpFamily, IpSubnet, LeaseKey, Mac, VxlanLeaseData};

use crate::vxlan::Peer;

/// Why a peer's record is of no use to the VXLAN backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VxlanReject {
    /// It is a lease of another backend.
    Backend(Option<String>),
    /// Its backend data cannot be read: the field, and what is wrong.
    Data(&'static str, String),
    /// It has an IPv6 subnet and no address to reach it by.
    NoPublicIpv6,
    /// It uses another VXLAN network.
    Vni {
        /// Its VNI.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// Its VTEP address can be no station's.
    NotUnicast(Mac),
    /// It claims the address of our VTEP.
    OwnMac(Mac),
    /// An older record with another PublicIP has the same VTEP address; the forwarding table can hold one.
    SharedMac {
        /// The address.
        mac: Mac,
        /// The older record.
        holder: LeaseKey,
    },
}

impl fmt::Display for VxlanReject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(Some(other)) => {
                write!(f, "it is a lease of backend {other:?}; this node speaks vxlan")
            }
            Self::Backend(None) => {
                f.write_str("it names no backend (udp and alloc do not); this node speaks vxlan")
            }
            Self::Data(field, error) => write!(f, "{field}: {error}; expected VNI and VtepMAC"),
            Self::NoPublicIpv6 => f.write_str("it has an IPv6 subnet and no PublicIPv6"),
            Self::Vni { theirs, ours } => write!(f, "its VNI is {theirs}; this network's is {ours}"),
            Self::NotUnicast(mac) => write!(f, "its VtepMAC {mac} is not a unicast address"),
            Self::OwnMac(mac) => write!(f, "its VtepMAC {mac} is this node's own"),
            Self::SharedMac { mac, holder } => {
                write!(
                    f,
                    "its VtepMAC {mac} is that of the older record {holder}, which has another PublicIP"
                )
            }
        }
    }
}

/// Reads what the peers published for VXLAN in one family. Every peer that is of no use is named with its key; the others are
/// as they were. A peer without a subnet of the family is none of that family, and is passed over.
pub fn vxlan_peers<'a>(
    peers: impl IntoIterator<Item = &'a LeasePeer>,
    family: IpFamily,
    vni: u32,
    own_mac: Mac,
) -> (Vec<Peer>, Vec<(LeaseKey, VxlanReject)>) {
    let mut rejects = Vec::new();
    let mut sound: Vec<(&LeasePeer, Peer)> = Vec::new();
    for peer in peers {
        let Some(subnet) = subnet_of(peer, family) else {
            continue;
        };
        match read(peer, subnet, vni, own_mac) {
            Ok(read) => sound.push((peer, read)),
            Err(reject) => rejects.push((peer.key, reject)),
        }
    }
    // Oldest first, so that a newcomer cannot take over an address that is in use.
    sound.sort_by_key(|(peer, _)| (peer.revisions.created, peer.key));
    let mut holders: HashMap<Mac, (IpAddr, LeaseKey)> = HashMap::new();
    let mut usable = Vec::with_capacity(sound.len());
    for (peer, read) in sound {
        let mac = read.vtep_mac;
        let (address, holder) = *holders.entry(mac).or_insert((read.public_ip, peer.key));
        if address == read.public_ip {
            usable.push(read);
        } else {
            rejects.push((peer.key, VxlanReject::SharedMac { mac, holder }));
        }
    }
    usable.sort_by_key(|peer| peer.subnet);
    (usable, rejects)
}

fn subnet_of(peer: &LeasePeer, family: IpFamily) -> Option<IpSubnet> {
    match family {
        IpFamily::V4 => peer.key.ipv4().map(IpSubnet::V4),
        IpFamily::V6 => peer.key.ipv6().map(IpSubnet::V6),
    }
}

fn read(peer: &LeasePeer, subnet: IpSubnet, vni: u32, own_mac: Mac) -> Result<Peer, VxlanReject> {
    let value = &peer.value;
    if value.backend_type.as_deref() != Some("vxlan") {
        return Err(VxlanReject::Backend(value.backend_type.clone()));
    }
    let (public_ip, field, raw) = match subnet {
        IpSubnet::V4(_) => (Some(value.public_ip.into()), "BackendData", &value.backend_data),
        IpSubnet::V6(_) => (
            value.public_ipv6.map(IpAddr::from),
            "BackendV6Data",
            &value.backend_v6_data,
        ),
    };
    let public_ip = public_ip.ok_or(VxlanReject::NoPublicIpv6)?;
    let Some(raw) = raw else {
        return Err(VxlanReject::Data(field, "missing".to_owned()));
    };
    let data = VxlanLeaseData::parse(raw).map_err(|error| VxlanReject::Data(field, error.to_string()))?;
    match data.vtep_mac {
        _ if data.vni != vni => Err(VxlanReject::Vni {
            theirs: data.vni,
            ours: vni,
        }),
        mac if !mac.is_unicast() => Err(VxlanReject::NotUnicast(mac)),
        mac if mac == own_mac => Err(VxlanReject::OwnMac(mac)),
        vtep_mac => Ok(Peer {
            subnet,
            public_ip,
            vtep_mac,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_lease::Revisions;
    use flannel_model::LeaseValue;

    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);

    fn peer(third: u8, created: i64, backend: &str) -> LeasePeer {
        let value = format!(r#"{{"PublicIP":"192.168.50.{third}","PublicIPv6":null{backend}}}"#);
        LeasePeer {
            key: format!("10.5.{third}.0-24").parse().unwrap(),
            value: LeaseValue::parse(value.as_bytes()).unwrap(),
            revisions: Revisions {
                created,
                modified: created,
            },
        }
    }

    fn vxlan(vni: u32, mac: &str) -> String {
        format!(r#","BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"{mac}"}}"#)
    }

    #[test]
    fn each_useless_record_is_named_and_the_others_stay() {
        for (backend, part) in [
            (String::new(), "names no backend"),
            (r#","BackendType":"host-gw""#.into(), "\"host-gw\""),
            (r#","BackendType":"vxlan""#.into(), "missing"),
            (
                r#","BackendType":"vxlan","BackendData":{"VNI":1}"#.into(),
                "VtepMAC",
            ),
            (
                r#","BackendType":"vxlan","BackendData":"x""#.into(),
                "BackendData",
            ),
            (vxlan(2, "02:00:00:00:00:09"), "VNI is 2"),
            (vxlan(1, "00:00:00:00:00:00"), "unicast"),
            (vxlan(1, "ff:ff:ff:ff:ff:ff"), "unicast"),
            (vxlan(1, "02:00:00:00:00:01"), "own"),
            (vxlan(1, "02:00:00:00:00:02"), "older record 10.5.2.0-24"),
        ] {
            let good = peer(2, 2, &vxlan(1, "02:00:00:00:00:02"));
            let (peers, rejects) = vxlan_peers(&[peer(9, 9, &backend), good], IpFamily::V4, 1, OWN);
            assert_eq!(peers.len(), 1, "{backend}");
            assert_eq!(peers[0].subnet.to_string(), "10.5.2.0/24");
            assert!(
                rejects[0].1.to_string().contains(part),
                "{backend}: {}",
                rejects[0].1
            );
        }
    }

    #[test]
    fn a_node_that_moved_has_two_subnets_behind_one_vtep() {
        let mut old = peer(2, 2, &vxlan(1, "02:00:00:00:00:02"));
        old.key = "10.5.77.0-24".parse().unwrap();
        let (peers, rejects) = vxlan_peers(
            &[old, peer(2, 3, &vxlan(1, "02:00:00:00:00:02"))],
            IpFamily::V4,
            1,
            OWN,
        );
        assert_eq!((peers.len(), rejects.len()), (2, 0));
    }

    #[test]
    fn names_are_read_in_any_case() {
        let odd = r#","BackendType":"vxlan","BackendData":{"vni":1,"VTEPMAC":"02-00-00-00-00-02"}"#;
        assert_eq!(vxlan_peers(&[peer(2, 2, odd)], IpFamily::V4, 1, OWN).0.len(), 1);
    }
}
