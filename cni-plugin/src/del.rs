//! DEL: remove what is there; what is not there is no error.

use std::ffi::OsStr;
use std::path::PathBuf;

use flannel_netlink::RouteConn;
use flannel_netlink::link::released;
use serde_json::{Map, Value};

use crate::config::{Network, bridge_name, lease_root};
use crate::delegate::Delegate;
use crate::protocol::{Attachment, CniError, Code, previous};
use crate::release::release;
use crate::scratch::{Saved, Scratch};
use crate::wiring::handover::{self, Detached, Reaper};
use crate::wiring::plan::HostEnd;
use crate::wiring::{kernel, live, target_if_any, veth};

/// Detaches the container. Network, container id and interface name are enough to find everything that ADD made; the
/// namespace serves for containers that another plugin attached. `search` is `CNI_PATH`, for other delegates.
///
/// # Errors
/// Code 7 or 104 for a delegate that cannot be run or fails, 5 or 100 for what is there and could not be removed. The call can be repeated.
pub fn del(
    network: &Network,
    attachment: &Attachment,
    netns: Option<&str>,
    search: &OsStr,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let scratch = Scratch::new(&network.data_dir()?, &attachment.container);
    let saved = scratch.load(&network.name);
    if let Some(delegate) = other_delegate(network, &saved, search)? {
        return delegate.del(attachment, warn);
    }
    // The veth is cut off first, or goes: as long as it lives, its addresses must not be given to another pod, and it says so.
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let subnet_file = network.subnet_file().ok();
    let reaper = subnet_file.as_deref().and_then(Reaper::find);
    let detached = detach(&mut conn, network, attachment, netns, warn)?;
    let given_back = give_back(&mut conn, network, attachment, (&saved, &scratch), warn);
    // Last, because it is what takes long: meanwhile the kernel destroys what was taken out of nf_tables.
    let deleted = match detached {
        Detached::CutOff(ifindex) => handover::finish(&mut conn, ifindex, reaper.as_ref()),
        Detached::Nothing | Detached::Deleted => Ok(()),
    };
    // Looking at all devices takes longer the more there are.
    let left_undone = reaper.is_none() && subnet_file.as_deref().is_some_and(Reaper::has_been);
    if left_undone && let Err(e) = released::reap(&mut conn) {
        warn(format!("what a daemon left undone stays: {e}"));
    }
    given_back.and(deleted)
}

/// Rules, addresses and the saved configuration.
fn give_back(
    conn: &mut RouteConn,
    network: &Network,
    attachment: &Attachment,
    (saved, scratch): (&Saved, &Scratch),
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let bridge = bridge_name(&network.part("delegate").unwrap_or_default());
    let bridge = bridge.as_ref().map_or("cni0", |name| name.as_str());
    for root in lease_roots(network, saved)? {
        let mut look = || live(conn, &network.name, bridge);
        release(&root, &network.name, attachment, &mut look, warn)?;
    }
    match saved {
        Saved::Ours(_) | Saved::Damaged => scratch.remove(),
        // Another network of this container needs it still.
        Saved::Absent | Saved::Foreign => scratch.remove_rest(),
    }
}

/// Who attached the container goes before who would attach it now.
fn other_delegate<'a>(
    network: &'a Network,
    saved: &Saved,
    search: &'a OsStr,
) -> Result<Option<Delegate<'a>>, CniError> {
    match saved {
        Saved::Ours(config) => Delegate::of_saved(network, config, search),
        Saved::Absent | Saved::Damaged | Saved::Foreign => Delegate::of(network, search),
    }
}

fn detach(
    conn: &mut RouteConn,
    network: &Network,
    attachment: &Attachment,
    netns: Option<&str>,
    warn: &mut dyn FnMut(String),
) -> Result<Detached, CniError> {
    let end = HostEnd::of(&network.name, attachment);
    match handover::detach(conn, &end) {
        Ok(Detached::Nothing) => {}
        Ok(detached) => return Ok(detached),
        // A device of that name that is somebody else's stays, and then we have none.
        Err(e) if e.code == Code::Exists => warn(e.to_string()),
        Err(e) => return Err(e),
    }
    if let Some(target) = netns.and_then(|path| target_if_any(path, warn))
        && veth::remove_inside(&target, attachment.ifname.as_str())?
    {
        return Ok(Detached::Deleted);
    }
    remove_told(conn, network, warn).map(|()| Detached::Nothing)
}

/// The port that `prevResult` names, for containers that another plugin attached and whose namespace is not known.
fn remove_told(
    conn: &mut RouteConn,
    network: &Network,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let told = match previous(&network.keys(), network.version) {
        Ok(told) => told.unwrap_or_default(),
        Err(e) => {
            warn(format!("DEL goes on without prevResult: {e}"));
            return Ok(());
        }
    };
    let mut on_host = told.interfaces.iter().filter(|i| i.sandbox.is_none());
    let (Some(bridge), Some(port)) = (on_host.next(), on_host.next()) else {
        return Ok(());
    };
    veth::remove_port(conn, &bridge.name, &port.name, port.mac)
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
