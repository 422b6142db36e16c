//! The node's bridge: made on demand, else adopted as it is.

use std::net::IpAddr;

use flannel_model::Mac;
use flannel_netlink::link::{self, BridgeSpec, Link};
use flannel_netlink::pod::{self, IpOnLink};
use flannel_netlink::{NetlinkError, RouteConn};

use super::plan::Plan;
use super::{Settings, kernel, vlan};
use crate::config::contradiction;
use crate::protocol::{CniError, Code};

/// "Address set using dev_set_mac_address()" (include/uapi/linux/netdevice.h).
const NET_ADDR_SET: u32 = 3;

/// The node's side, as far as containers share it.
#[derive(Debug)]
pub struct Shared {
    /// The bridge.
    pub bridge: Link,
    /// What bears the gateway addresses where a VLAN has a gateway of its own.
    pub gateway: Option<Link>,
}

/// Sees to it that the bridge is there and up, and the gateway addresses on it or on its VLAN's device. `mac` is for a bridge that
/// must be made.
///
/// # Errors
/// Code 7 when the gateway address cannot be on the VLAN's device, 102 when a device of another kind has the name of either, 100
/// when the kernel refuses.
pub fn ensure(conn: &mut RouteConn, settings: &Settings, plan: &Plan, mac: Mac) -> Result<Shared, CniError> {
    let name = plan.bridge.name.as_str();
    let mut bridge = match find(conn, name)? {
        Some(bridge) => bridge,
        None => make(conn, plan, mac)?,
    };
    // Nobody has this address by chance.
    if plan.bridge_mac().is_none_or(|own| bridge.mac != Some(own)) {
        pin_mac(conn, &mut bridge, mac)?;
    }
    if !bridge.rerouting.is_closed() {
        // Before the bridge's own: a bridge that is closed tells every later ADD that this is done.
        if plan.bridge.is_gateway {
            send_no_redirects(settings)?;
        }
        close(settings, name)?;
    }
    if plan.bridge.promisc {
        conn.run(&pod::set_promiscuous(bridge.ifindex, true))
            .map_err(|e| kernel(&e))?;
    }
    if let Some(mtu) = plan.bridge.mtu.filter(|mtu| *mtu != bridge.mtu) {
        // It has changed since the bridge was made; full packets of the new container would vanish in it.
        conn.run(&link::set_mtu(bridge.ifindex, mtu))
            .map_err(|e| kernel(&e))?;
        bridge.mtu = mtu;
    }
    if !bridge.up {
        conn.run(&link::set_up(bridge.ifindex)).map_err(|e| kernel(&e))?;
        bridge.up = true;
    }
    if plan.bridge.vlans.is_some() {
        vlan::filter(conn, &bridge)?;
    }
    let gateway = vlan_gateway(conn, settings, &bridge, plan)?;
    if plan.bridge.is_gateway {
        let bearer = gateway.as_ref().unwrap_or(&bridge);
        if gateway.is_some() || bridge.vlan_filtering == Some(true) {
            alone(conn, bearer, plan)?;
        }
        address(conn, settings, bearer, plan)?;
        forward(settings, bearer, plan)?;
    }
    Ok(Shared { bridge, gateway })
}

/// A device on which containers hang is ours to route on: neither a router advertisement (CVE-2020-10749) nor a redirect from one of
/// them must reroute the node, and the node has no redirects to give, as both ways lead over the bridge itself.
pub fn close(settings: &Settings, name: &str) -> Result<(), CniError> {
    settings.v6(&format!("conf/{name}/accept_ra"), "0")?;
    settings.v6(&format!("conf/{name}/accept_redirects"), "0")?;
    settings.v4(&format!("conf/{name}/accept_redirects"), "0")?;
    settings.v4(&format!("conf/{name}/send_redirects"), "0")
}

/// It is enough that either of the host's setting and the device's allows them (`IN_DEV_TX_REDIRECTS`); every other device has a setting
/// of its own.
fn send_no_redirects(settings: &Settings) -> Result<(), CniError> {
    settings.host("ipv4/conf/all/send_redirects", "0")
}

/// The device of a VLAN with a gateway of its own.
fn vlan_gateway(
    conn: &mut RouteConn,
    settings: &Settings,
    bridge: &Link,
    plan: &Plan,
) -> Result<Option<Link>, CniError> {
    let vlans = plan.bridge.vlans.as_ref();
    let Some((vlans, name)) = vlans.zip(plan.bridge.gateway_device()) else {
        return Ok(None);
    };
    match vlans.access() {
        Some(access) => vlan::gateway((conn, settings), plan, bridge, (vlans, access), &name).map(Some),
        None => Ok(None),
    }
}

/// The kernel sends what is for the subnet to one device only: containers of one subnet inside and outside of a VLAN, or in two,
/// would never get all their answers. Only on a bridge that knows VLANs can that be.
fn alone(conn: &mut RouteConn, bearer: &Link, plan: &Plan) -> Result<(), CniError> {
    for (gateway, _) in plan.gateways() {
        let bearers = pod::bearers(conn, gateway).map_err(|e| kernel(&e))?;
        let other = bearers.into_iter().find(|index| *index != bearer.ifindex);
        let other = match other {
            Some(index) => link::by_index(conn, index).map_err(|e| kernel(&e))?,
            None => None,
        };
        if let Some(other) = other {
            let msg = format!(
                "delegate.vlan: {} is to bear the gateway address {gateway}, which {} bears already",
                bearer.name, other.name
            );
            return Err(contradiction(
                msg,
                "the containers of a node's subnet are all in one VLAN, or in none: give all their networks the same delegate.vlan, or, when the containers behind the other device are gone, take the address off it",
            ));
        }
    }
    Ok(())
}

/// The bridge called `name`, if there is one.
///
/// # Errors
/// Code 102 when a device of another kind has its name, 100 when the kernel refuses.
pub fn find(conn: &mut RouteConn, name: &str) -> Result<Option<Link>, CniError> {
    let found = link::by_name(conn, name).map_err(|e| kernel(&e))?;
    match found {
        Some(other) if other.kind != "bridge" => {
            let kind = if other.kind.is_empty() {
                "hardware"
            } else {
                &other.kind
            };
            let msg = format!("{name} exists and is no bridge but of kind {kind}");
            Err(CniError::new(Code::Exists, msg)
                .with("rename that device, or set delegate.bridge to another name"))
        }
        found => Ok(found),
    }
}

/// The explicit hardware address keeps the bridge's own from changing with its ports.
fn make(conn: &mut RouteConn, plan: &Plan, mac: Mac) -> Result<Link, CniError> {
    let name = plan.bridge.name.as_str();
    let spec = BridgeSpec {
        name,
        mtu: plan.bridge.mtu,
        mac: Some(mac),
    };
    match conn.run(&link::create_bridge(&spec)) {
        Ok(()) => {}
        // Another ADD was faster.
        Err(e) if e.is_exists() => {}
        Err(e) => return Err(kernel(&e)),
    }
    find(conn, name)?.ok_or_else(|| CniError::new(Code::Kernel, format!("the bridge {name} vanished")))
}

/// A bridge of which nobody set the hardware address takes the lowest of its ports (`br_stp_recalculate_bridge_id`,
/// net/bridge/br_stp_if.c), so that it changes with each container and the others' neighbour entries point nowhere; without
/// ports it has none at all. Setting it, even to what it is, ends that. `mac` is for a bridge that has none.
fn pin_mac(conn: &mut RouteConn, bridge: &mut Link, mac: Mac) -> Result<(), CniError> {
    if is_pinned(bridge) {
        return Ok(());
    }
    let pinned = bridge.mac.filter(|mac| *mac != Mac::new([0; 6])).unwrap_or(mac);
    conn.run(&link::set_mac(bridge.ifindex, pinned))
        .map_err(|e| kernel(&e))?;
    bridge.mac = Some(pinned);
    Ok(())
}

/// Whether somebody set the hardware address. Only sysfs tells, and it may be another namespace's or not mounted: no answer
/// means no, since setting it again costs no more than the neighbours' entries.
fn is_pinned(bridge: &Link) -> bool {
    let read = |file: &str| {
        let path = format!("/sys/class/net/{}/{file}", bridge.name);
        std::fs::read_to_string(path).ok()?.trim().parse::<u32>().ok()
    };
    read("ifindex") == Some(bridge.ifindex) && read("addr_assign_type") == Some(NET_ADDR_SET)
}

/// Adds the gateway addresses that are missing. Others stay, since pods of an earlier subnet may live behind them, unless
/// forceAddress says that they must not.
fn address(conn: &mut RouteConn, settings: &Settings, bridge: &Link, plan: &Plan) -> Result<(), CniError> {
    let present = pod::addresses(conn, bridge.ifindex).map_err(|e| kernel(&e))?;
    for (address, length) in plan.gateways() {
        let wanted = IpOnLink {
            ifindex: bridge.ifindex,
            address,
            length,
            global: true,
        };
        let (same, others): (Vec<&IpOnLink>, Vec<&IpOnLink>) = present
            .iter()
            .partition(|ip| ip.address == address && ip.length == length);
        if plan.bridge.force_address {
            for other in others.into_iter().filter(|other| collides(other, &wanted)) {
                tolerate(conn.run(&pod::delete_address(other)), NetlinkError::is_missing)?;
            }
        }
        if same.is_empty() {
            // Until now the bridge may have been nobody's gateway.
            send_no_redirects(settings)?;
            tolerate(conn.run(&pod::add_address(&wanted)), NetlinkError::is_exists)?;
        }
    }
    Ok(())
}

/// Whether forceAddress removes `other`: any address in IPv4, an overlapping one in IPv6, where several are usual.
fn collides(other: &IpOnLink, wanted: &IpOnLink) -> bool {
    match (other.address, wanted.address) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let shift = 128 - u32::from(other.length.min(wanted.length));
            let network = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
            other.global && network(a.into()) == network(b.into())
        }
        _ => false,
    }
}

/// Whoever changes the host's setting changes that of each device with it (`inet_forward_change`, net/ipv4/devinet.c;
/// `addrconf_fixup_forwarding`, net/ipv6/addrconf.c), and the kernel told `bearer`'s already. The files are asked where it is not on:
/// the way to them is as long as there are namespaces.
fn forward(settings: &Settings, bearer: &Link, plan: &Plan) -> Result<(), CniError> {
    if plan.has_family(true) && bearer.forwarding.ipv4 != Some(true) {
        settings.host("ipv4/ip_forward", "1")?;
    }
    if plan.has_family(false) && bearer.forwarding.ipv6 != Some(true) {
        settings.host("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn tolerate(result: Result<(), NetlinkError>, fine: impl Fn(&NetlinkError) -> bool) -> Result<(), CniError> {
    match result {
        Err(e) if !fine(&e) => Err(kernel(&e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str, length: u8) -> IpOnLink {
        IpOnLink {
            ifindex: 1,
            address: address.parse().unwrap(),
            length,
            global: !address.starts_with("fe80"),
        }
    }

    #[test]
    fn what_force_address_removes() {
        assert!(collides(&ip("10.9.0.1", 16), &ip("10.1.17.1", 24)));
        assert!(collides(&ip("fc00:7::9", 64), &ip("fc00:7::1", 64)));
        assert!(collides(&ip("fc00::9", 16), &ip("fc00:7::1", 64)));
        assert!(!collides(&ip("fc00:8::9", 64), &ip("fc00:7::1", 64)));
        assert!(!collides(&ip("fe80::1", 64), &ip("fc00:7::1", 64)));
        assert!(!collides(&ip("10.9.0.1", 16), &ip("fc00:7::1", 64)));
    }
}
