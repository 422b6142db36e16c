//! What this node says about itself in its lease.

use flannel_lease::Identity;
use flannel_model::{
    Families, Ipv4Pool, Ipv6Pool, LeaseValue, Mac, UdpLeaseData, VxlanLeaseData, WireguardLeaseData,
    WireguardMode, WireguardOptions, WireguardPublicKey,
};
use serde_json::value::RawValue;

/// The node's addresses, and what its backend tells peers.
#[derive(Debug, Clone)]
pub struct Publisher {
    identity: Identity,
    families: Families<Ipv4Pool, Ipv6Pool>,
    backend: Published,
    reserved: bool,
}

/// What a backend tells peers beside the addresses.
#[derive(Debug, Clone)]
pub enum Published {
    /// The VXLAN network, and the VTEP of each family; only those of the network's families are used. Their Ethernet addresses
    /// are settled with the first lease and stay: every peer has them in its neighbour table.
    Vxlan {
        /// The VXLAN network identifier.
        vni: u32,
        /// The VTEP of IPv4.
        ipv4: Vtep,
        /// The VTEP of IPv6.
        ipv6: Vtep,
    },
    /// The public key, and the UDP port of each family's device.
    Wireguard {
        /// The key.
        key: WireguardPublicKey,
        /// The port for IPv4, or of the one device.
        port: u16,
        /// The port for IPv6.
        port_v6: u16,
    },
    /// Its name and nothing else.
    Name(&'static str),
    /// Not its name, as flannel's udp, and fields that flannel ignores.
    Udp(UdpLeaseData),
    /// Not even its name: flannel's alloc.
    Nothing,
}

/// Where the Ethernet address of one family's VTEP comes from.
#[derive(Debug, Clone, Copy)]
pub struct Vtep {
    settled: Option<Mac>,
    fresh: Mac,
}

impl Vtep {
    /// `device` is the address of a VTEP that stands already; `fresh` is used when neither it nor an earlier lease has one.
    pub fn new(device: Option<Mac>, fresh: Mac) -> Self {
        Self {
            settled: device.filter(Mac::is_unicast),
            fresh,
        }
    }

    fn settle(&mut self, earlier: Option<&RawValue>) -> Mac {
        let earlier = || {
            let data = VxlanLeaseData::parse(earlier?).ok()?;
            Some(data.vtep_mac).filter(Mac::is_unicast)
        };
        *self
            .settled
            .get_or_insert_with(|| earlier().unwrap_or(self.fresh))
    }
}

impl Publisher {
    /// For a network of these families.
    pub fn new(identity: Identity, families: Families<Ipv4Pool, Ipv6Pool>, backend: Published) -> Self {
        Self {
            identity,
            families,
            backend,
            reserved: false,
        }
    }

    /// The node is reached under other addresses from now on.
    pub fn moved(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// The families that are on.
    pub fn families(&self) -> &Families<Ipv4Pool, Ipv6Pool> {
        &self.families
    }

    /// The VTEPs' addresses once they are settled; `None` also for a backend that has none.
    pub fn macs(&self) -> Option<Families<Mac, Mac>> {
        let Published::Vxlan { ipv4, ipv6, .. } = &self.backend else {
            return None;
        };
        match self.families {
            Families::Ipv4(_) => ipv4.settled.map(Families::Ipv4),
            Families::Ipv6(_) => ipv6.settled.map(Families::Ipv6),
            Families::Dual(..) => Some(Families::Dual(ipv4.settled?, ipv6.settled?)),
        }
    }

    /// What to publish, given what an earlier run published.
    pub fn value(&mut self, published: Option<&LeaseValue>) -> LeaseValue {
        // A reservation stays one.
        self.reserved = published.map_or(self.reserved, |value| value.reserved);
        let (backend_type, backend_data, backend_v6_data) = match &mut self.backend {
            Published::Vxlan { vni, ipv4, ipv6 } => {
                let data = |vtep: &mut Vtep, earlier: Option<&RawValue>| {
                    let vtep_mac = vtep.settle(earlier);
                    let text = serde_json::to_string(&VxlanLeaseData { vni: *vni, vtep_mac }).ok()?;
                    RawValue::from_string(text).ok()
                };
                let earlier4 = published.and_then(|value| value.backend_data.as_deref());
                let earlier6 = published.and_then(|value| value.backend_v6_data.as_deref());
                (
                    Some("vxlan"),
                    self.families.ipv4().and_then(|_| data(ipv4, earlier4)),
                    self.families.ipv6().and_then(|_| data(ipv6, earlier6)),
                )
            }
            Published::Wireguard { key, port, port_v6 } => (
                Some("wireguard"),
                self.families.ipv4().and_then(|_| wireguard(*key, *port)),
                self.families.ipv6().and_then(|_| wireguard(*key, *port_v6)),
            ),
            Published::Name(name) => (Some(*name), None, None),
            Published::Udp(data) => {
                let text = serde_json::to_string(data).ok();
                (None, text.and_then(|text| RawValue::from_string(text).ok()), None)
            }
            Published::Nothing => (None, None, None),
        };
        LeaseValue {
            public_ip: self.identity.public_ip,
            public_ipv6: self.identity.public_ipv6,
            backend_type: backend_type.map(ToOwned::to_owned),
            backend_data,
            backend_v6_data,
            node_id: self.identity.node,
            reserved: self.reserved,
        }
    }
}

impl Published {
    /// What the WireGuard backend tells: with one device for both families, its port stands for both.
    pub fn wireguard(key: WireguardPublicKey, options: &WireguardOptions) -> Self {
        let port_v6 = match options.mode {
            WireguardMode::Separate => options.port_v6,
            WireguardMode::Auto | WireguardMode::Ipv4 | WireguardMode::Ipv6 => options.port,
        };
        Self::Wireguard {
            key,
            port: options.port,
            port_v6,
        }
    }
}

fn wireguard(public_key: WireguardPublicKey, port: u16) -> Option<Box<RawValue>> {
    let text = serde_json::to_string(&WireguardLeaseData { public_key, port }).ok()?;
    RawValue::from_string(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::{NetworkConfig, NodeId};

    const EARLIER: &str = r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#;
    const DUAL: &str = r#"{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"},"BackendV6Data":{"VNI":1,"VtepMAC":"7e:11:22:33:44:55"}}"#;

    fn identity(public_ipv6: Option<&str>) -> Identity {
        Identity {
            public_ip: "192.168.50.11".parse().unwrap(),
            public_ipv6: public_ipv6.map(|text| text.parse().unwrap()),
            node: None,
        }
    }

    fn publisher(config: &str, identity: Identity, device: Option<&str>) -> Publisher {
        let pools = NetworkConfig::parse(config.as_bytes()).unwrap().pools;
        let vtep = |last| {
            Vtep::new(
                device.map(|d| d.parse().unwrap()),
                Mac::new([2, 0, 0, 0, 0, last]),
            )
        };
        let vxlan = Published::Vxlan {
            vni: 1,
            ipv4: vtep(9),
            ipv6: vtep(10),
        };
        Publisher::new(identity, pools, vxlan)
    }

    const IPV4: &str = r#"{"Network":"10.5.0.0/16"}"#;

    #[test]
    fn an_earlier_lease_keeps_its_bytes() {
        let earlier = LeaseValue::parse(EARLIER.as_bytes()).unwrap();
        let mut publisher = publisher(IPV4, identity(None), None);
        assert_eq!(publisher.value(Some(&earlier)).to_json(), EARLIER);
    }

    #[test]
    fn dual_stack_is_published_as_flannel_does() {
        let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        let earlier = LeaseValue::parse(DUAL.as_bytes()).unwrap();
        let mut publisher = publisher(config, identity(Some("fd00:50::11")), None);
        assert_eq!(publisher.macs(), None);
        assert_eq!(publisher.value(Some(&earlier)).to_json(), DUAL);
        assert!(matches!(publisher.macs(), Some(Families::Dual(..))));
    }

    #[test]
    fn the_device_that_stands_wins_over_the_lease_and_a_fresh_address_is_last() {
        let earlier = LeaseValue::parse(EARLIER.as_bytes()).unwrap();
        let mut with_device = publisher(IPV4, identity(None), Some("8a:00:00:00:00:01"));
        let value = with_device.value(Some(&earlier)).to_json();
        assert!(value.contains("8a:00:00:00:00:01"), "{value}");
        let mut new = publisher(IPV4, identity(None), None);
        assert_eq!(new.macs(), None);
        new.value(None);
        new.value(Some(&earlier));
        assert_eq!(new.macs(), Some(Families::Ipv4(Mac::new([2, 0, 0, 0, 0, 9]))));
    }

    #[test]
    fn the_identity_and_the_mark_of_a_reservation_are_published() {
        let reserved = format!(
            "{},\"Reserved\":true}}",
            EARLIER.trim_end_matches('}').to_owned() + "}"
        );
        let earlier = LeaseValue::parse(reserved.as_bytes()).unwrap();
        let me = Identity {
            node: Some(NodeId::new(0xabc)),
            ..identity(None)
        };
        let text = publisher(IPV4, me, None).value(Some(&earlier)).to_json();
        let end = r#""NodeID":"00000000000000000000000000000abc","Reserved":true}"#;
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn other_backends_publish_their_name_or_nothing() {
        let pools = NetworkConfig::parse(IPV4.as_bytes()).unwrap().pools;
        let text = |backend| {
            Publisher::new(identity(None), pools, backend)
                .value(None)
                .to_json()
        };
        let addresses = r#"{"PublicIP":"192.168.50.11","PublicIPv6":null"#;
        assert_eq!(
            text(Published::Name("host-gw")),
            format!(r#"{addresses},"BackendType":"host-gw"}}"#)
        );
        assert_eq!(text(Published::Nothing), format!("{addresses}}}"));
    }
}
