//! With how many peers a WireGuard device has keys right now, as the kernel says.

use std::fmt;
use std::time::SystemTime;

use flannel_netlink::generic::{Wireguard, WireguardDevice};
use flannel_netlink::overlay::SESSION;
use serde::Serialize;

use crate::output::span;

/// How a WireGuard device stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Encrypted {
    /// The device.
    pub device: String,
    /// Peers that it knows.
    pub peers: usize,
    /// Those with which it has keys that are still used.
    pub with_handshake: usize,
    /// How long ago keys were agreed on with any of them; `null` for never.
    pub last_handshake_seconds_ago: Option<u64>,
}

/// Those of the devices that are WireGuard's. The kernel shows them to root alone; to others there is none.
pub fn of(devices: &[String]) -> Vec<Encrypted> {
    let Ok(Some(mut wireguard)) = Wireguard::open() else {
        return Vec::new();
    };
    // Both families may share one.
    let mut names: Vec<&String> = devices
        .iter()
        .filter(|name| name.starts_with("flannel-wg"))
        .collect();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| Some(counted(name, &wireguard.device(name).ok()??, SystemTime::now())))
        .collect()
}

fn counted(name: &str, device: &WireguardDevice, now: SystemTime) -> Encrypted {
    let ages: Vec<_> = device
        .peers
        .values()
        .filter_map(|peer| Some(now.duration_since(peer.handshake?).unwrap_or_default()))
        .collect();
    Encrypted {
        device: name.to_owned(),
        peers: device.peers.len(),
        with_handshake: ages.iter().filter(|age| **age < SESSION).count(),
        last_handshake_seconds_ago: ages.iter().min().map(|age| age.as_secs()),
    }
}

impl fmt::Display for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            peers,
            with_handshake,
            ..
        } = self;
        write!(
            f,
            "{with_handshake} of {peers} peers of {device} with a handshake in the last three minutes"
        )?;
        match self.last_handshake_seconds_ago {
            Some(secs) => write!(f, ", the last {} ago", span(secs)),
            None => f.write_str(", none so far"),
        }
    }
}
