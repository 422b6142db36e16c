//! What the VXLAN backend reads from the network config and publishes in a lease.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::FieldError;
use crate::Mac;
use crate::json::Fields;
use crate::options::Options;

/// Bytes that VXLAN adds to a packet on an IPv4 underlay: outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348 §5).
pub const VXLAN_OVERHEAD_V4: u32 = 50;
/// The same on an IPv6 underlay, whose header has 40 bytes. flannel reckons 50 here as well, and the kernel then cuts the
/// device's MTU below what flannel tells the pods.
pub const VXLAN_OVERHEAD_V6: u32 = 70;

/// UDP port of the kernel when none is set; flannel leaves it to the kernel, which uses the number from before the
/// assignment of 4789 (drivers/net/vxlan, module parameter `udp_port`).
const KERNEL_PORT: u16 = 8472;
/// The VNI is a 24-bit field (RFC 7348 §5).
const MAX_VNI: u64 = (1 << 24) - 1;
/// Smallest underlay MTU that leaves the 68 bytes of RFC 791 inside the tunnel, and the largest that a device takes.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 118..=65_535;

/// The `Backend` object of the network config for `"Type": "vxlan"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanOptions {
    /// VXLAN network identifier; 1 when not set.
    pub vni: u32,
    /// UDP port; 8472 when not set or 0.
    pub port: u16,
    /// MTU of the underlay to reckon from, in bytes; the interface's own when not set.
    pub mtu: Option<u32>,
    /// VXLAN group-based policy extension.
    pub gbp: bool,
    /// Source address learning of the device.
    pub learning: bool,
    /// Plain routes to peers on the same link.
    pub direct_routing: bool,
}

impl Default for VxlanOptions {
    fn default() -> Self {
        Self {
            vni: 1,
            port: KERNEL_PORT,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
        }
    }
}

impl VxlanOptions {
    /// Reads the options, names in any case, unknown ones ignored.
    ///
    /// # Errors
    /// Every field that holds what it cannot hold.
    pub fn parse(backend: &RawValue) -> Result<Self, Vec<FieldError>> {
        let fields = Options::fields(backend)?;
        let mut read = Options::new(&fields);
        let default = Self::default();
        let options = Self {
            vni: read
                .number("VNI", 0..=MAX_VNI)
                .and_then(|vni| u32::try_from(vni).ok())
                .unwrap_or(default.vni),
            port: read.port("Port").unwrap_or(default.port),
            mtu: read.mtu("MTU", MTU_RANGE),
            gbp: read.flag("GBP"),
            learning: read.flag("Learning"),
            direct_routing: read.flag("DirectRouting"),
        };
        read.finish(options)
    }
}

/// `BackendData` of a VXLAN lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct VxlanLeaseData {
    /// The VNI that the node uses.
    #[serde(rename = "VNI")]
    pub vni: u32,
    /// Ethernet address of its VTEP.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: Mac,
}

impl VxlanLeaseData {
    /// Reads it as Go does: names in any case, a missing VNI is 0.
    ///
    /// # Errors
    /// When it is no object, or VNI or VtepMAC is not what it should be.
    pub fn parse(data: &RawValue) -> Result<Self, serde_json::Error> {
        let fields: Fields = serde_json::from_str(data.get())?;
        let vni = fields
            .get("VNI")
            .map_or(Ok(0), |raw| serde_json::from_str(raw.get()))?;
        let mac = fields
            .get("VtepMAC")
            .ok_or_else(|| serde::de::Error::missing_field("VtepMAC"))?;
        Ok(Self {
            vni,
            vtep_mac: serde_json::from_str(mac.get())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VxlanOptions, Vec<FieldError>> {
        VxlanOptions::parse(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn defaults_are_flannels() {
        let options = parse(r#"{"Type":"vxlan"}"#).unwrap();
        assert_eq!((options.vni, options.port, options.mtu), (1, 8472, None));
        assert_eq!(parse(r#"{"port":0,"VNI":null,"MTU":0}"#).unwrap(), options);
    }

    #[test]
    fn every_bad_field_is_named() {
        let errors = parse(r#"{"VNI":16777216,"Port":"8472","MTU":20,"GBP":1}"#).unwrap_err();
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(
            fields,
            ["Backend.VNI", "Backend.Port", "Backend.MTU", "Backend.GBP"]
        );
    }
}
