//! The packet code of the udp backend beside its slow reference, which lives with that crate's own tests.

#[path = "../../../crates/tun/tests/reference/mod.rs"]
#[expect(clippy::unwrap_used, clippy::panic, reason = "a difference ends by panicking")]
mod reference;

/// A right super-packet, whatever its shape: cut as the reference cuts it, byte for byte.
pub fn cut(data: &[u8]) {
    reference::outbound::check_right(data);
}

/// Any bytes with any claims of the kernel's: no panic, nothing grows, every ICMP error is a whole packet.
pub fn claims(data: &[u8]) {
    reference::outbound::check_any(data);
}

/// Datagrams of some flows, right and damaged: what is merged and cut again is what came.
pub fn merge(data: &[u8]) {
    reference::merge::check(data);
}

/// Datagrams of a peer, strange in any way: judged as a slow router judges them, for the same reason, and marked alike.
pub fn admit(data: &[u8]) {
    reference::inbound::check(data);
}
