//! Generic netlink: families that the kernel knows by name, IPVS among them.

mod attribute;
mod family;
mod ipvs;
mod ipvs_client;
mod ipvs_parse;
#[cfg(test)]
mod ipvs_tests;
mod wireguard;

pub use family::family_id;
pub use ipvs::{Forward, IpvsKey, IpvsRequest, IpvsTimeouts, RealServer, Stats, VirtualServer};
pub use ipvs_client::Ipvs;
pub use wireguard::{AllowedIp, Device as WireguardDevice, PeerSpec, PeerState, Wireguard};
