//! What the kernel alone takes: the same device, addresses and routes as an ADD makes, and the same cut as a DEL makes, in as few
//! messages as can be, without a program's start, leases on disk, anti-spoof or a look at anything. Nobody can be faster.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_netlink::link::{self, VethSpec, released};
use flannel_netlink::pod::{self, GatewayRoute, IpOnLink, RouteOptions};
use flannel_netlink::{Netns, RouteConn};

use super::side::{GATEWAY, Side};

/// An address that no lease of the suite comes near.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 255, 250);
const LENGTH: u8 = 16;
const PORT: &str = "vethfloor";
/// The mark by which the kernel's devices of this plugin are known; flanneld on the node deletes what has it.
const ALIAS: &str = "flannel:floor/floor/eth0 10.77.255.250";

/// The times of both, in the namespace of the pod at `netns`, on the node of `side`, which must have its bridge.
pub fn life(side: &Side, netns: &str) -> Result<(Duration, Duration)> {
    side.enter()?;
    let space = Netns::open(netns)?;
    let mut conn = RouteConn::open()?;
    let bridge = link::by_name(&mut conn, "cni0")?.context("the node has no bridge yet")?;
    let start = Instant::now();
    let spec = VethSpec {
        name: PORT,
        master: Some(bridge.ifindex),
        alias: Some(ALIAS),
        mtu: 1450,
        mac: None,
        peer_name: "eth0",
        peer_mac: None,
        peer_namespace: space.as_fd(),
    };
    let made = conn.run_all(&[
        link::create_veth(&spec),
        link::set_alias(PORT, ALIAS),
        link::set_hairpin(PORT, true),
        link::get_request(PORT),
    ]);
    made.into_iter().collect::<Result<(), _>>()?;
    space.run(inside)??;
    let add = start.elapsed();

    let port = link::by_name(&mut conn, PORT)?.context("the kernel did not show the device that it made")?;
    let start = Instant::now();
    released::release(&mut conn, port.ifindex, &[ADDRESS.into()])?;
    let del = start.elapsed();
    match conn.run(&link::delete(port.ifindex)) {
        // flanneld looks for such devices now and then.
        Err(e) if !e.is_missing() => Err(e.into()),
        _ => Ok((add, del)),
    }
}

fn inside() -> Result<()> {
    let mut conn = RouteConn::open()?;
    let device = link::by_name(&mut conn, "eth0")?.context("no eth0")?;
    let gateway: IpAddr = GATEWAY.parse()?;
    let route = |destination| {
        pod::add_route(&GatewayRoute {
            ifindex: device.ifindex,
            destination,
            gateway,
            options: RouteOptions::default(),
        })
    };
    let address = pod::add_address(&IpOnLink {
        ifindex: device.ifindex,
        address: ADDRESS.into(),
        length: LENGTH,
        global: true,
    });
    let announce = link::set_ipv4(device.ifindex, &[(link::Ipv4Setting::ArpNotify, true)]);
    let requests = [
        link::set_up("lo"),
        announce,
        address,
        link::set_up(device.ifindex),
        link::get_request(device.ifindex),
        route((Ipv4Addr::new(10, 64, 0, 0).into(), 10)),
        route((Ipv4Addr::UNSPECIFIED.into(), 0)),
    ];
    conn.run_all(&requests).into_iter().collect::<Result<(), _>>()?;
    Ok(())
}
