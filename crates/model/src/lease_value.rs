//! Values of leases, byte for byte as flannel writes them (API v3).

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::NodeId;
use crate::json::Fields;
use crate::text::shortened;

/// Longest lease value that is read, in bytes. flannel's own values are about 200 bytes; anything far beyond is junk
/// that must not cost memory on every node.
pub const MAX_LEASE_VALUE: usize = 8 * 1024;

/// What a node publishes about itself under its lease key.
///
/// Unknown fields of others are ignored; a value of ours is written with flannel's fields in flannel's order.
#[derive(Debug, Clone)]
pub struct LeaseValue {
    /// IPv4 address under which the node's tunnel is reached. Missing in a value: 0.0.0.0, as in flannel.
    pub public_ip: Ipv4Addr,
    /// IPv6 address of the tunnel; always written, as `null` when there is none.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Name of the backend; udp and alloc leases of flannel have none.
    pub backend_type: Option<String>,
    /// What the backend publishes for IPv4, as the bytes that stood in the value.
    pub backend_data: Option<Box<RawValue>>,
    /// The same for IPv6.
    pub backend_v6_data: Option<Box<RawValue>>,
    /// Who published it, in a field of our own that flannel ignores. One that cannot be read counts as none.
    pub node_id: Option<NodeId>,
    /// A mark of our own: the lease is a reservation and stays one whatever a node of flannel makes of it.
    pub reserved: bool,
}

/// Why a value is no lease value.
#[derive(Debug, thiserror::Error)]
pub enum LeaseValueError {
    /// Longer than [`MAX_LEASE_VALUE`].
    #[error("the value has {0} bytes; a lease value has at most {MAX_LEASE_VALUE}")]
    TooLong(usize),
    /// Not a JSON object.
    #[error("the value is not a JSON object")]
    NotAnObject(#[source] serde_json::Error),
    /// A field holds what it cannot hold.
    #[error("{field} is {value}; expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it holds, shortened.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl LeaseValue {
    /// Reads a value as flannel's decoder does: names in any case, unknown fields ignored, `PublicIPv6` optional.
    ///
    /// # Errors
    /// [`LeaseValueError`] names the field, what it holds and what was expected.
    pub fn parse(value: &[u8]) -> Result<Self, LeaseValueError> {
        if value.len() > MAX_LEASE_VALUE {
            return Err(LeaseValueError::TooLong(value.len()));
        }
        let fields: Fields = serde_json::from_slice(value).map_err(LeaseValueError::NotAnObject)?;
        let public_ip = match fields.get("PublicIP") {
            None => Ipv4Addr::UNSPECIFIED,
            Some(raw) => typed("PublicIP", raw, "an IPv4 address such as \"192.168.50.11\"")?,
        };
        let optional_v6 = fields.get("PublicIPv6").filter(|raw| raw.get() != "null");
        Ok(Self {
            public_ip,
            public_ipv6: optional_v6
                .map(|raw| typed("PublicIPv6", raw, "an IPv6 address or null"))
                .transpose()?,
            backend_type: fields
                .get("BackendType")
                .filter(|raw| raw.get() != "null")
                .map(|raw| typed::<String>("BackendType", raw, "the name of a backend"))
                .transpose()?
                .filter(|name| !name.is_empty()),
            backend_data: fields
                .get("BackendData")
                .filter(|raw| raw.get() != "null")
                .map(ToOwned::to_owned),
            backend_v6_data: fields
                .get("BackendV6Data")
                .filter(|raw| raw.get() != "null")
                .map(ToOwned::to_owned),
            node_id: fields
                .get("NodeID")
                .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
                .and_then(|text| text.parse().ok()),
            reserved: fields.get("Reserved").is_some_and(|raw| raw.get() == "true"),
        })
    }

    /// The bytes that flannel would write: compact, its field order, empty fields left out, `PublicIPv6` always there. Fields
    /// of our own come last.
    pub fn to_json(&self) -> String {
        let wire = Wire {
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
            backend_type: self.backend_type.as_deref(),
            backend_data: self.backend_data.as_deref(),
            backend_v6_data: self.backend_v6_data.as_deref(),
            node_id: self.node_id.map(|id| id.to_string()),
            reserved: self.reserved,
        };
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// Whether two values say the same, whatever their bytes.
    pub fn same_as(&self, other: &Self) -> bool {
        self.to_json() == other.to_json()
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "Option::is_none")]
    backend_type: Option<&'a str>,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<&'a RawValue>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<&'a RawValue>,
    #[serde(rename = "NodeID", skip_serializing_if = "Option::is_none")]
    node_id: Option<String>,
    #[serde(rename = "Reserved", skip_serializing_if = "std::ops::Not::not")]
    reserved: bool,
}

fn typed<T: DeserializeOwned>(
    field: &'static str,
    raw: &RawValue,
    expected: &'static str,
) -> Result<T, LeaseValueError> {
    let error = |_| LeaseValueError::Field {
        field,
        value: shortened(raw.get()),
        expected,
    };
    serde_json::from_str(raw.get()).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values as flannel v0.28 writes them, one for each backend.
    const GOLDEN: [&str; 8] = [
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":null}"#,
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"host-gw"}"#,
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"host-gw"}"#,
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#,
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"},"BackendV6Data":{"VNI":1,"VtepMAC":"7e:11:22:33:44:55"}}"#,
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=","Port":51820}}"#,
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"ipip"}"#,
        r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"extension","BackendData":"a \u0026 b"}"#,
    ];

    #[test]
    fn golden_values_round_trip_byte_for_byte() {
        for golden in GOLDEN {
            assert_eq!(LeaseValue::parse(golden.as_bytes()).unwrap().to_json(), golden);
        }
    }

    #[test]
    fn values_are_read_as_go_reads_them() {
        let odd = br#"{"publicip":"10.0.0.1","Extra":{"x":1},"BACKENDTYPE":"vxlan","backenddata":null}"#;
        let value = LeaseValue::parse(odd).unwrap();
        assert_eq!(
            value.to_json(),
            r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan"}"#
        );
        assert_eq!(LeaseValue::parse(b"{}").unwrap().public_ip, Ipv4Addr::UNSPECIFIED);
    }

    #[test]
    fn our_own_fields_come_last_and_junk_in_them_is_ignored() {
        let ours = r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"host-gw","NodeID":"000102030405060708090a0b0c0d0e0f","Reserved":true}"#;
        assert_eq!(LeaseValue::parse(ours.as_bytes()).unwrap().to_json(), ours);
        let junk = br#"{"PublicIP":"192.168.50.11","NodeID":7,"Reserved":"yes"}"#;
        let value = LeaseValue::parse(junk).unwrap();
        assert_eq!((value.node_id, value.reserved), (None, false));
    }

    #[test]
    fn bad_values_name_the_field() {
        for (bad, part) in [
            (r#"{"PublicIP":null}"#, "PublicIP is null"),
            (r#"{"PublicIP":"10.0.0"}"#, "PublicIP is \"10.0.0\""),
            (r#"{"PublicIP":"10.0.0.1","PublicIPv6":""}"#, "PublicIPv6 is \"\""),
            (r#"{"PublicIP":"10.0.0.1","BackendType":7}"#, "BackendType is 7"),
            ("[1]", "not a JSON object"),
            ("", "not a JSON object"),
            ("\u{0}", "not a JSON object"),
        ] {
            let error = LeaseValue::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{bad}: {error}");
        }
        let junk = vec![b'x'; 1 << 20];
        assert!(matches!(
            LeaseValue::parse(&junk),
            Err(LeaseValueError::TooLong(_))
        ));
    }
}
