//! The data path of the udp backend: packets between a TUN device and a UDP socket, each datagram one inner packet as flannel's own.
//!
//! [`codec`], [`table`], [`forward`] and [`fair`] are pure. [`device`] and [`socket`] hold the system calls, [`engine`] the threads.

pub mod codec;
pub mod counters;
pub mod device;
mod egress;
pub mod engine;
pub mod fair;
#[cfg(test)]
mod fake;
pub mod forward;
mod ingress;
pub mod keep;
pub mod memory;
pub mod offloads;
pub mod socket;
mod spin;
pub mod table;
