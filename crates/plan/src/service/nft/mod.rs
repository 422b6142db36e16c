//! Frontends as elements of nftables sets and maps, for kernels without IPVS.
//!
//! Rules do not depend on the Services. A packet's address, protocol and port lead through one map to a chain that fits the
//! number of endpoints, and the same three with a number drawn there through a second map to the endpoint. So a change of
//! one Service is a change of a few elements, however many Services there are; and the kernel carries it out whole or not
//! at all.

mod affinity;
mod chains;
mod element;
mod general;
mod observed;
mod slots;
#[cfg(test)]
mod tests;
mod translate;

pub use affinity::{Remembered, read_remembered};
pub use chains::{PickChain, Place, Spread, unfit_scheduler};
pub use element::{NftData, NftElement, NftSet};
pub use general::general_elements;
pub use observed::KernelElements;
pub use slots::MOST_SLOTS;
pub use translate::{Translated, changes, elements, entrance, remember_chain, translate};

/// Slots of endpoints for clients outside begin here, in the same map as those for everybody.
pub const OUTSIDE_SLOTS: u32 = 0x8000;
/// The map in which rules remember which endpoint a client got.
pub const AFFINITY: &str = "affinity";
/// Name of the table in both families.
pub const TABLE: &str = "flannel-services-nat";
