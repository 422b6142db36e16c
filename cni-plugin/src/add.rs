//! ADD: validate everything, then act, and take all of it back when a step fails.

use std::net::IpAddr;

use flannel_model::Mac;
use flannel_netlink::RouteConn;
use flannel_netlink::link::{self, released};

use crate::address::Given;
use crate::config::{Bridge, Network, Vlans};
use crate::guard;
use crate::masq;
use crate::order::Order;
use crate::protocol::{AddResult, Attachment, CniArgs, CniError, Code, Dns, Interface, IpConfig, previous};
use crate::reserve::{Wish, reserve};
use crate::scratch::Scratch;
use crate::subnet_file;
use crate::undo::{Reserved, Undo};
use crate::wiring::bridge::Shared;
use crate::wiring::plan::{HostEnd, Plan};
use crate::wiring::{self, Settings, Target, bridge, handover, kernel, pod, target, veth};

/// What ADD was asked, checked as far as that goes without touching anything.
struct Job<'a> {
    network: &'a Network,
    attachment: &'a Attachment,
    netns: &'a str,
    order: Order,
    earlier: Option<AddResult>,
    dns: Dns,
    target: Target,
}

/// A finished ADD, which can still be taken back when its result finds no reader.
pub struct Attached {
    /// The result for the runtime.
    pub result: AddResult,
    undo: Undo,
    conn: RouteConn,
}

impl Attached {
    /// Takes everything back.
    pub fn take_back(mut self, warn: &mut dyn FnMut(String)) {
        self.undo.run(&mut self.conn, warn);
    }
}

/// Attaches the container.
///
/// # Errors
/// Code 2 and 7 for the configuration, 8 for the namespace, 11 when the node has no subnet yet, 5, 100, 101, 102 from acting;
/// nothing is left behind then.
pub fn add(
    network: &Network,
    attachment: &Attachment,
    netns: &str,
    args: &CniArgs,
    warn: &mut dyn FnMut(String),
) -> Result<Attached, CniError> {
    let env = subnet_file::read(&network.subnet_file()?)?;
    let order = Order::read(network, args, &env)?;
    let job = Job {
        network,
        attachment,
        netns,
        earlier: previous(&network.keys(), network.version)?,
        dns: order.dns()?,
        target: target(netns)?,
        order,
    };
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let mut undo = Undo::default();
    match build(&job, &mut conn, &mut undo, warn) {
        Ok(result) => Ok(Attached { result, undo, conn }),
        Err(e) => {
            undo.run(&mut conn, warn);
            Err(e)
        }
    }
}

fn build(
    job: &Job<'_>,
    conn: &mut RouteConn,
    undo: &mut Undo,
    warn: &mut dyn FnMut(String),
) -> Result<AddResult, CniError> {
    let end = HostEnd::of(&job.network.name, job.attachment);
    let reservation = reserve(&wish(job, &end), conn, warn)?;
    undo.reserved = Some(Reserved {
        root: job.order.ipam.lease_root.clone(),
        network: job.network.name.clone(),
        attachment: job.attachment.clone(),
        bridge: job.order.bridge.name.clone(),
    });
    let plan = plan(job, end, reservation.mac, reservation.given)?;
    let mut inside = clear_place(job, conn, &plan, warn)?;
    let scratch = Scratch::new(&job.network.data_dir()?, &job.attachment.container);
    let previous = scratch.save(&job.order.delegate)?;
    undo.scratch = Some((scratch, previous));
    let settings = Settings::default();
    let shared = bridge::ensure(
        conn,
        &settings,
        &plan,
        plan.bridge_mac().map_or_else(random_mac, Ok)?,
    )?;
    let fenced = fence(job, conn, &plan, &inside.devices, warn)?;
    veth::make(conn, &settings, &plan, &shared.bridge, &job.target)?;
    undo.veth = Some(plan.host_end.clone());
    pod::configure(&job.target, &mut inside, &plan, fenced)?;
    if plan.bridge.ip_masq {
        masq::add(&plan.addresses)?;
    }
    veth::await_running(conn, &plan.host_end)?;
    if reservation.announce || !fenced {
        pod::announce(&mut inside, &plan)?;
    }
    let finished = reservation.pending.finish();
    finished.map_err(|e| CniError::caused(Code::Io, "the record cannot be finished", &e))?;
    Ok(result(job, &plan, &shared))
}

fn wish<'a>(job: &'a Job<'_>, end: &'a HostEnd) -> Wish<'a> {
    Wish {
        network: job.network,
        bridge: job.order.bridge.name.as_str(),
        root: &job.order.ipam.lease_root,
        attachment: job.attachment,
        end,
        netns: job.netns,
        target: &job.target,
        mac: job.order.bridge.mac,
        guarded: job.order.bridge.guard == guard::Scope::All,
        sets: &job.order.ipam.sets,
        requested: &job.order.bridge.requested,
    }
}

fn plan(job: &Job<'_>, end: HostEnd, mac: Mac, addresses: Vec<Given>) -> Result<Plan, CniError> {
    Plan::new(
        job.order.bridge.clone(),
        end,
        job.attachment.ifname.as_str(),
        addresses,
        job.order.ipam.routes.clone(),
        (random_mac()?, mac),
    )
}

/// Nothing that had the addresses before is left. A pair left by an ADD of this attachment of which no record tells is in the way, and nobody has its address any more. Any
/// other device of the container's interface name is somebody else's. Gives the devices that the container has besides.
fn clear_place(
    job: &Job<'_>,
    conn: &mut RouteConn,
    plan: &Plan,
    warn: &mut dyn FnMut(String),
) -> Result<pod::Inside, CniError> {
    let addresses: Vec<IpAddr> = plan.addresses.iter().map(|given| given.address).collect();
    if let Some(found) = handover::await_gone(conn, &plan.host_end, &addresses)? {
        veth::delete(conn, found.ifindex)?;
        if !released::is_released(&found) {
            warn(format!(
                "{} was left of an earlier ADD; it is replaced",
                found.name
            ));
        }
    }
    let mut inside = pod::look(&job.target)?;
    let in_the_way = |name: &String| *name == plan.ifname;
    if inside.devices.iter().any(in_the_way) && handover::remove_rest(conn, &job.target, &plan.ifname)? {
        inside.devices.retain(|name| !in_the_way(name));
    }
    match inside.devices.iter().any(in_the_way) {
        false => Ok(inside),
        true => Err(CniError::new(
            Code::Exists,
            format!("the container has an interface {} already", plan.ifname),
        )
        .with("call DEL first, or attach under another CNI_IFNAME")),
    }
}

/// What the container may send is said before its first frame can come. `false` when nothing is.
fn fence(
    job: &Job<'_>,
    conn: &mut RouteConn,
    plan: &Plan,
    others: &[String],
    warn: &mut dyn FnMut(String),
) -> Result<bool, CniError> {
    let scope = plan.bridge.guard;
    if scope == guard::Scope::Nothing {
        return Ok(false);
    }
    let port = guard::Port {
        name: plan.host_end.name.clone(),
        mac: plan.pod_mac,
        addresses: plan.addresses.iter().map(|given| given.address).collect(),
        tagged: tagged(&plan.bridge),
    };
    let siblings = match others.is_empty() {
        true => Vec::new(),
        false => siblings(job, conn, &port.name)?,
    };
    if guard::add(&port, &siblings, scope)? {
        return Ok(true);
    }
    let msg = "this kernel has no nf_tables for bridges: containers can send with false addresses";
    match plan.bridge.guard_required {
        true => Err(CniError::new(Code::Kernel, msg).with("set delegate.antiSpoof to false to do without")),
        false => {
            warn(format!(
                "{msg}; set delegate.antiSpoof to false to do without this line"
            ));
            Ok(false)
        }
    }
}

/// VLANs whose frames the container may send with a tag.
pub fn tagged(bridge: &Bridge) -> Vec<u16> {
    bridge.vlans.iter().flat_map(Vlans::tagged).collect()
}

/// Other ports of the container, with the hardware addresses that its devices have.
fn siblings(job: &Job<'_>, conn: &mut RouteConn, own: &str) -> Result<Vec<guard::Port>, CniError> {
    let found = wiring::siblings(conn, job.attachment, own)?;
    let mut inside = job.target.connect()?;
    let mut ports = Vec::new();
    for sibling in found {
        let device = link::by_name(&mut inside, &sibling.ifname).map_err(|e| kernel(&e))?;
        if let Some(mac) = device.and_then(|device| device.mac) {
            ports.push(guard::Port {
                name: sibling.name,
                mac,
                addresses: sibling.addresses,
                tagged: Vec::new(),
            });
        }
    }
    Ok(ports)
}

fn random_mac() -> Result<Mac, CniError> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| CniError::caused(Code::Io, "no random bytes from the kernel", &e))?;
    Ok(Mac::local_unicast(bytes))
}

fn result(job: &Job<'_>, plan: &Plan, shared: &Shared) -> AddResult {
    let Shared { bridge, gateway } = shared;
    let device = |name: &str, mac, mtu, sandbox: Option<&str>| Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(mtu),
        sandbox: sandbox.map(str::to_owned),
        ..Interface::default()
    };
    let ip = |given: &Given| IpConfig {
        address: given.address,
        length: given.range.length(),
        gateway: Some(given.range.gateway()),
        interface: Some(2),
    };
    let mut interfaces = vec![
        device(&bridge.name, bridge.mac, bridge.mtu, None),
        device(&plan.host_end.name, Some(plan.host_mac), plan.mtu, None),
        device(&plan.ifname, Some(plan.pod_mac), plan.mtu, Some(job.netns)),
    ];
    interfaces.extend(
        gateway
            .iter()
            .map(|link| device(&link.name, link.mac, link.mtu, None)),
    );
    let own = AddResult {
        interfaces,
        ips: plan.addresses.iter().map(ip).collect(),
        routes: plan.routes.clone(),
        dns: job.dns.clone(),
    };
    match &job.earlier {
        Some(earlier) => own.behind(earlier.clone()),
        None => own,
    }
}
