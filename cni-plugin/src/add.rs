//! ADD: validate everything, then act, and take all of it back when a step fails.

use std::path::Path;

use flannel_model::Mac;
use flannel_netlink::{Netns, RouteConn};

use crate::address::{Given, Holder, LeaseDir, allocate};
use crate::config::Network;
use crate::masq;
use crate::order::Order;
use crate::protocol::{AddResult, Attachment, CniArgs, CniError, Code, Dns, Interface, IpConfig, previous};
use crate::scratch::Scratch;
use crate::subnet_file;
use crate::undo::Undo;
use crate::wiring::plan::{HostEnd, Plan};
use crate::wiring::{bridge, kernel, pod, target, veth};

/// What ADD was asked, checked as far as that goes without touching anything.
struct Job<'a> {
    network: &'a Network,
    attachment: &'a Attachment,
    netns: &'a str,
    order: Order,
    earlier: Option<AddResult>,
    dns: Dns,
    target: Netns,
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
    let addresses = reserve(job, undo, warn)?;
    let plan = plan(job, addresses)?;
    clear_place(job, conn, &plan, warn)?;
    let scratch = Scratch::new(&job.network.data_dir()?, &job.attachment.container);
    let previous = scratch.save(&job.order.delegate)?;
    undo.scratch = Some((scratch, previous));
    let link = bridge::ensure(conn, &plan, random_mac()?)?;
    veth::make(conn, &plan, &link, &job.target)?;
    undo.veth = Some(plan.host_end.clone());
    pod::configure(&job.target, &plan)?;
    if plan.bridge.ip_masq {
        undo.masq = plan.addresses.iter().map(|given| given.address).collect();
        masq::add(&plan.addresses)?;
    }
    Ok(result(job, &plan, link.mac, link.mtu))
}

fn reserve(job: &Job<'_>, undo: &mut Undo, warn: &mut dyn FnMut(String)) -> Result<Vec<Given>, CniError> {
    let (root, name) = (&job.order.ipam.lease_root, &job.network.name);
    let holder = Holder::from(job.attachment);
    let dir = LeaseDir::open(Path::new(root), name)?;
    let given = allocate(
        &dir,
        &job.order.ipam.sets,
        &job.order.bridge.requested,
        &holder,
        warn,
    )?;
    undo.leases = Some((root.clone(), name.clone(), holder));
    Ok(given)
}

fn plan(job: &Job<'_>, addresses: Vec<Given>) -> Result<Plan, CniError> {
    let (host, pod) = (random_mac()?, random_mac()?);
    let mut macs = [host, pod].into_iter();
    Plan::new(
        job.order.bridge.clone(),
        HostEnd::of(&job.network.name, job.attachment),
        job.attachment.ifname.as_str(),
        addresses,
        job.order.ipam.routes.clone(),
        || macs.next().unwrap_or(host),
    )
}

/// A pair left by an ADD of this attachment that was killed is in the way, and nobody has its address any more. Any other
/// device of the container's interface name is somebody else's.
fn clear_place(
    job: &Job<'_>,
    conn: &mut RouteConn,
    plan: &Plan,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    if veth::remove(conn, &plan.host_end)? {
        warn(format!(
            "{} was left by an ADD that did not end; it is replaced",
            plan.host_end.name
        ));
    }
    match pod::has_interface(&job.target, &plan.ifname)? {
        false => Ok(()),
        true => Err(CniError::new(
            Code::Exists,
            format!("the container has an interface {} already", plan.ifname),
        )
        .with("call DEL first, or attach under another CNI_IFNAME")),
    }
}

fn random_mac() -> Result<Mac, CniError> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| CniError::caused(Code::Io, "no random bytes from the kernel", &e))?;
    Ok(Mac::local_unicast(bytes))
}

fn result(job: &Job<'_>, plan: &Plan, bridge_mac: Option<Mac>, bridge_mtu: u32) -> AddResult {
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
    let own = AddResult {
        interfaces: vec![
            device(plan.bridge.name.as_str(), bridge_mac, bridge_mtu, None),
            device(&plan.host_end.name, Some(plan.host_mac), plan.mtu, None),
            device(&plan.ifname, Some(plan.pod_mac), plan.mtu, Some(job.netns)),
        ],
        ips: plan.addresses.iter().map(ip).collect(),
        routes: plan.routes.clone(),
        dns: job.dns.clone(),
    };
    match &job.earlier {
        Some(earlier) => own.behind(earlier.clone()),
        None => own,
    }
}
