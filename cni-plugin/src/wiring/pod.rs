//! The container's side: addresses, routes, the devices up.

use std::time::Duration;

use flannel_netlink::duplicate::{self, Found};
use flannel_netlink::link::{self, Ipv4Setting};
use flannel_netlink::pod::{self, GatewayRoute, IpOnLink};
use flannel_netlink::{NetlinkError, RouteConn, RouteRequest};
use rustix::io::Errno;

use super::plan::Plan;
use super::{Settings, Target, kernel};
use crate::guard::Scope;
use crate::protocol::{CniError, Code};

/// Longest wait for the answers to duplicate address detection: one question a second by default (`dad_transmits`), begun within
/// another (RFC 4862).
const PATIENCE: Duration = Duration::from_secs(10);

/// The container's side, with a connection into it.
#[derive(Debug)]
pub struct Inside {
    conn: RouteConn,
    /// Names of its devices, but for `lo`.
    pub devices: Vec<String>,
}

/// Looks at what is in the namespace.
///
/// # Errors
/// Code 8 when it cannot be entered, 100 when the kernel refuses.
pub fn look(target: &Target) -> Result<Inside, CniError> {
    let mut conn = target.connect()?;
    let links = link::dump(&mut conn).map_err(|e| kernel(&e))?;
    let others = links.into_iter().filter(|link| !link.loopback);
    Ok(Inside {
        conn,
        devices: others.map(|link| link.name).collect(),
    })
}

/// Configures the container's end. `fenced` when a guard keeps containers from sending what is not theirs.
///
/// # Errors
/// Code 8 when the namespace cannot be entered, 100 when the kernel refuses.
pub fn configure(target: &Target, inside: &mut Inside, plan: &Plan, fenced: bool) -> Result<(), CniError> {
    target.run(|| settings(plan, &Settings::default(), fenced))??;
    let conn = &mut inside.conn;
    let found = link::by_name(conn, &plan.ifname).map_err(|e| kernel(&e))?;
    let index = found.map(|device| device.ifindex).ok_or_else(|| {
        let msg = format!("{} vanished from the container", plan.ifname);
        CniError::new(Code::Kernel, msg)
    })?;
    let asked = requests(plan, index);
    for (outcome, refused) in conn.run_all(&asked.requests).into_iter().zip(asked.fine) {
        match outcome {
            Err(e) if refused(&e) => {}
            Err(e) => return Err(kernel(&e)),
            Ok(_) => {}
        }
    }
    match plan.bridge.enable_dad && plan.has_family(false) {
        true => unique(conn, index),
        false => Ok(()),
    }
}

/// Tells everybody on the bridge who has the addresses, when the bridge takes packets from the container: setting the hardware address,
/// even to what it is, makes the kernel announce it (`arp_notify`). Each announcement costs the bridge some microseconds for each of
/// its ports.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn announce(inside: &mut Inside, plan: &Plan) -> Result<(), CniError> {
    let request = link::set_mac(plan.ifname.as_str(), plan.pod_mac);
    inside.conn.run(&request).map_err(|e| kernel(&e))
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
fn settings(plan: &Plan, settings: &Settings, fenced: bool) -> Result<(), CniError> {
    let ifname = &plan.ifname;
    // Addresses and routes are ours to give: another container's router advertisement or redirect must not (CVE-2020-10749).
    settings.v6(&format!("conf/{ifname}/accept_ra"), "0")?;
    settings.v6(&format!("conf/{ifname}/accept_redirects"), "0")?;
    // Where a namespace does not forward, it is enough that either of the two allows them (`IN_DEV_RX_REDIRECTS`). Only another container
    // could send one that looks like the gateway's, and a guard drops it: the way to this setting is as long as there are namespaces.
    if !(fenced && plan.bridge.guard == Scope::All) {
        settings.v4("conf/all/accept_redirects", "0")?;
    }
    // Without IPv6 it has no address to ask for.
    if !plan.has_family(false) {
        return Ok(());
    }
    // Leases have each address once, so that nobody needs to be asked, link-local addresses included, unless somebody wants it: a
    // question goes to every container on the bridge.
    let asked = plan.bridge.enable_dad;
    settings.v6(
        &format!("conf/{ifname}/accept_dad"),
        if asked { "1" } else { "0" },
    )?;
    if asked {
        // RFC 7527: a question that comes back by a loop is no answer.
        settings.v6(&format!("conf/{ifname}/enhanced_dad"), "1")?;
    }
    settings.v6("conf/lo/disable_ipv6", "0")?;
    settings.v6(&format!("conf/{ifname}/disable_ipv6"), "0")
}

/// Requests to be sent together, each with the refusals of it that do no harm.
#[derive(Default)]
struct Asked {
    requests: Vec<RouteRequest>,
    fine: Vec<fn(&NetlinkError) -> bool>,
}

impl Asked {
    fn push(&mut self, request: RouteRequest, fine: fn(&NetlinkError) -> bool) {
        self.requests.push(request);
        self.fine.push(fine);
    }
}

fn never(_: &NetlinkError) -> bool {
    false
}

/// Everything in one send. Routes need the device up.
fn requests(plan: &Plan, ifindex: u32) -> Asked {
    let mut asked = Asked::default();
    let closed = [
        (Ipv4Setting::AcceptRedirects, false),
        (Ipv4Setting::SendRedirects, false),
    ];
    asked.push(link::set_up("lo"), never);
    asked.push(link::set_ipv4(ifindex, &closed), never);
    // The link-local address must be the one that the guard knows. Where the network has no IPv6 there is nobody to talk to by it, and its
    // reports of groups would go to every container on the bridge, the first of them while the kernel holds the lock of all devices.
    asked.push(link::set_link_local(ifindex, plan.has_family(false)), |e| {
        e.has_errno(Errno::AFNOSUPPORT)
    });
    for given in &plan.addresses {
        let (address, length) = (given.address, given.range.length());
        let ip = IpOnLink {
            ifindex,
            address,
            length,
            global: true,
        };
        let request = match plan.bridge.enable_dad {
            true => duplicate::add_address_asking(&ip),
            false => pod::add_address(&ip),
        };
        asked.push(request, never);
    }
    // From now on it announces itself when its hardware address is changed, or it comes up again. Now nobody would hear it: the bridge
    // does not know yet that the port has a carrier.
    asked.push(
        link::set_up_with(ifindex, &[(Ipv4Setting::ArpNotify, true)]),
        never,
    );
    // Asking makes the kernel act upon the carrier now, where it otherwise does so some milliseconds later.
    asked.push(link::get_request(ifindex), never);
    for (route, gateway) in plan.hops() {
        let options = route.options;
        let request = pod::add_route(&GatewayRoute {
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
        });
        // The kernel made a route of its own for the subnet, which serves as well.
        asked.push(request, NetlinkError::is_exists);
    }
    asked
}
