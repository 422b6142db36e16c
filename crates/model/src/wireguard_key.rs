//! Keys of WireGuard.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a key, public, private or preshared alike (`NOISE_PUBLIC_KEY_LEN`, drivers/net/wireguard/messages.h).
const LENGTH: usize = 32;

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a WireGuard key; expected 32 bytes in base64, 44 characters that end in \"=\", as `wg genkey` prints them"
)]
pub struct WireguardKeyError;

/// The public key of a node: who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WireguardPublicKey(pub [u8; LENGTH]);

/// A key that must not be seen: the private key of a node, or the preshared key of the network. It is never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WireguardSecret([u8; LENGTH]);

impl WireguardPublicKey {
    /// Whether it can be anybody's: the kernel refuses the key of zeros.
    pub fn is_usable(&self) -> bool {
        self.0 != [0; LENGTH]
    }
}

impl WireguardSecret {
    /// A private key of 32 random bytes, with the bits set that Curve25519 asks for (RFC 7748 §5).
    pub fn private(mut random: [u8; LENGTH]) -> Self {
        random[0] &= 0b1111_1000;
        random[31] = (random[31] & 0b0111_1111) | 0b0100_0000;
        Self(random)
    }

    /// The key as it is.
    pub fn preshared(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for the kernel.
    pub fn expose(&self) -> [u8; LENGTH] {
        self.0
    }

    /// Its text, for the key file.
    pub fn expose_text(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Display for WireguardPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WireguardSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WireguardSecret(not shown)")
    }
}

fn decode(text: &str) -> Result<[u8; LENGTH], WireguardKeyError> {
    let bytes = STANDARD.decode(text).map_err(|_| WireguardKeyError)?;
    bytes.try_into().map_err(|_| WireguardKeyError)
}

impl FromStr for WireguardPublicKey {
    type Err = WireguardKeyError;

    fn from_str(text: &str) -> Result<Self, WireguardKeyError> {
        decode(text).map(Self)
    }
}

impl FromStr for WireguardSecret {
    type Err = WireguardKeyError;

    fn from_str(text: &str) -> Result<Self, WireguardKeyError> {
        decode(text).map(Self)
    }
}

impl Serialize for WireguardPublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireguardPublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=";

    #[test]
    fn keys_read_and_print_as_wg_does() {
        let key: WireguardPublicKey = TEXT.parse().unwrap();
        assert_eq!(&key.0, b"abcdefghijklmnopqrstuvwxyz012345");
        assert_eq!(key.to_string(), TEXT);
        let secret: WireguardSecret = TEXT.parse().unwrap();
        assert_eq!(secret.expose_text(), TEXT);
        for bad in ["", "abc", &TEXT[..43], "YWJj", &format!("{TEXT}=")] {
            assert_eq!(bad.parse::<WireguardPublicKey>(), Err(WireguardKeyError), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret: WireguardSecret = TEXT.parse().unwrap();
        assert!(!format!("{secret:?}").contains("YWJj") && !format!("{secret:?}").contains("97"));
    }

    #[test]
    fn a_private_key_has_the_bits_of_curve25519() {
        let key = WireguardSecret::private([0xff; 32]).expose();
        assert_eq!((key[0], key[31]), (0xf8, 0x7f));
        let key = WireguardSecret::private([0; 32]).expose();
        assert_eq!((key[0], key[31]), (0, 0x40));
    }
}
