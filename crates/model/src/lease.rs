//! Keys and values of leases, byte for byte as flannel writes them (API v3).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::json::Fields;
use crate::{Ipv4Subnet, Ipv6Subnet};

/// Longest lease value that is read, in bytes. flannel's own values are about 200 bytes; anything far beyond is junk
/// that must not cost memory on every node.
pub const MAX_LEASE_VALUE: usize = 8 * 1024;

/// Shortest and longest prefix of an IPv4 lease: flannel refuses SubnetLen above 30, and a /0 is no lease.
const IPV4_LENGTHS: std::ops::RangeInclusive<u8> = 1..=30;
/// The same for IPv6 (IPv6SubnetLen ≤ 126).
const IPV6_LENGTHS: std::ops::RangeInclusive<u8> = 1..=126;

/// The part of a lease's key behind `<prefix>/subnets/`: `10.5.1.0-24` or `10.5.3.0-24&2001:cafe:42:3::-64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseKey {
    /// The node's IPv4 subnet.
    pub ipv4: Ipv4Subnet,
    /// Its IPv6 subnet in a dual-stack lease.
    pub ipv6: Option<Ipv6Subnet>,
}

/// Why a key is no lease key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseKeyError {
    /// It does not have the form `a.b.c.d-len` or `a.b.c.d-len&v6-len`.
    #[error("{0:?} is not of the form 10.5.1.0-24 or 10.5.3.0-24&2001:cafe:42:3::-64")]
    Form(String),
    /// The prefix length can be no lease.
    #[error("{key:?} has prefix length {length}; a lease has 1 to 30 (IPv4) or 1 to 126 (IPv6)")]
    Length {
        /// The key.
        key: String,
        /// The length in it.
        length: u8,
    },
    /// Another text stands for the same subnet, so this one could shadow it.
    #[error("{key:?} is not written as flannel writes it; expected {canonical:?}")]
    NotCanonical {
        /// The key.
        key: String,
        /// The text that flannel would have written.
        canonical: String,
    },
}

impl LeaseKey {
    /// The key of an IPv4-only lease.
    pub const fn ipv4_only(ipv4: Ipv4Subnet) -> Self {
        Self { ipv4, ipv6: None }
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ipv4.network(), self.ipv4.length())?;
        match &self.ipv6 {
            Some(ipv6) => write!(f, "&{}-{}", ipv6.network(), ipv6.length()),
            None => Ok(()),
        }
    }
}

impl FromStr for LeaseKey {
    type Err = LeaseKeyError;

    /// Reads the whole text; nothing may stand before or behind it. flannel's own expression is unanchored, and so
    /// takes `junk/10.5.1.0-24` for a lease.
    fn from_str(text: &str) -> Result<Self, LeaseKeyError> {
        let form = || LeaseKeyError::Form(shortened(text));
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let (address, v4_length) = address_and_length::<Ipv4Addr>(v4).ok_or_else(form)?;
        check_length(text, v4_length, &IPV4_LENGTHS)?;
        let ipv4 = Ipv4Subnet::new(address, v4_length).ok_or_else(form)?;
        let ipv6 = match v6 {
            None => None,
            Some(v6) => {
                let (address, length) = address_and_length::<Ipv6Addr>(v6).ok_or_else(form)?;
                check_length(text, length, &IPV6_LENGTHS)?;
                Some(Ipv6Subnet::new(address, length).ok_or_else(form)?)
            }
        };
        let key = Self { ipv4, ipv6 };
        let canonical = key.to_string();
        if canonical == text {
            return Ok(key);
        }
        Err(LeaseKeyError::NotCanonical {
            key: shortened(text),
            canonical,
        })
    }
}

fn address_and_length<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (address, length) = text.rsplit_once('-')?;
    let digits = (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
    digits.then_some(())?;
    Some((address.parse().ok()?, length.parse().ok()?))
}

fn check_length(key: &str, length: u8, allowed: &std::ops::RangeInclusive<u8>) -> Result<(), LeaseKeyError> {
    if allowed.contains(&length) {
        return Ok(());
    }
    Err(LeaseKeyError::Length {
        key: shortened(key),
        length,
    })
}

/// The beginning of a text from elsewhere, so that a hostile record cannot flood a log.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

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
        })
    }

    /// The bytes that flannel would write: compact, its field order, empty fields left out, `PublicIPv6` always there.
    pub fn to_json(&self) -> String {
        let wire = Wire {
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
            backend_type: self.backend_type.as_deref(),
            backend_data: self.backend_data.as_deref(),
            backend_v6_data: self.backend_v6_data.as_deref(),
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

    #[test]
    fn keys_round_trip() {
        for text in ["10.5.52.0-24", "10.5.3.0-24&2001:cafe:42:3::-64", "10.5.1.4-30"] {
            assert_eq!(text.parse::<LeaseKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_keys_are_refused() {
        for bad in [
            "",
            "foo",
            "10.5.1.0",
            "10.5.1.0/24",
            "10.5.1.0-24/meta",
            "x10.5.1.0-24",
            "10.5.1.0-",
            "10.5.1.0-+4",
            "10.5.1.0-024",
            "10.5.1.0-24&",
            "10.5.1.0-24&fd00::",
            "10.5.1.0-24&FD00::-64",
            "10.5.1.7-24",
            "0.0.0.0-0",
            "10.5.1.0-31",
            "10.5.1.0-32",
            "10.5.1.0-24&fd00::-128",
            "010.5.1.0-24",
            "10.5.1.0-24\n",
            "10.5.1.0-24&fd00:0::-64",
        ] {
            assert!(bad.parse::<LeaseKey>().is_err(), "{bad}");
        }
        let long = "9".repeat(1 << 20);
        assert!(long.parse::<LeaseKey>().unwrap_err().to_string().len() < 400);
    }
}
