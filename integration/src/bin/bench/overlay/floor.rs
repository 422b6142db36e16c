//! What the kernel itself takes for the entries of so many peers: the same requests, made beforehand, and nothing looked at.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_lab::Node;
use flannel_model::{IpSubnet, Mac};
use flannel_netlink::link::{self, VxlanSpec};
use flannel_netlink::route::{self, Distance, Route};
use flannel_netlink::{Netns, RouteConn, RouteRequest, fdb, neighbour};

use crate::stats::Series;
use crate::table;

const ROUNDS: usize = 3;
const DEVICE: &str = "floor";

/// Measures and prints, on a node without the daemon.
pub fn run(node: &Node, peers: usize) -> Result<()> {
    let mut conn = Netns::open(format!("/run/netns/{}", node.name()))?.connect()?;
    for (name, scopes) in [
        ("floor: the kernel, entries as ip makes them", 1),
        ("floor: routes spread over scopes as ours", 253),
    ] {
        let times = (0..ROUNDS).map(|_| once(&mut conn, peers, scopes));
        let times: Vec<Duration> = times.collect::<Result<_>>()?;
        table::ours(name, &Series::new(times), None);
    }
    Ok(())
}

fn once(conn: &mut RouteConn, peers: usize, scopes: usize) -> Result<Duration> {
    let ifindex = device(conn)?;
    let requests = requests(ifindex, peers, scopes)?;
    let begin = Instant::now();
    let outcomes = conn.batch_quietly(&requests);
    let time = begin.elapsed();
    let all: Result<Vec<()>, _> = outcomes.into_iter().collect();
    all?;
    conn.run(&link::delete(DEVICE))?;
    Ok(time)
}

/// A VXLAN device of its own, which nobody else sends to.
fn device(conn: &mut RouteConn) -> Result<u32> {
    let underlay = link::by_name(conn, "lo")?.context("no lo")?;
    conn.run(&link::create_vxlan(&VxlanSpec {
        name: DEVICE,
        id: 4242,
        underlay: underlay.ifindex,
        local: [127, 0, 0, 1].into(),
        port: 4790,
        mtu: 1450,
        mac: Mac::new([0x8a, 0x55, 0x6f, 0xff, 0, 1]),
        learning: false,
        gbp: false,
        udp_checksum: true,
    }))?;
    conn.run(&link::set_up(DEVICE))?;
    let made = link::by_name(conn, DEVICE)?.context("the device is not there")?;
    Ok(made.ifindex)
}

/// In the order of the daemon: FDB entries, neighbours, routes.
fn requests(ifindex: u32, peers: usize, scopes: usize) -> Result<Vec<RouteRequest>> {
    let (mut entries, mut neighbours, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for n in 1..=peers {
        let (high, low) = (u8::try_from(n / 256)?, u8::try_from(n % 256)?);
        let mac = Mac::new([0x8a, 0x55, 0x6f, 0, high, low]);
        let subnet = [10, high, low, 0];
        let destination = IpSubnet::around(subnet.into(), 24).context("no subnet")?;
        let scope = match u8::try_from(n % scopes)? {
            0 => Distance::Universe,
            number => Distance::Other(number),
        };
        entries.push(fdb::replace(ifindex, mac, [172, 16, high, low]));
        neighbours.push(neighbour::replace(ifindex, subnet, mac));
        routes.push(route::add(&Route {
            scope,
            ..Route::via_onlink(destination, subnet, ifindex)
        }));
    }
    Ok([entries, neighbours, routes].concat())
}
