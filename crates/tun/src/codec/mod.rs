//! The packet code: pure, no descriptor and no clock. What it is fed comes from anyone on the network.

pub mod checksum;
pub mod coalesce;
pub mod header;
pub mod icmp;
pub mod split;
pub mod train;
pub mod virtio;
