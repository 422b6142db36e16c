//! The veth pair between bridge and container.

use std::os::fd::AsFd;

use std::time::Duration;

use flannel_model::Mac;
use flannel_netlink::RouteConn;
use flannel_netlink::link::{self, Ipv4Setting, Link, PortMarks, VethSpec};
use rustix::io::Errno;

use super::plan::{HostEnd, Plan};
use super::{Settings, Target, kernel, vlan};
use crate::protocol::{CniError, Code};

/// Longest wait for a link whose both ends are up; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the pair, its far end in `target`, and the near end a port of `bridge`.
///
/// # Errors
/// Code 100 when the kernel refuses; nothing is left then.
pub fn make(
    conn: &mut RouteConn,
    settings: &Settings,
    plan: &Plan,
    bridge: &Link,
    target: &Target,
) -> Result<(), CniError> {
    let name = plan.host_end.name.as_str();
    let alias = plan.host_end.alias_with(&plan.addresses);
    let spec = VethSpec {
        name,
        master: Some(bridge.ifindex),
        alias: Some(&alias),
        mtu: plan.mtu,
        mac: Some(plan.host_mac),
        peer_name: &plan.ifname,
        peer_mac: Some(plan.pod_mac),
        peer_namespace: target.as_fd(),
    };
    conn.run(&link::create_veth(&spec)).map_err(|e| kernel(&e))?;
    let done = finish(conn, settings, plan, &alias);
    if done.is_err() {
        // The caller knows of no pair yet, so that nobody else would remove it.
        let _ = conn.run(&link::delete(name));
    }
    done
}

/// What cannot be said when the pair is made. The port is not asked for here: that would make the bridge see that it has no carrier
/// yet, and begin with it anew later.
fn finish(conn: &mut RouteConn, settings: &Settings, plan: &Plan, alias: &str) -> Result<(), CniError> {
    let name = plan.host_end.name.as_str();
    // Only a bridge's port, but nobody's router either (CVE-2020-10749).
    settings.v6(&format!("conf/{name}/accept_ra"), "0")?;
    let mut marks = PortMarks {
        alias,
        ipv4: &[
            (Ipv4Setting::AcceptRedirects, false),
            (Ipv4Setting::SendRedirects, false),
        ],
        // A port has nobody to talk to by IPv6: an address would only cost questions and reports of groups for each container.
        no_link_local: true,
        hairpin: plan.bridge.hairpin,
        isolated: plan.bridge.port_isolation,
    };
    match conn.run(&link::mark_port(name, &marks)) {
        // Where the kernel has no IPv6, there is nothing to prevent.
        Err(e) if e.has_errno(Errno::AFNOSUPPORT) => {
            marks.no_link_local = false;
            conn.run(&link::mark_port(name, &marks))
        }
        marked => marked,
    }
    .map_err(|e| kernel(&e))?;
    match &plan.bridge.vlans {
        Some(vlans) => vlan::join(conn, name, vlans),
        None => Ok(()),
    }
}

/// Waits until the host's end carries packets, so that the container's first one is not lost.
///
/// # Errors
/// Code 100 when the kernel refuses, or the link does not come up.
pub fn await_running(conn: &mut RouteConn, end: &HostEnd) -> Result<(), CniError> {
    let found = link::by_name(conn, &end.name).map_err(|e| kernel(&e))?;
    let running = match found {
        Some(link) if link.running => true,
        Some(link) => link::await_running(conn, link.ifindex, PATIENCE).map_err(|e| kernel(&e))?,
        None => false,
    };
    match running {
        true => Ok(()),
        false => Err(
            CniError::new(Code::Kernel, format!("{} does not come up", end.name))
                .with("the container's end was removed or set down by somebody else meanwhile"),
        ),
    }
}

/// Removes the host's end, and the container's with it. `false` when there was none.
///
/// # Errors
/// Code 102 when a device of that name is somebody else's, 100 when the kernel refuses.
pub fn remove(conn: &mut RouteConn, end: &HostEnd) -> Result<bool, CniError> {
    match find(conn, end)? {
        Some(found) => delete(conn, found.ifindex),
        None => Ok(false),
    }
}

/// The host's end, if there is one.
///
/// # Errors
/// Code 102 when a device of that name is somebody else's, 100 when the kernel refuses.
pub fn find(conn: &mut RouteConn, end: &HostEnd) -> Result<Option<Link>, CniError> {
    let found = link::by_name(conn, &end.name).map_err(|e| kernel(&e))?;
    found.map(|found| ours(found, end)).transpose()
}

/// `found`, which has the name of the host's end, if it is that.
///
/// # Errors
/// Code 102 when it is somebody else's.
pub fn ours(found: Link, end: &HostEnd) -> Result<Link, CniError> {
    if found.kind != "veth" || !end.owns(found.alias.as_deref()) {
        let alias = found.alias.unwrap_or_default();
        let msg = format!(
            "{} is not ours: a {} with the alias {alias:?}",
            end.name, found.kind
        );
        return Err(CniError::new(Code::Exists, msg).with(format!("expected the alias {:?}", end.alias)));
    }
    Ok(found)
}

/// Removes a veth of another plugin by the container's end. `false` when there is none, or a device of another kind.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn remove_inside(target: &Target, ifname: &str) -> Result<bool, CniError> {
    let mut conn = target.connect()?;
    match link::by_name(&mut conn, ifname).map_err(|e| kernel(&e))? {
        Some(found) if found.kind == "veth" => delete(&mut conn, found.ifindex),
        Some(_) | None => Ok(false),
    }
}

/// Removes the veth `port` of `bridge`, if it is one and has this hardware address, where one is given. It is left alone when it
/// carries our mark: then it belongs to another attachment.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn remove_port(conn: &mut RouteConn, bridge: &str, port: &str, mac: Option<Mac>) -> Result<(), CniError> {
    let mut find = |name: &str| link::by_name(conn, name).map_err(|e| kernel(&e));
    let (Some(bridge), Some(port)) = (find(bridge)?, find(port)?) else {
        return Ok(());
    };
    let marked = port
        .alias
        .as_deref()
        .is_some_and(|alias| alias.starts_with("flannel:"));
    let right = port.kind == "veth" && port.master == Some(bridge.ifindex) && !marked;
    if right && mac.is_none_or(|mac| port.mac == Some(mac)) {
        delete(conn, port.ifindex)?;
    }
    Ok(())
}

/// Deletes a device; `false` when it is gone already.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn delete(conn: &mut RouteConn, ifindex: u32) -> Result<bool, CniError> {
    match conn.run(&link::delete(ifindex)) {
        Ok(()) => Ok(true),
        // The namespace, or another DEL, took it with it.
        Err(e) if e.is_missing() => Ok(false),
        Err(e) => Err(kernel(&e)),
    }
}
