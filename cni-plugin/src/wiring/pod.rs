//! The container's side: addresses, routes, the devices up.

use std::time::Duration;

use flannel_netlink::duplicate::{self, Found};
use flannel_netlink::link::{self, Ipv4Setting};
use flannel_netlink::pod::{self, GatewayRoute, IpOnLink};
use flannel_netlink::{Netns, RouteConn, RouteRequest};

use super::plan::Plan;
use super::{kernel, sysctl};
use crate::protocol::{CniError, Code};

/// Longest wait for the answers to duplicate address detection: one question a second by default (`dad_transmits`), begun within
/// another (RFC 4862).
const PATIENCE: Duration = Duration::from_secs(10);

/// Names of the devices in the namespace, but for `lo`.
///
/// # Errors
/// Code 8 when it cannot be entered, 100 when the kernel refuses.
pub fn devices(target: &Netns) -> Result<Vec<String>, CniError> {
    let mut conn = super::inside(target)?;
    let links = link::dump(&mut conn).map_err(|e| kernel(&e))?;
    let others = links.into_iter().filter(|link| !link.loopback);
    Ok(others.map(|link| link.name).collect())
}

/// Configures the container's end inside its namespace.
///
/// # Errors
/// Code 8 when the namespace cannot be entered, 100 when the kernel refuses.
pub fn configure(target: &Netns, plan: &Plan) -> Result<(), CniError> {
    target.run(|| inside(plan)).map_err(|e| super::netns(&e))?
}

fn inside(plan: &Plan) -> Result<(), CniError> {
    settings(plan)?;
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let found = link::by_name(&mut conn, &plan.ifname).map_err(|e| kernel(&e))?;
    let Some(device) = found else {
        return Err(CniError::new(
            Code::Kernel,
            format!("{} vanished from the container", plan.ifname),
        ));
    };
    let (requests, routes_from) = requests(plan, device.ifindex);
    for (index, outcome) in conn.batch(&requests).into_iter().enumerate() {
        match outcome {
            // The kernel made a route of its own for the subnet, which serves as well.
            Err(e) if e.is_exists() && index >= routes_from => {}
            Err(e) => return Err(kernel(&e)),
            Ok(_) => {}
        }
    }
    match plan.bridge.enable_dad && plan.has_family(false) {
        true => unique(&mut conn, device.ifindex),
        false => Ok(()),
    }
}

/// Waits until the kernel found every IPv6 address to be nobody else's.
fn unique(conn: &mut RouteConn, ifindex: u32) -> Result<(), CniError> {
    let found = duplicate::await_answers(conn, ifindex, PATIENCE).map_err(|e| kernel(&e))?;
    match found {
        Some(Found::Unique) => Ok(()),
        Some(Found::Taken(taken)) => Err(CniError::new(
            Code::Exists,
            format!("somebody else on the bridge answers for {taken:?}"),
        )
        .with(
            "find who it is by its hardware address: ip -6 neigh; delegate.enabledad asked for this check",
        )),
        None => Err(CniError::new(
            Code::Kernel,
            "whether the container's IPv6 addresses are taken is not known after 10 s",
        )
        .with("delegate.enabledad asks for this check; leave it out to do without")),
    }
}

/// Some runtimes start a namespace with IPv6 off.
fn settings(plan: &Plan) -> Result<(), CniError> {
    let ifname = &plan.ifname;
    // Addresses and routes are ours to give: another container's router advertisement or redirect must not (CVE-2020-10749). And
    // the link-local address must be the one that may be used: 0 is IN6_ADDR_GEN_MODE_EUI64.
    sysctl::set(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
    sysctl::set(&format!("ipv6/conf/{ifname}/accept_redirects"), "0")?;
    // Where a namespace does not forward, it is enough that either of the two allows them (`IN_DEV_RX_REDIRECTS`).
    sysctl::set("ipv4/conf/all/accept_redirects", "0")?;
    sysctl::set(&format!("ipv6/conf/{ifname}/addr_gen_mode"), "0")?;
    // Leases have each address once, so that nobody needs to be asked, link-local addresses included, unless somebody wants it: a
    // question goes to every container on the bridge.
    let asked = plan.bridge.enable_dad;
    let accept_dad = format!("ipv6/conf/{ifname}/accept_dad");
    sysctl::set(&accept_dad, if asked { "1" } else { "0" })?;
    if asked {
        // RFC 7527: a question that comes back by a loop is no answer.
        sysctl::set(&format!("ipv6/conf/{ifname}/enhanced_dad"), "1")?;
    }
    if plan.has_family(false) {
        sysctl::set("ipv6/conf/lo/disable_ipv6", "0")?;
        sysctl::set(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// Everything in one send, and where in it the routes begin. The kernel announces the IPv4 addresses that a device has when it
/// comes up, so they go before; routes need it up.
fn requests(plan: &Plan, ifindex: u32) -> (Vec<RouteRequest>, usize) {
    let addresses = plan.addresses.iter().map(|given| {
        let (address, length) = (given.address, given.range.length());
        let ip = IpOnLink {
            ifindex,
            address,
            length,
            global: true,
        };
        match plan.bridge.enable_dad {
            true => duplicate::add_address_asking(&ip),
            false => pod::add_address(&ip),
        }
    });
    // The first packet of a reused address should find neighbours that know its new owner, so that the device announces itself
    // when it comes up.
    let ipv4 = [
        (Ipv4Setting::ArpNotify, true),
        (Ipv4Setting::AcceptRedirects, false),
        (Ipv4Setting::SendRedirects, false),
    ];
    let mut requests = vec![link::set_up("lo"), link::set_ipv4(ifindex, &ipv4)];
    requests.extend(addresses);
    requests.push(link::set_up(ifindex));
    // Asking makes the kernel act upon the carrier now, where it otherwise does so some milliseconds later.
    requests.push(link::get_request(ifindex));
    let routes_from = requests.len();
    requests.extend(plan.hops().map(|(route, gateway)| {
        let options = route.options;
        pod::add_route(&GatewayRoute {
            ifindex,
            destination: route.dst,
            gateway,
            options: pod::RouteOptions {
                mtu: options.mtu,
                advmss: options.advmss,
                priority: options.priority,
                table: options.table,
                scope: options.scope,
            },
        })
    }));
    (requests, routes_from)
}
