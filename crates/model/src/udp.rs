//! What the udp backend reads from the network config and publishes in a lease.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::FieldError;
use crate::json::Fields;
use crate::options::Options;

/// flannel's port.
const PORT: u16 = 8285;

/// The `Backend` object of the network config for `"Type": "udp"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpOptions {
    /// UDP port of every node; 8285 when not set or 0.
    pub port: u16,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { port: PORT }
    }
}

impl UdpOptions {
    /// Reads the options, names in any case, unknown ones ignored.
    ///
    /// # Errors
    /// Every field that holds what it cannot hold.
    pub fn parse(backend: &RawValue) -> Result<Self, Vec<FieldError>> {
        let fields = Options::fields(backend)?;
        let mut read = Options::new(&fields);
        let options = Self {
            port: read.port("Port").unwrap_or(PORT),
        };
        read.finish(options)
    }
}

/// `BackendData` of a udp lease. flannel writes none and reads none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct UdpLeaseData {
    /// The UDP port under which the node is reached where a NAT in front of it maps another one; the network's port when not set.
    #[serde(rename = "Port", skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The node reads the ECN bits of outer packets (RFC 6040).
    #[serde(rename = "ECN", skip_serializing_if = "std::ops::Not::not")]
    pub ecn: bool,
}

impl UdpLeaseData {
    /// Reads it, names in any case; a missing field or `null` is not set.
    ///
    /// # Errors
    /// When it is no object, or a field is not what it should be.
    pub fn parse(data: &RawValue) -> Result<Self, serde_json::Error> {
        let fields: Option<Fields> = serde_json::from_str(data.get())?;
        let field = |name: &str| fields.as_ref().and_then(|fields| fields.get(name));
        let port: Option<u16> = field("Port").map_or(Ok(None), |raw| serde_json::from_str(raw.get()))?;
        let ecn: Option<bool> = field("ECN").map_or(Ok(None), |raw| serde_json::from_str(raw.get()))?;
        Ok(Self {
            port: port.filter(|port| *port != 0),
            ecn: ecn.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn the_port_is_flannels_unless_set() {
        let port = |text: &str| UdpOptions::parse(&raw(text)).map(|options| options.port);
        assert_eq!(port(r#"{"Type":"udp"}"#), Ok(8285));
        assert_eq!(port(r#"{"Type":"udp","port":7890}"#), Ok(7890));
        assert_eq!(port(r#"{"Type":"udp","Port":0}"#), Ok(8285));
        let errors = port(r#"{"Type":"udp","Port":70000}"#).unwrap_err();
        assert_eq!(errors[0].field, "Backend.Port");
    }

    #[test]
    fn lease_data_round_trips_and_may_be_absent() {
        for text in [r#"{"Port":9000,"ECN":true}"#, r#"{"ECN":true}"#, "{}"] {
            let data = UdpLeaseData::parse(&raw(text)).unwrap();
            assert_eq!(serde_json::to_string(&data).unwrap(), text);
        }
        for nothing in ["null", r#"{"Port":0}"#, r#"{"Port":null,"Other":1}"#] {
            assert_eq!(
                UdpLeaseData::parse(&raw(nothing)).unwrap(),
                UdpLeaseData::default()
            );
        }
        for bad in [r#"{"Port":70000}"#, r#"{"ECN":1}"#, "[]", "7"] {
            assert!(UdpLeaseData::parse(&raw(bad)).is_err(), "{bad}");
        }
    }
}
