//! ADD: validate everything, then act, and take all of it back when a step fails.

use std::path::Path;

use flannel_model::{Mac, SubnetEnv};
use flannel_netlink::{Netns, RouteConn};
use serde_json::{Map, Value};

use crate::address::{Given, Holder, LeaseDir, allocate};
use crate::config::{Bridge, Ipam, Network, read_resolv_conf, render};
use crate::masq;
use crate::protocol::{AddResult, Attachment, CniArgs, CniError, Code, Dns, Interface, IpConfig};
use crate::scratch::Scratch;
use crate::subnet_file;
use crate::undo::Undo;
use crate::wiring::plan::{HostEnd, Plan};
use crate::wiring::{bridge, kernel, pod, target, veth};

/// What ADD was asked, checked as far as that goes without touching anything.
struct Order<'a> {
    network: &'a Network,
    attachment: &'a Attachment,
    netns: &'a str,
    delegate: Map<String, Value>,
    bridge: Bridge,
    ipam: Ipam,
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
    let order = order(network, attachment, netns, args, &env)?;
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let mut undo = Undo::default();
    match build(&order, &mut conn, &mut undo, warn) {
        Ok(result) => Ok(Attached { result, undo, conn }),
        Err(e) => {
            undo.run(&mut conn, warn);
            Err(e)
        }
    }
}

fn order<'a>(
    network: &'a Network,
    attachment: &'a Attachment,
    netns: &'a str,
    args: &CniArgs,
    env: &SubnetEnv,
) -> Result<Order<'a>, CniError> {
    let delegate = render::delegate(network, env)?;
    let bridge = Bridge::read(&delegate, args)?;
    let ipam = Ipam::read(&delegate)?;
    let dns = match &ipam.resolv_conf {
        Some(path) if bridge.dns.is_empty() => read_resolv_conf(path)?,
        Some(_) | None => bridge.dns.clone(),
    };
    let target = target(netns)?;
    Ok(Order {
        network,
        attachment,
        netns,
        delegate,
        bridge,
        ipam,
        dns,
        target,
    })
}

fn build(
    order: &Order<'_>,
    conn: &mut RouteConn,
    undo: &mut Undo,
    warn: &mut dyn FnMut(String),
) -> Result<AddResult, CniError> {
    let addresses = reserve(order, undo, warn)?;
    let plan = plan(order, addresses)?;
    clear_place(order, conn, &plan, warn)?;
    let scratch = Scratch::new(&order.network.data_dir()?, &order.attachment.container);
    let previous = scratch.save(&order.delegate)?;
    undo.scratch = Some((scratch, previous));
    let link = bridge::ensure(conn, &plan, random_mac()?)?;
    veth::make(conn, &plan, &link, &order.target)?;
    undo.veth = Some(plan.host_end.clone());
    pod::configure(&order.target, &plan)?;
    if plan.bridge.ip_masq {
        undo.masq = plan.addresses.iter().map(|given| given.address).collect();
        masq::add(&plan.addresses)?;
    }
    Ok(result(order, &plan, link.mac, link.mtu))
}

fn reserve(order: &Order<'_>, undo: &mut Undo, warn: &mut dyn FnMut(String)) -> Result<Vec<Given>, CniError> {
    let (root, name) = (&order.ipam.lease_root, &order.network.name);
    let holder = Holder::from(order.attachment);
    let dir = LeaseDir::open(Path::new(root), name)?;
    let given = allocate(&dir, &order.ipam.sets, &order.bridge.requested, &holder, warn)?;
    undo.leases = Some((root.clone(), name.clone(), holder));
    Ok(given)
}

fn plan(order: &Order<'_>, addresses: Vec<Given>) -> Result<Plan, CniError> {
    let (host, pod) = (random_mac()?, random_mac()?);
    let mut macs = [host, pod].into_iter();
    Plan::new(
        order.bridge.clone(),
        HostEnd::of(&order.network.name, order.attachment),
        order.attachment.ifname.as_str(),
        addresses,
        order.ipam.routes.clone(),
        || macs.next().unwrap_or(host),
    )
}

/// A pair left by an ADD of this attachment that was killed is in the way, and nobody has its address any more. Any other
/// device of the container's interface name is somebody else's.
fn clear_place(
    order: &Order<'_>,
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
    match pod::has_interface(&order.target, &plan.ifname)? {
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

fn result(order: &Order<'_>, plan: &Plan, bridge_mac: Option<Mac>, bridge_mtu: u32) -> AddResult {
    let device = |name: &str, mac, mtu, sandbox: Option<&str>| Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(mtu),
        sandbox: sandbox.map(str::to_owned),
    };
    let ip = |given: &Given| IpConfig {
        address: given.address,
        length: given.range.length(),
        gateway: given.range.gateway(),
        interface: 2,
    };
    AddResult {
        interfaces: vec![
            device(plan.bridge.name.as_str(), bridge_mac, bridge_mtu, None),
            device(&plan.host_end.name, Some(plan.host_mac), plan.mtu, None),
            device(&plan.ifname, Some(plan.pod_mac), plan.mtu, Some(order.netns)),
        ],
        ips: plan.addresses.iter().map(ip).collect(),
        routes: plan.routes.clone(),
        dns: order.dns.clone(),
    }
}
