//! A pod's wiring in the kernel: bridge, veth pair, and what is inside the container's namespace.

pub mod bridge;
pub mod handover;
mod live;
pub mod plan;
pub mod pod;
mod sysctl;
pub mod veth;
pub mod vlan;

pub use live::{live, siblings};

use flannel_netlink::{NetlinkError, Netns, NetnsError, RouteConn};

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

/// The container's namespace for ADD.
///
/// # Errors
/// Code 8 when the path leads nowhere, to something else, or to the node's own namespace, in which nothing may be touched.
pub fn target(path: &str) -> Result<Netns, CniError> {
    foreign(path, Netns::open(path).map_err(|e| netns(&e))?)
}

/// The container's namespace for DEL: `None` when it is gone, is something else, or is the node's own, where the container's
/// interface name belongs to a device of the node.
pub fn target_if_any(path: &str, warn: &mut dyn FnMut(String)) -> Option<Netns> {
    let found = match Netns::open(path) {
        // The usual case: the container is gone.
        Err(e) if e.is_missing() => return None,
        Err(e) => Err(netns(&e)),
        Ok(found) => foreign(path, found),
    };
    found
        .map_err(|e| warn(format!("DEL goes on without the container's namespace: {e}")))
        .ok()
}

/// A netlink connection in the container's namespace.
///
/// # Errors
/// Code 8 when it cannot be entered.
pub fn inside(target: &Netns) -> Result<RouteConn, CniError> {
    target.connect().map_err(|e| netns(&e))
}

fn foreign(path: &str, target: Netns) -> Result<Netns, CniError> {
    let own = Netns::own().map_err(|e| netns(&e))?;
    match target.is_same(&own) {
        false => Ok(target),
        true => Err(CniError::new(
            Code::BadNetns,
            format!("CNI_NETNS {path} is the node's own network namespace"),
        )
        .with("it must be the container's; nothing was changed")),
    }
}
