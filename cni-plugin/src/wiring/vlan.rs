//! VLANs: a bridge that keeps them apart, the container's port in its own, and a gateway for each.
//!
//! The gateway of a VLAN is one end of a veth pair on the node, as the bridge plugin makes it: `cni0.100` bears the addresses, the
//! other end is a port of the bridge in VLAN 100.

use std::os::fd::AsFd;

use flannel_netlink::link::{self, Link, PortVlan, VethSpec};
use flannel_netlink::{NetlinkError, Netns, RouteConn, RouteRequest};

use super::plan::{Plan, fnv1a};
use super::{Settings, kernel, netns};
use crate::config::Vlans;
use crate::protocol::{CniError, Code};

/// Makes the bridge keep VLANs apart. Its ports stay in VLAN 1, where they were.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn filter(conn: &mut RouteConn, bridge: &Link) -> Result<(), CniError> {
    if bridge.vlan_filtering == Some(true) {
        return Ok(());
    }
    let request = link::set_vlan_filtering(bridge.ifindex, true);
    conn.run(&request).map_err(|e| refused(&e))
}

/// Puts the port `name` of a container into its VLANs, before the container can send.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn join(conn: &mut RouteConn, name: &str, vlans: &Vlans) -> Result<(), CniError> {
    let port = link::by_name(conn, name).map_err(|e| kernel(&e))?;
    let port = port.ok_or_else(|| CniError::new(Code::Kernel, format!("{name} vanished")))?;
    run(conn, &membership(port.ifindex, vlans.of_port()))
}

/// The device that bears the gateway addresses of VLAN `access`: made where it is missing, and mended where it was left half made
/// or the bridge was made anew.
///
/// # Errors
/// Code 102 when another device has its name, 100 when the kernel refuses.
pub fn gateway(
    (conn, settings): (&mut RouteConn, &Settings),
    plan: &Plan,
    bridge: &Link,
    (vlans, access): (&Vlans, u16),
    name: &str,
) -> Result<Link, CniError> {
    let (device, port) = match pair(conn, name)? {
        Some(found) => found,
        None => make(conn, plan, bridge, name)?,
    };
    // It is set up last of all, so that one that is up is finished.
    if device.up && port.master == Some(bridge.ifindex) {
        return Ok(device);
    }
    // As on the bridge itself.
    super::bridge::close(settings, name)?;
    let mut requests = vec![link::set_master(port.ifindex, Some(bridge.ifindex))];
    requests.extend(membership(port.ifindex, vlans.of_gateway(access)));
    requests.extend([port.ifindex, device.ifindex].map(link::set_up));
    run(conn, &requests)?;
    Ok(Link { up: true, ..device })
}

/// Both ends of a gateway.
///
/// # Errors
/// Code 102 when another device has its name, 100 when the kernel refuses.
pub fn pair(conn: &mut RouteConn, name: &str) -> Result<Option<(Link, Link)>, CniError> {
    let Some(device) = link::by_name(conn, name).map_err(|e| kernel(&e))? else {
        return Ok(None);
    };
    let other = match device.peer.filter(|_| device.kind == "veth") {
        Some(index) => link::by_index(conn, index).map_err(|e| kernel(&e))?,
        None => None,
    };
    // The index alone could be that of another namespace.
    match other.filter(|port| port.kind == "veth" && port.peer == Some(device.ifindex)) {
        Some(port) => Ok(Some((device, port))),
        None => Err(CniError::new(
            Code::Exists,
            format!("{name} exists and is no veth of the node with its other end on the node"),
        )
        .with("it is the name of the VLAN's gateway: rename that device, or set delegate.bridge to another name")),
    }
}

/// Which of the node's devices is the port of a VLAN's gateway on `bridge`.
pub fn is_gateway_port(port: &Link, bridge: &str, links: &[Link]) -> bool {
    let of_vlan = |name: &str| {
        let number = name.strip_prefix(bridge).and_then(|rest| rest.strip_prefix('.'));
        number.is_some_and(|number| number.parse::<u16>().is_ok())
    };
    let other = links.iter().find(|link| Some(link.ifindex) == port.peer);
    other.is_some_and(|other| other.peer == Some(port.ifindex) && of_vlan(&other.name))
}

fn make(conn: &mut RouteConn, plan: &Plan, bridge: &Link, name: &str) -> Result<(Link, Link), CniError> {
    let own = Netns::own().map_err(|e| netns(&e))?;
    let port = format!("veth{:011x}", fnv1a(name.as_bytes()) & 0xfff_ffff_ffff);
    let spec = VethSpec {
        name: &port,
        master: Some(bridge.ifindex),
        alias: None,
        mtu: plan.mtu,
        mac: None,
        peer_name: name,
        peer_mac: None,
        peer_namespace: own.as_fd(),
    };
    match conn.run(&link::create_veth(&spec)) {
        Ok(()) => {}
        // Another ADD was faster.
        Err(e) if e.is_exists() => {}
        Err(e) => return Err(kernel(&e)),
    }
    pair(conn, name)?.ok_or_else(|| CniError::new(Code::Kernel, format!("{name} vanished")))
}

fn membership(port: u32, (wanted, unwanted): (Vec<PortVlan>, Option<PortVlan>)) -> Vec<RouteRequest> {
    let out = unwanted.map(|vlan| link::remove_vlan(port, vlan));
    let into = wanted.into_iter().map(|vlan| link::add_vlan(port, vlan));
    out.into_iter().chain(into).collect()
}

fn run(conn: &mut RouteConn, requests: &[RouteRequest]) -> Result<(), CniError> {
    let failed = conn.batch(requests).into_iter().find_map(Result::err);
    failed.map_or(Ok(()), |e| Err(refused(&e)))
}

fn refused(error: &NetlinkError) -> CniError {
    match error.has_errno(rustix::io::Errno::OPNOTSUPP) {
        true => CniError::new(Code::Kernel, error.to_string())
            .with("this kernel's bridges know no VLANs (CONFIG_BRIDGE_VLAN_FILTERING): leave delegate.vlan and delegate.vlanTrunk out"),
        false => kernel(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_a_gateway_is_known_by_its_other_end() {
        let veth = |ifindex, name: &str, peer| Link {
            ifindex,
            name: name.to_owned(),
            kind: "veth".to_owned(),
            peer: Some(peer),
            ..Link::default()
        };
        let port = veth(5, "veth1", 6);
        for (other, expected) in [
            (veth(6, "cni0.100", 5), true),
            (veth(6, "cni0.x", 5), false),
            (veth(6, "cni1.100", 5), false),
            (veth(6, "cni0.100", 9), false),
            (veth(7, "cni0.100", 5), false),
        ] {
            let links = [port.clone(), other.clone()];
            assert_eq!(is_gateway_port(&port, "cni0", &links), expected, "{}", other.name);
        }
    }
}
