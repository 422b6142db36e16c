//! The container's network namespace.

use std::os::fd::{AsFd, BorrowedFd};

use flannel_netlink::{Netns, RouteConn};

use super::netns;
use crate::protocol::{CniError, Code};

/// The container's namespace, and the node's own, to come back to.
#[derive(Debug)]
pub struct Target {
    container: Netns,
    own: Netns,
}

impl Target {
    /// Device and inode number of the namespace.
    pub fn identity(&self) -> (u64, u64) {
        self.container.identity()
    }

    /// Runs `work` inside.
    ///
    /// # Errors
    /// Code 8 when the namespace cannot be entered or left.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, CniError> {
        self.container.run_from(&self.own, work).map_err(|e| netns(&e))
    }

    /// A netlink connection into the namespace.
    ///
    /// # Errors
    /// Code 8 when it cannot be entered, 100 when there is no socket to be had.
    pub fn connect(&self) -> Result<RouteConn, CniError> {
        self.run(RouteConn::open)?.map_err(|e| super::kernel(&e))
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }
}

/// The container's namespace for ADD.
///
/// # Errors
/// Code 8 when the path leads nowhere, to something else, or to the node's own namespace, in which nothing may be touched.
pub fn target(path: &str) -> Result<Target, CniError> {
    foreign(path, Netns::open(path).map_err(|e| netns(&e))?)
}

/// The container's namespace for DEL: `None` when it is gone, is something else, or is the node's own, where the container's
/// interface name belongs to a device of the node.
pub fn target_if_any(path: &str, warn: &mut dyn FnMut(String)) -> Option<Target> {
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

fn foreign(path: &str, container: Netns) -> Result<Target, CniError> {
    let own = Netns::own().map_err(|e| netns(&e))?;
    match container.is_same(&own) {
        false => Ok(Target { container, own }),
        true => Err(CniError::new(
            Code::BadNetns,
            format!("CNI_NETNS {path} is the node's own network namespace"),
        )
        .with("it must be the container's; nothing was changed")),
    }
}
