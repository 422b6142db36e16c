//! What this node says about itself in its lease.

use std::net::Ipv4Addr;

use flannel_model::{LeaseValue, Mac, VxlanLeaseData};
use serde_json::value::RawValue;

/// The node's address and VTEP. The VTEP's Ethernet address is settled with the first lease and stays: every peer has it in
/// its neighbour table.
#[derive(Debug, Clone)]
pub struct Publisher {
    public_ip: Ipv4Addr,
    vni: u32,
    mac: Option<Mac>,
    fresh: Mac,
}

impl Publisher {
    /// `device` is the address of a VTEP that stands already; `fresh` is used when neither it nor an earlier lease has one.
    pub fn new(public_ip: Ipv4Addr, vni: u32, device: Option<Mac>, fresh: Mac) -> Self {
        Self {
            public_ip,
            vni,
            mac: device.filter(Mac::is_unicast),
            fresh,
        }
    }

    /// The VTEP's address once it is settled.
    pub fn mac(&self) -> Option<Mac> {
        self.mac
    }

    /// What to publish, given what an earlier run published.
    pub fn value(&mut self, published: Option<&LeaseValue>) -> LeaseValue {
        let earlier = || published.and_then(vtep_of).filter(Mac::is_unicast);
        let vtep_mac = *self.mac.get_or_insert_with(|| earlier().unwrap_or(self.fresh));
        let data = VxlanLeaseData {
            vni: self.vni,
            vtep_mac,
        };
        LeaseValue {
            public_ip: self.public_ip,
            public_ipv6: None,
            backend_type: Some("vxlan".to_owned()),
            backend_data: serde_json::to_string(&data)
                .ok()
                .and_then(|text| RawValue::from_string(text).ok()),
            backend_v6_data: None,
        }
    }
}

fn vtep_of(value: &LeaseValue) -> Option<Mac> {
    VxlanLeaseData::parse(value.backend_data.as_ref()?)
        .ok()
        .map(|data| data.vtep_mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#;

    fn publisher(device: Option<&str>) -> Publisher {
        let fresh = Mac::new([2, 0, 0, 0, 0, 9]);
        Publisher::new(
            Ipv4Addr::new(192, 168, 50, 11),
            1,
            device.map(|d| d.parse().unwrap()),
            fresh,
        )
    }

    #[test]
    fn an_earlier_lease_keeps_its_bytes() {
        let earlier = LeaseValue::parse(EARLIER.as_bytes()).unwrap();
        assert_eq!(publisher(None).value(Some(&earlier)).to_json(), EARLIER);
    }

    #[test]
    fn the_device_that_stands_wins_over_the_lease_and_a_fresh_address_is_last() {
        let earlier = LeaseValue::parse(EARLIER.as_bytes()).unwrap();
        let mut with_device = publisher(Some("8a:00:00:00:00:01"));
        assert!(
            with_device
                .value(Some(&earlier))
                .to_json()
                .contains("8a:00:00:00:00:01")
        );
        let mut new = publisher(None);
        assert_eq!(new.mac(), None);
        new.value(None);
        new.value(Some(&earlier));
        assert_eq!(new.mac(), Some(Mac::new([2, 0, 0, 0, 0, 9])));
    }
}
