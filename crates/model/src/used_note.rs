//! Notes about which subnets were in use, so that one that was never used, or not for long, is preferred for a new node.
//!
//! A note is a key of our own below `<prefix>/used/`, named like the lease; flannel does not look there. It outlives the
//! lease. Only a preference hangs on it, so a clock that is wrong, or a note that is missing, does no harm.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The value of a note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedNote {
    /// When somebody held the subnet for the last time that is known, in seconds since 1970.
    #[serde(rename = "LastHeld")]
    pub last_held: u64,
    /// Since when that node holds it without a gap, in seconds since 1970; `None` in notes of earlier versions.
    #[serde(rename = "HeldSince", default, skip_serializing_if = "Option::is_none")]
    pub held_since: Option<u64>,
    /// Who that was.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// Who that was, in IPv6.
    #[serde(rename = "PublicIPv6", default)]
    pub public_ipv6: Option<Ipv6Addr>,
}

impl UsedNote {
    /// Reads a note; `None` for anything else.
    pub fn parse(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    /// The value.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether both are about the same holder.
    pub fn same_holder(&self, other: &Self) -> bool {
        (self.public_ip, self.public_ipv6) == (other.public_ip, other.public_ipv6)
    }

    /// How long ago that was, for somebody whose clock shows `now` seconds since 1970. A time to come counts as now.
    pub fn idle(&self, now: u64) -> Duration {
        Duration::from_secs(now.saturating_sub(self.last_held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_round_trips_and_junk_is_none() {
        let note = UsedNote {
            last_held: 1_000,
            held_since: Some(900),
            public_ip: Ipv4Addr::new(192, 168, 50, 11),
            public_ipv6: None,
        };
        assert_eq!(UsedNote::parse(note.to_json().as_bytes()), Some(note.clone()));
        assert_eq!(UsedNote::parse(b"junk"), None);
        let earlier = UsedNote::parse(br#"{"LastHeld":1000,"PublicIP":"192.168.50.11","PublicIPv6":null}"#);
        assert_eq!(earlier.and_then(|note| note.held_since), None);
        assert_eq!((note.idle(1_060).as_secs(), note.idle(5).as_secs()), (60, 0));
    }
}
