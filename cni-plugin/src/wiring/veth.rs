//! The veth pair between bridge and container.

use std::os::fd::AsFd;

use flannel_model::Mac;
use flannel_netlink::link::{self, Link, VethSpec};
use flannel_netlink::{Netns, RouteConn};

use super::kernel;
use super::plan::{HostEnd, Plan};
use crate::protocol::{CniError, Code};

/// Makes the pair, its far end in `target`, and the near end a port of `bridge`.
///
/// # Errors
/// Code 100 when the kernel refuses; nothing is left then.
pub fn make(conn: &mut RouteConn, plan: &Plan, bridge: &Link, target: &Netns) -> Result<(), CniError> {
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
    let mut marks = vec![link::set_alias(name, &alias)];
    if plan.bridge.hairpin {
        marks.push(link::set_hairpin(name, true));
    }
    if plan.bridge.port_isolation {
        marks.push(link::set_isolated(name, true));
    }
    let failed = conn.batch(&marks).into_iter().find_map(Result::err);
    match failed {
        None => Ok(()),
        Some(e) => {
            // The caller knows of no pair yet, so that nobody else would remove it.
            let _ = conn.run(&link::delete(name));
            Err(kernel(&e))
        }
    }
}

/// Removes the host's end, and the container's with it. `false` when there was none.
///
/// # Errors
/// Code 102 when a device of that name is somebody else's, 100 when the kernel refuses.
pub fn remove(conn: &mut RouteConn, end: &HostEnd) -> Result<bool, CniError> {
    let Some(found) = link::by_name(conn, &end.name).map_err(|e| kernel(&e))? else {
        return Ok(false);
    };
    if found.kind != "veth" || !end.owns(found.alias.as_deref()) {
        let alias = found.alias.unwrap_or_default();
        let msg = format!(
            "{} is not ours: a {} with the alias {alias:?}",
            end.name, found.kind
        );
        return Err(CniError::new(Code::Exists, msg).with(format!("expected the alias {:?}", end.alias)));
    }
    delete(conn, found.ifindex)
}

/// Removes a veth of another plugin by the container's end. `false` when there is none, or a device of another kind.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn remove_inside(target: &Netns, ifname: &str) -> Result<bool, CniError> {
    let mut conn = target.connect().map_err(|e| super::netns(&e))?;
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

fn delete(conn: &mut RouteConn, ifindex: u32) -> Result<bool, CniError> {
    match conn.run(&link::delete(ifindex)) {
        Ok(()) => Ok(true),
        // The namespace, or another DEL, took it with it.
        Err(e) if e.is_missing() => Ok(false),
        Err(e) => Err(kernel(&e)),
    }
}
