//! DEL: remove what is there; what is not there is no error.

use std::path::PathBuf;

use flannel_netlink::RouteConn;
use serde_json::{Map, Value};

use crate::address::{Holder, release};
use crate::config::{Network, lease_root};
use crate::masq;
use crate::protocol::{Attachment, CniError, Code};
use crate::scratch::{Saved, Scratch};
use crate::wiring::plan::HostEnd;
use crate::wiring::{kernel, target_if_any, veth};

/// Detaches the container. Network, container id and interface name are enough to find everything that ADD made; the
/// namespace serves for containers that another plugin attached.
///
/// # Errors
/// Code 5 or 100 for what is there and could not be removed. The call can be repeated.
pub fn del(
    network: &Network,
    attachment: &Attachment,
    netns: Option<&str>,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let scratch = Scratch::new(&network.data_dir()?, &attachment.container);
    let saved = scratch.load(&network.name);
    // The veth goes first: as long as it lives, its address must not be given to another pod.
    detach(network, attachment, netns, warn)?;
    for root in lease_roots(network, &saved)? {
        release(&root, &network.name, &Holder::from(attachment), &mut masq::remove)?;
    }
    match saved {
        Saved::Ours(_) | Saved::Damaged => scratch.remove(),
        // Another network of this container needs it still.
        Saved::Absent | Saved::Foreign => scratch.remove_rest(),
    }
}

fn detach(
    network: &Network,
    attachment: &Attachment,
    netns: Option<&str>,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let end = HostEnd::of(&network.name, attachment);
    match veth::remove(&mut conn, &end) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        // A device of that name that is somebody else's stays, and then we have none.
        Err(e) if e.code == Code::Exists => warn(e.to_string()),
        Err(e) => return Err(e),
    }
    if let Some(target) = netns.and_then(|path| target_if_any(path, warn)) {
        veth::remove_inside(&target, attachment.ifname.as_str())?;
    }
    Ok(())
}

/// Where leases can be: as configured now, and as configured when the container was attached.
fn lease_roots(network: &Network, saved: &Saved) -> Result<Vec<PathBuf>, CniError> {
    let mut roots = vec![network.lease_root()?];
    if let Saved::Ours(delegate) = saved {
        let ipam = delegate.get("ipam").and_then(Value::as_object).cloned();
        // A path that ADD would refuse was not used by ADD either.
        roots.extend(lease_root(&ipam.unwrap_or_else(Map::new)));
    }
    roots.dedup();
    Ok(roots)
}
