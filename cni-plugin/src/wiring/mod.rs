//! A pod's wiring in the kernel: bridge, veth pair, and what is inside the container's namespace.

pub mod bridge;
pub mod handover;
mod live;
pub mod plan;
pub mod pod;
mod sysctl;
mod target;
pub mod veth;
pub mod vlan;

pub use live::{live, siblings};
pub use sysctl::Settings;
pub use target::{Target, target, target_if_any};

use flannel_netlink::{NetlinkError, NetnsError};

use crate::protocol::{CniError, Code, chain};

/// The error of a refused netlink request.
pub fn kernel(error: &NetlinkError) -> CniError {
    CniError::new(Code::Kernel, error.to_string())
}

/// The error of a namespace that cannot be used.
pub fn netns(error: &NetnsError) -> CniError {
    CniError::new(Code::BadNetns, chain(error))
        .with("CNI_NETNS must lead to the container's network namespace")
}
