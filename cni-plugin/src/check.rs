//! CHECK: is the container still as ADD left it?
//!
//! Compared is what we made: bridge, port, the container's device, addresses, routes, lease and masquerading. What later
//! plugins of the chain changed is in `prevResult`, and counts as it stands there.

use std::net::IpAddr;

use flannel_model::SubnetEnv;
use flannel_netlink::RouteConn;
use flannel_netlink::link::{self, Link, PortVlan};

use crate::add::tagged;
use crate::address::{Holder, Store};
use crate::config::Network;
use crate::guard::{self, Scope};
use crate::masq;
use crate::order::Order;
use crate::protocol::{
    AddResult, Attachment, CniArgs, CniError, Code, Interface, IpConfig, SpecVersion, previous,
};
use crate::subnet_file;
use crate::wiring::{Target, kernel, target, vlan};

/// One CHECK.
struct Check<'a> {
    network: &'a Network,
    attachment: &'a Attachment,
    order: Order,
    previous: AddResult,
}

/// Compares the container with `prevResult`.
///
/// # Errors
/// Code 103 naming the first difference, 7 without `prevResult`, 8 for the namespace, 11 without subnet.env.
pub fn check(
    network: &Network,
    attachment: &Attachment,
    netns: &str,
    args: &CniArgs,
) -> Result<(), CniError> {
    let previous = previous(&network.keys(), network.version)?.ok_or_else(|| {
        CniError::new(Code::BadConfig, "prevResult is missing")
            .with("CHECK compares the container with the result of ADD, which the runtime keeps")
    })?;
    let env = subnet_file::read(&network.subnet_file()?)?;
    let check = Check {
        network,
        attachment,
        order: Order::read(network, args, &env)?,
        previous,
    };
    let target = target(netns)?;
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let bridge = check.bridge(&mut conn)?;
    let port = check.port(&mut conn, &bridge)?;
    check.container(&target, &port)?;
    check.leases()?;
    check.masquerade(&env)?;
    check.fence(&port)?;
    check.subnet(&env)
}

impl Check<'_> {
    fn bridge(&self, conn: &mut RouteConn) -> Result<Link, CniError> {
        let options = &self.order.bridge;
        let name = options.name.as_str();
        let bridge = find(conn, name)?;
        same(name, "kind", &bridge.kind.as_str(), &"bridge")?;
        same(name, "up", &bridge.up, &true)?;
        if options.promisc {
            same(name, "promiscuous", &bridge.promiscuous, &true)?;
        }
        let told = self.previous.interfaces.iter();
        for interface in told.filter(|i| i.sandbox.is_none() && i.name == name) {
            same(name, "MAC", &bridge.mac, &interface.mac.or(bridge.mac))?;
        }
        let bearer = self.gateway_device(conn, &bridge)?;
        if options.is_gateway {
            let (name, index) = bearer
                .as_ref()
                .map_or((name, bridge.ifindex), |link| (&link.name, link.ifindex));
            let present = flannel_netlink::pod::addresses(conn, index).map_err(|e| kernel(&e))?;
            for gateway in self.ips().filter_map(|ip| ip.gateway) {
                if !present.iter().any(|ip| ip.address == gateway) {
                    return Err(differs(format!("{name} lacks the gateway address {gateway}")));
                }
            }
        }
        Ok(bridge)
    }

    /// The gateway's device of a VLAN, in its VLAN.
    fn gateway_device(&self, conn: &mut RouteConn, bridge: &Link) -> Result<Option<Link>, CniError> {
        let Some(vlans) = &self.order.bridge.vlans else {
            return Ok(None);
        };
        same(
            &bridge.name,
            "VLAN filtering",
            &bridge.vlan_filtering,
            &Some(true),
        )?;
        let Some((access, name)) = vlans.access().zip(self.order.bridge.gateway_device()) else {
            return Ok(None);
        };
        let Some((device, port)) = vlan::pair(conn, &name)? else {
            return Err(differs(format!("{name} is gone")));
        };
        same(&name, "up", &device.up, &true)?;
        same(&port.name, "bridge", &port.master, &Some(bridge.ifindex))?;
        members(conn, &port, vlans.of_gateway(access))?;
        Ok(Some(device))
    }

    /// The host's end: the device of `prevResult` that is neither the bridge nor inside a namespace.
    fn port(&self, conn: &mut RouteConn, bridge: &Link) -> Result<Link, CniError> {
        let is_port = |i: &&Interface| {
            i.sandbox.is_none() && i.name != bridge.name && !i.name.starts_with(&format!("{}.", bridge.name))
        };
        let told = self.previous.interfaces.iter().find(is_port);
        let own = crate::wiring::plan::HostEnd::of(&self.network.name, self.attachment);
        let name = told.map_or(own.name.as_str(), |interface| interface.name.as_str());
        let port = find(conn, name)?;
        same(name, "kind", &port.kind.as_str(), &"veth")?;
        same(name, "up", &port.up, &true)?;
        same(name, "bridge", &port.master, &Some(bridge.ifindex))?;
        same(name, "MAC", &port.mac, &told.and_then(|i| i.mac).or(port.mac))?;
        let options = &self.order.bridge;
        same(name, "hairpin", &port.hairpin, &Some(options.hairpin))?;
        let isolated = port.isolated.unwrap_or_default();
        same(name, "isolated", &isolated, &options.port_isolation)?;
        if let Some(vlans) = &options.vlans {
            members(conn, &port, vlans.of_port())?;
        }
        Ok(port)
    }

    fn container(&self, target: &Target, port: &Link) -> Result<(), CniError> {
        let name = self.attachment.ifname.as_str();
        let mut conn = target.connect()?;
        let device = find(&mut conn, name)?;
        same(name, "kind", &device.kind.as_str(), &"veth")?;
        same(name, "other end", &device.peer, &Some(port.ifindex))?;
        same(name, "up", &device.up, &true)?;
        if let Some(told) = self.told() {
            same(name, "MAC", &device.mac, &told.mac.or(device.mac))?;
            same(name, "MTU", &device.mtu, &told.mtu.unwrap_or(device.mtu))?;
        }
        let present = flannel_netlink::pod::addresses(&mut conn, device.ifindex).map_err(|e| kernel(&e))?;
        for wanted in self.ips() {
            let same = |ip: &flannel_netlink::pod::IpOnLink| {
                ip.address == wanted.address && ip.length == wanted.length
            };
            if !present.iter().any(same) {
                let (address, length) = (wanted.address, wanted.length);
                return Err(differs(format!("{name} lacks the address {address}/{length}")));
            }
        }
        self.routes(&mut conn)
    }

    /// Every route that was told is there. Through which gateway a route without one goes is our own affair.
    fn routes(&self, conn: &mut RouteConn) -> Result<(), CniError> {
        if self.previous.routes.is_empty() {
            return Ok(());
        }
        let present = flannel_netlink::pod::routes(conn).map_err(|e| kernel(&e))?;
        for wanted in &self.previous.routes {
            let found = present.iter().any(|route| {
                route.destination == wanted.dst
                    && (wanted.gw.is_none() || route.gateway == wanted.gw)
                    && wanted.options.table.is_none_or(|table| route.table == table)
            });
            if !found {
                let (network, length) = wanted.dst;
                let via = wanted.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
                return Err(differs(format!(
                    "the container lacks the route to {network}/{length}{via}"
                )));
            }
        }
        Ok(())
    }

    fn leases(&self) -> Result<(), CniError> {
        let store = Store::open_existing(&self.order.ipam.lease_root, &self.network.name)?;
        let holder = Holder::from(self.attachment);
        for ip in self.ips().map(|ip| ip.address) {
            let held = store.as_ref().is_some_and(|store| store.lease(ip).is_of(&holder));
            if !held {
                let root = self.order.ipam.lease_root.display();
                return Err(differs(format!(
                    "{ip} is not reserved for this container below {root}"
                )));
            }
        }
        Ok(())
    }

    fn masquerade(&self, env: &SubnetEnv) -> Result<(), CniError> {
        if !self.order.bridge.ip_masq {
            return Ok(());
        }
        for ip in self.ips().filter(|ip| in_subnet(env, ip.address)) {
            if !masq::is_in_place(ip.address, ip.length)? {
                return Err(differs(format!("{} is not masqueraded any more", ip.address))
                    .with("its nftables rule or element is gone; the next ADD on this node brings the rule back"));
            }
        }
        Ok(())
    }

    /// The fence is that of the hardware address that ADD gave. Where a later plugin gave another, it does not fit, and says so.
    fn fence(&self, port: &Link) -> Result<(), CniError> {
        let scope = self.order.bridge.guard;
        let ours = port
            .alias
            .as_deref()
            .is_some_and(|alias| alias.starts_with("flannel:"));
        let mac = self.told().and_then(|told| told.mac);
        let Some(mac) = mac.filter(|_| ours && scope != Scope::Nothing) else {
            return Ok(());
        };
        let fenced = guard::Port {
            name: port.name.clone(),
            mac,
            addresses: self.ips().map(|ip| ip.address).collect(),
            tagged: tagged(&self.order.bridge),
        };
        match guard::is_in_place(&fenced, scope)? {
            true => Ok(()),
            false => Err(differs(format!(
                "{} is not guarded against false addresses, with {mac} as its own",
                port.name
            ))
            .with("the table bridge flannel-cni-guard was changed, or the container's hardware address; start the container anew")),
        }
    }

    /// An address of an earlier subnet works on this node only: the other nodes send to whoever holds that subnet now.
    fn subnet(&self, env: &SubnetEnv) -> Result<(), CniError> {
        let asked_for = |ip: IpAddr| self.order.ipam.sets.iter().any(|set| set.range_of(ip).is_some());
        match self
            .ips()
            .find(|ip| !in_subnet(env, ip.address) && !asked_for(ip.address))
        {
            None => Ok(()),
            Some(ip) => {
                let now = subnets(env).join(", ");
                Err(differs(format!("{} is not in the node's subnet {now}", ip.address)).with(
                    "the node's subnet changed; the container works on this node, but other nodes cannot reach it: start it anew",
                ))
            }
        }
    }

    /// The container's device in `prevResult`.
    fn told(&self) -> Option<&Interface> {
        self.index().and_then(|index| self.previous.interfaces.get(index))
    }

    fn index(&self) -> Option<usize> {
        let name = self.attachment.ifname.as_str();
        let own = |i: &Interface| i.sandbox.is_some() && i.name == name;
        self.previous.interfaces.iter().position(own)
    }

    /// The addresses of `prevResult` that are on the container's device.
    fn ips(&self) -> impl Iterator<Item = &IpConfig> {
        let index = self.index();
        let all = self.network.version < SpecVersion::V0_3_0;
        let ours = move |ip: &&IpConfig| all || ip.interface.is_none() || ip.interface == index;
        self.previous.ips.iter().filter(ours)
    }
}

/// That a port is in its VLANs, and in no other but the bridge's default one where it was left there.
fn members(
    conn: &mut RouteConn,
    port: &Link,
    (mut wanted, unwanted): (Vec<PortVlan>, Option<PortVlan>),
) -> Result<(), CniError> {
    let mut found = link::vlans(conn, port.ifindex).map_err(|e| kernel(&e))?;
    if unwanted.is_none() {
        let stays = |vlan: &PortVlan| (vlan.first, vlan.last, vlan.native) == (1, 1, false);
        found.retain(|vlan| !stays(vlan) || wanted.contains(vlan));
    }
    found.sort_unstable();
    wanted.sort_unstable();
    same(&port.name, "VLANs", &found, &wanted)
}

fn find(conn: &mut RouteConn, name: &str) -> Result<Link, CniError> {
    let found = link::by_name(conn, name).map_err(|e| kernel(&e))?;
    found.ok_or_else(|| differs(format!("{name} is gone")))
}

fn same<T: PartialEq + std::fmt::Debug>(
    device: &str,
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), CniError> {
    match found == expected {
        true => Ok(()),
        false => Err(differs(format!(
            "{device}: {what} is {found:?}; expected {expected:?}"
        ))),
    }
}

fn differs(msg: String) -> CniError {
    CniError::new(Code::Differs, msg)
}

/// Whether the node's subnet holds `ip`.
fn in_subnet(env: &SubnetEnv, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => env.ipv4.as_ref().is_some_and(|(_, subnet)| subnet.holds(v4)),
        IpAddr::V6(v6) => env.ipv6.as_ref().is_some_and(|(_, subnet)| subnet.holds(v6)),
    }
}

fn subnets(env: &SubnetEnv) -> Vec<String> {
    let v4 = env.ipv4.iter().map(|(_, subnet)| subnet.to_string());
    let v6 = env.ipv6.iter().map(|(_, subnet)| subnet.to_string());
    v4.chain(v6).collect()
}
