//! Addresses of containers: which one comes next, and the directory that remembers who has which.

mod allocate;
mod lease_dir;
mod lease_file;
mod range;

pub use allocate::{Given, allocate};
pub use lease_dir::{LeaseDir, release};
pub use lease_file::{Holder, read_small, write_synced};
pub use range::{Range, RangeSet};
