//! What the WireGuard backend reads from the network config and publishes in a lease.

use std::fmt;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::json::Fields;
use crate::options::Options;
use crate::{FieldError, WireguardPublicKey, WireguardSecret};

/// Bytes that flannel reckons for WireGuard: outer IPv6 40, UDP 8, WireGuard 32 (whitepaper §5.4.6). The same for both families,
/// so that a peer may be reached over either.
pub const WIREGUARD_OVERHEAD: u32 = 80;

/// Smallest underlay MTU that leaves the 68 bytes of RFC 791 inside the tunnel, and the largest that a device takes.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 148..=65_535;
const PORT: u16 = 51_820;
const PORT_V6: u16 = 51_821;

/// Over which family of the underlay packets travel, and in how many devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WireguardMode {
    /// A device for each family of pods, each over the same family of the underlay.
    #[default]
    Separate,
    /// One device; IPv4, unless a peer has a private IPv4 address and both have a global IPv6 address.
    Auto,
    /// One device, over IPv4.
    Ipv4,
    /// One device, over IPv6.
    Ipv6,
}

impl fmt::Display for WireguardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Separate => "separate",
            Self::Auto => "auto",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// The `Backend` object of the network config for `"Type": "wireguard"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireguardOptions {
    /// UDP port of the device (of the IPv4 one in mode separate); 51820 when not set or 0.
    pub port: u16,
    /// UDP port of the IPv6 device in mode separate; 51821 when not set or 0.
    pub port_v6: u16,
    /// MTU of the underlay to reckon from, in bytes; the interface's own when not set.
    pub mtu: Option<u32>,
    /// A key that all nodes share, mixed into every handshake.
    pub psk: Option<WireguardSecret>,
    /// Seconds between empty packets that keep a NAT open; 0 for none.
    pub keepalive: u16,
    /// Which family of the underlay carries what.
    pub mode: WireguardMode,
}

impl Default for WireguardOptions {
    fn default() -> Self {
        Self {
            port: PORT,
            port_v6: PORT_V6,
            mtu: None,
            psk: None,
            keepalive: 0,
            mode: WireguardMode::Separate,
        }
    }
}

impl WireguardOptions {
    /// Reads the options, names in any case, unknown ones ignored.
    ///
    /// # Errors
    /// Every field that holds what it cannot hold.
    pub fn parse(backend: &RawValue) -> Result<Self, Vec<FieldError>> {
        let fields: Fields = Options::fields(backend)?;
        let mut read = Options::new(&fields);
        let default = Self::default();
        let options = Self {
            port: read.port("ListenPort").unwrap_or(default.port),
            port_v6: read.port("ListenPortV6").unwrap_or(default.port_v6),
            mtu: read.mtu("MTU", MTU_RANGE),
            psk: read.text("PSK").and_then(|text| psk(&mut read, &text)),
            keepalive: read
                .number("PersistentKeepaliveInterval", 0..=u64::from(u16::MAX))
                .map_or(0, low16),
            mode: read
                .text("Mode")
                .map_or(default.mode, |text| mode(&mut read, &text)),
        };
        if options.mode == WireguardMode::Separate && options.port == options.port_v6 {
            read.error(
                "ListenPortV6",
                &options.port_v6.to_string(),
                "is ListenPort as well; two devices need two ports",
            );
        }
        read.finish(options)
    }
}

fn low16(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// A preshared key. What it holds is not repeated in the error.
fn psk(read: &mut Options<'_>, text: &str) -> Option<WireguardSecret> {
    match text.parse() {
        Ok(key) => Some(key),
        Err(error) => {
            read.error(
                "PSK",
                "(not shown)",
                &format!("{error}; make one with `wg genpsk`"),
            );
            None
        }
    }
}

fn mode(read: &mut Options<'_>, text: &str) -> WireguardMode {
    match text.to_ascii_lowercase().as_str() {
        "separate" => WireguardMode::Separate,
        "auto" => WireguardMode::Auto,
        "ipv4" => WireguardMode::Ipv4,
        "ipv6" => WireguardMode::Ipv6,
        _ => {
            read.error(
                "Mode",
                &format!("{text:?}"),
                "expected separate, auto, ipv4 or ipv6",
            );
            WireguardMode::default()
        }
    }
}

/// `BackendData` of a WireGuard lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WireguardLeaseData {
    /// The node's public key.
    #[serde(rename = "PublicKey")]
    pub public_key: WireguardPublicKey,
    /// UDP port on which it listens.
    #[serde(rename = "Port")]
    pub port: u16,
}

impl WireguardLeaseData {
    /// Reads it as Go does: names in any case. A missing port is 0, which stands for the reader's own.
    ///
    /// # Errors
    /// When it is no object, or PublicKey or Port is not what it should be.
    pub fn parse(data: &RawValue) -> Result<Self, serde_json::Error> {
        let fields: Fields = serde_json::from_str(data.get())?;
        let key = fields
            .get("PublicKey")
            .ok_or_else(|| serde::de::Error::missing_field("PublicKey"))?;
        let port = fields
            .get("Port")
            .map_or(Ok(0), |raw| serde_json::from_str(raw.get()))?;
        Ok(Self {
            public_key: serde_json::from_str(key.get())?,
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=";

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn defaults_are_flannels() {
        let options = WireguardOptions::parse(&raw(r#"{"Type":"wireguard"}"#)).unwrap();
        assert_eq!(options, WireguardOptions::default());
        assert_eq!(
            (options.port, options.port_v6, options.keepalive),
            (51820, 51821, 0)
        );
    }

    #[test]
    fn every_option_is_read() {
        let text = format!(
            r#"{{"listenport":7000,"ListenPortV6":7001,"MTU":1400,"PSK":"{KEY}","PersistentKeepaliveInterval":25,"Mode":"Auto"}}"#
        );
        let options = WireguardOptions::parse(&raw(&text)).unwrap();
        assert_eq!(
            (options.port, options.port_v6, options.mtu),
            (7000, 7001, Some(1400))
        );
        assert_eq!((options.keepalive, options.mode), (25, WireguardMode::Auto));
        assert_eq!(options.psk.unwrap().expose_text(), KEY);
    }

    #[test]
    fn every_bad_field_is_named_and_the_secret_is_not() {
        let text =
            r#"{"ListenPort":70000,"MTU":20,"PSK":"hunter2","PersistentKeepaliveInterval":-1,"Mode":"both"}"#;
        let errors = WireguardOptions::parse(&raw(text)).unwrap_err();
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        let expected = ["ListenPort", "MTU", "PSK", "PersistentKeepaliveInterval", "Mode"]
            .map(|f| format!("Backend.{f}"));
        assert_eq!(fields, expected);
        assert!(errors.iter().all(|e| !e.to_string().contains("hunter2")));
        let same = WireguardOptions::parse(&raw(r#"{"ListenPort":7000,"ListenPortV6":7000}"#)).unwrap_err();
        assert_eq!(same[0].field, "Backend.ListenPortV6");
        assert!(
            WireguardOptions::parse(&raw(r#"{"ListenPort":7000,"ListenPortV6":7000,"Mode":"ipv4"}"#)).is_ok()
        );
    }

    #[test]
    fn lease_data_round_trips() {
        let text = format!(r#"{{"PublicKey":"{KEY}","Port":51820}}"#);
        let data = WireguardLeaseData::parse(&raw(&text)).unwrap();
        assert_eq!(serde_json::to_string(&data).unwrap(), text);
        for bad in [
            r#"{"Port":1}"#,
            r#"{"PublicKey":"x"}"#,
            r#"{"PublicKey":7}"#,
            "[]",
        ] {
            assert!(WireguardLeaseData::parse(&raw(bad)).is_err(), "{bad}");
        }
    }
}
