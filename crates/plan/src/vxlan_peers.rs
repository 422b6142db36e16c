//! Which of the checked peers can be reached over our VXLAN, and which records stand in the way.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;

use flannel_lease::Peer as LeasePeer;
use flannel_model::{LeaseKey, Mac, VxlanLeaseData};

use crate::vxlan::Peer;

/// Why a peer's record is of no use to the VXLAN backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VxlanReject {
    /// It is a lease of another backend.
    Backend(Option<String>),
    /// Its backend data cannot be read.
    Data(String),
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
            Self::Data(error) => write!(f, "BackendData: {error}; expected VNI and VtepMAC"),
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

/// Reads what the peers published for VXLAN. Every peer that is of no use is named with its key; the others are as they were.
pub fn vxlan_peers(
    peers: impl IntoIterator<Item = LeasePeer>,
    vni: u32,
    own_mac: Mac,
) -> (Vec<Peer>, Vec<(LeaseKey, VxlanReject)>) {
    let mut rejects = Vec::new();
    let mut sound: Vec<(LeasePeer, Mac)> = Vec::new();
    for peer in peers {
        match vtep(&peer, vni, own_mac) {
            Ok(mac) => sound.push((peer, mac)),
            Err(reject) => rejects.push((peer.key, reject)),
        }
    }
    // Oldest first, so that a newcomer cannot take over an address that is in use.
    sound.sort_by_key(|(peer, _)| (peer.revisions.created, peer.key));
    let mut holders: HashMap<Mac, (Ipv4Addr, LeaseKey)> = HashMap::new();
    let mut usable = Vec::with_capacity(sound.len());
    for (peer, mac) in sound {
        let Some(subnet) = peer.key.ipv4() else { continue };
        let (address, holder) = *holders.entry(mac).or_insert((peer.value.public_ip, peer.key));
        if address == peer.value.public_ip {
            usable.push(Peer {
                subnet,
                public_ip: address,
                vtep_mac: mac,
            });
        } else {
            rejects.push((peer.key, VxlanReject::SharedMac { mac, holder }));
        }
    }
    usable.sort_by_key(|peer| peer.subnet);
    (usable, rejects)
}

fn vtep(peer: &LeasePeer, vni: u32, own_mac: Mac) -> Result<Mac, VxlanReject> {
    if peer.value.backend_type.as_deref() != Some("vxlan") {
        return Err(VxlanReject::Backend(peer.value.backend_type.clone()));
    }
    let Some(raw) = &peer.value.backend_data else {
        return Err(VxlanReject::Data("missing".to_owned()));
    };
    let data = VxlanLeaseData::parse(raw).map_err(|error| VxlanReject::Data(error.to_string()))?;
    match data.vtep_mac {
        _ if data.vni != vni => Err(VxlanReject::Vni {
            theirs: data.vni,
            ours: vni,
        }),
        mac if !mac.is_unicast() => Err(VxlanReject::NotUnicast(mac)),
        mac if mac == own_mac => Err(VxlanReject::OwnMac(mac)),
        mac => Ok(mac),
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
            let (peers, rejects) = vxlan_peers([peer(9, 9, &backend), good], 1, OWN);
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
        let (peers, rejects) = vxlan_peers([old, peer(2, 3, &vxlan(1, "02:00:00:00:00:02"))], 1, OWN);
        assert_eq!((peers.len(), rejects.len()), (2, 0));
    }

    #[test]
    fn names_are_read_in_any_case() {
        let odd = r#","BackendType":"vxlan","BackendData":{"vni":1,"VTEPMAC":"02-00-00-00-00-02"}"#;
        assert_eq!(vxlan_peers([peer(2, 2, odd)], 1, OWN).0.len(), 1);
    }
}
