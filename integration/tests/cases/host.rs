//! The host changes under a node that runs: its address, the MTU, the device, a default route. No restart is needed, all peers reach
//! its pods again in a moment, and the lease and subnet.env follow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pinger, Place, Pod, eventually, limit, sandbox};
use serde_json::Value;

use super::backend::{Pair, config, subnet_env};
use super::common::{await_ping, lease_of};

/// Peers converge in less than two seconds; a machine that does much else at the same time is given more.
const FELT: u64 = 5;
/// A while without any address, as a DHCP client may leave it.
const GAP: Duration = Duration::from_millis(300);

/// Three nodes with a pod each. It is the first that everything happens to.
struct Trio {
    lab: Lab,
    daemons: Vec<Flanneld>,
    pods: Vec<Pod>,
}

impl Trio {
    fn start(backend: &str, flags: &[&str]) -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(3).config(&config(backend)))?;
        let start = |node: &Node| node.start_flanneld(&[&["--ip-masq"], flags].concat());
        let mut daemons: Vec<Flanneld> = lab.nodes().iter().map(start).collect::<Result<_>>()?;
        daemons.iter_mut().try_for_each(Flanneld::wait_ready)?;
        let pods: Vec<Pod> = lab
            .nodes()
            .iter()
            .map(|node| node.add_pod(&format!("pod-{}", node.name())))
            .collect::<Result<_>>()?;
        let trio = Self { lab, daemons, pods };
        trio.is_reached()?;
        Ok(trio)
    }

    fn node(&self) -> Result<&Node> {
        self.lab.node(1)
    }

    /// Pings from both peers and to both.
    fn is_reached(&self) -> Result<()> {
        for peer in &self.pods[1..] {
            await_ping(peer, self.pods[0].ip())?;
            await_ping(&self.pods[0], peer.ip())?;
        }
        Ok(())
    }

    /// Changes the host while both peers send 100 packets a second to its pod, and says for how long, beyond `gap`, none was answered.
    fn felt(&self, what: &str, gap: Duration, change: impl FnOnce(&Node) -> Result<()>) -> Result<()> {
        let [here, first, second] = &self.pods[..] else {
            anyhow::bail!("not three pods");
        };
        let streams = [
            Pinger::start(first, here)?,
            Pinger::to(second, &format!("{}:7007", here.ip()))?,
        ];
        std::thread::sleep(Duration::from_millis(200));
        change(self.node()?)?;
        // Long enough to hear of what comes late.
        std::thread::sleep(Duration::from_millis(300));
        self.is_reached()?;
        std::thread::sleep(Duration::from_millis(300));
        for (stream, peer) in streams.into_iter().zip([2, 3]) {
            let report = stream.stop()?;
            let silence = Duration::from_millis(report.longest_silence_ms).saturating_sub(gap);
            println!("{what}: node {peer} heard nothing for {} ms", silence.as_millis());
            ensure!(
                silence < limit(FELT),
                "{what}: {silence:?}, {report:?}\n{}",
                self.daemons[0].log()?
            );
        }
        Ok(())
    }

    /// What etcd has of the first node.
    fn lease(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.entry()?.value)?)
    }

    fn entry(&self) -> Result<flannel_lab::etcd::Entry> {
        let env = self.node()?.subnet_env()?;
        let own = env.iter().find(|(name, _)| name == "FLANNEL_SUBNET");
        let (_, own) = own.context("no FLANNEL_SUBNET")?;
        let key = format!("{SUBNETS_PREFIX}{}", own.replace(".1/", ".0-"));
        let all = self.lab.etcd().list(SUBNETS_PREFIX)?;
        ensure!(all.len() == 3, "there are {} leases", all.len());
        let own = all.into_iter().find(|entry| entry.key == key);
        own.with_context(|| format!("no {key}"))
    }

    /// The lease and the device say this address, and the daemon is content.
    fn is_at(&self, address: &str, device: Option<&str>) -> Result<()> {
        eventually(limit(10), &format!("everything to say {address}"), || {
            let lease = self.lease()?;
            ensure!(lease["PublicIP"] == address, "{lease}");
            if let Some(device) = device {
                let links = self.node()?.ip_json(&["link", "show", device])?;
                let local = &links[0]["linkinfo"]["info_data"]["local"];
                ensure!(local.is_null() || *local == address, "{links}");
            }
            is_ready(self.node()?)
        })
    }
}

fn is_ready(node: &Node) -> Result<()> {
    let status = status(node)?;
    ensure!(status.contains("ready"), "{status}");
    Ok(())
}

fn status(node: &Node) -> Result<String> {
    node.run(&[&format!("{}/flannelctl", sandbox::BINARIES), "status"])
}

/// The first node has this address on its interface, and the way out.
fn with_address(node: &Node, address: &str) -> Result<()> {
    node.shell(&format!(
        "ip address add {address}/24 dev eth0; ip route replace default via 192.168.50.1"
    ))
    .map(drop)
}

/// Another address, in each order, with a gap and without.
fn addresses(trio: &Trio, device: Option<&str>) -> Result<()> {
    let before = trio.entry()?;
    trio.felt("another address after a gap", GAP, |node| {
        node.run(&["ip", "address", "del", "192.168.50.11/24", "dev", "eth0"])?;
        std::thread::sleep(GAP);
        with_address(node, "192.168.50.111")
    })?;
    trio.is_at("192.168.50.111", device)?;
    trio.felt(
        "another address before the old one goes",
        Duration::ZERO,
        |node| {
            // As on every host with systemd; otherwise the kernel takes all addresses of the subnet away with the first.
            node.shell("echo 1 > /proc/sys/net/ipv4/conf/eth0/promote_secondaries")?;
            with_address(node, "192.168.50.11")?;
            std::thread::sleep(GAP);
            node.run(&["ip", "address", "del", "192.168.50.111/24", "dev", "eth0"])
                .map(drop)
        },
    )?;
    trio.is_at("192.168.50.11", device)?;
    let after = trio.entry()?;
    ensure!(
        (&after.key, &after.value) == (&before.key, &before.value) && after.version == before.version + 2,
        "{before:?}, then {after:?}"
    );
    Ok(())
}

/// subnet.env and the device follow the underlay both ways.
fn mtu(trio: &Trio, device: Option<&str>, overhead: u32) -> Result<()> {
    let node = trio.node()?;
    for mtu in [1400, 1500] {
        node.run(&["ip", "link", "set", "eth0", "mtu", &mtu.to_string()])?;
        let wanted = mtu - overhead;
        eventually(limit(10), &format!("an MTU of {wanted}"), || {
            let env = subnet_env(node)?;
            ensure!(env.contains(&format!("FLANNEL_MTU={wanted}\n")), "{env}");
            if let Some(device) = device {
                let links = node.ip_json(&["link", "show", device])?;
                ensure!(links[0]["mtu"] == wanted, "{links}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The interface goes and comes back with another index, as when its driver is loaded again.
fn interface(trio: &Trio) -> Result<()> {
    let before = trio.entry()?;
    trio.felt("the interface gone and back", GAP, |node| {
        let mac = node.read_file("/sys/class/net/eth0/address")?;
        node.run(&["ip", "link", "del", "eth0"])?;
        std::thread::sleep(GAP);
        let again = format!(
            "link add name eth0 address {} netns node1 type veth peer name node1 netns underlay",
            mac.trim()
        );
        Place::sandbox().ip_batch(&[again])?;
        Place::netns("underlay").run(&["ip", "link", "set", "node1", "master", "br0", "up"])?;
        node.run(&["ip", "link", "set", "eth0", "up"])?;
        with_address(node, "192.168.50.11")
    })?;
    let after = trio.entry()?;
    ensure!(
        after.version == before.version,
        "the lease was written: {after:?}"
    );
    eventually(limit(10), "a node that is content", || is_ready(trio.node()?))
}

pub fn vxlan_follows() -> Result<()> {
    let mut trio = Trio::start(r#"{"Type":"vxlan"}"#, &[])?;
    addresses(&trio, Some("flannel.1"))?;
    mtu(&trio, Some("flannel.1"), 50)?;
    interface(&trio)?;
    let before = trio.entry()?;
    trio.felt("another Ethernet address of the VTEP", Duration::ZERO, |node| {
        node.run(&["ip", "link", "set", "flannel.1", "address", "02:00:00:00:00:96"])
            .map(drop)
    })?;
    ensure!(trio.entry()? == before, "the lease was written");
    without_etcd(&mut trio)
}

/// What changes while etcd is away is written when it is back.
fn without_etcd(trio: &mut Trio) -> Result<()> {
    trio.lab.etcd_mut().kill()?;
    let node = trio.node()?;
    node.run(&["ip", "address", "del", "192.168.50.11/24", "dev", "eth0"])?;
    with_address(node, "192.168.50.113")?;
    std::thread::sleep(GAP);
    trio.lab.etcd_mut().start()?;
    eventually(limit(20), "the address of meanwhile", || {
        let lease = trio.lease()?;
        ensure!(lease["PublicIP"] == "192.168.50.113", "{lease}");
        Ok(())
    })?;
    trio.is_reached()
}

pub fn host_gw_follows() -> Result<()> {
    let trio = Trio::start(r#"{"Type":"host-gw"}"#, &[])?;
    addresses(&trio, None)?;
    mtu(&trio, None, 0)?;
    interface(&trio)
}

pub fn udp_follows() -> Result<()> {
    let trio = Trio::start(r#"{"Type":"udp"}"#, &[])?;
    addresses(&trio, Some("flannel0"))?;
    mtu(&trio, Some("flannel0"), 28)?;
    interface(&trio)
}

pub fn ipip_follows() -> Result<()> {
    let trio = Trio::start(r#"{"Type":"ipip"}"#, &[])?;
    addresses(&trio, Some("flannel.ipip"))?;
    mtu(&trio, Some("flannel.ipip"), 20)?;
    interface(&trio)
}

pub fn wireguard_follows() -> Result<()> {
    let trio = Trio::start(r#"{"Type":"wireguard"}"#, &[])?;
    addresses(&trio, Some("flannel-wg"))?;
    mtu(&trio, Some("flannel-wg"), 80)?;
    interface(&trio)
}

/// An address that was named is waited for, a published one stays, and no better default route moves the node.
pub fn what_flags_pin_stays() -> Result<()> {
    let mut trio = Trio::start(r#"{"Type":"vxlan"}"#, &[])?;
    let start = |trio: &mut Trio, flags: &[&str]| -> Result<()> {
        trio.daemons.remove(0).kill()?;
        let daemon = trio.node()?.start_ready_flanneld(flags)?;
        trio.daemons.insert(0, daemon);
        Ok(())
    };
    start(&mut trio, &["--iface=192.168.50.11"])?;
    let before = trio.entry()?;
    let node = trio.node()?;
    node.run(&["ip", "address", "del", "192.168.50.11/24", "dev", "eth0"])?;
    with_address(node, "192.168.50.111")?;
    eventually(limit(10), "a node that says what it waits for", || {
        let status = status(trio.node()?)?;
        ensure!(status.contains("eth0 has no IPv4 address"), "{status}");
        Ok(())
    })?;
    ensure!(trio.entry()? == before, "the lease was written");
    node.run(&["ip", "address", "del", "192.168.50.111/24", "dev", "eth0"])?;
    with_address(node, "192.168.50.11")?;
    trio.is_at("192.168.50.11", Some("flannel.1"))?;
    trio.is_reached()?;

    start(&mut trio, &["--public-ip=192.168.50.11"])?;
    let node = trio.node()?;
    node.run(&["ip", "address", "del", "192.168.50.11/24", "dev", "eth0"])?;
    with_address(node, "192.168.50.111")?;
    eventually(limit(10), "a device that sends from the new address", || {
        let links = node.ip_json(&["link", "show", "flannel.1"])?;
        let local = &links[0]["linkinfo"]["info_data"]["local"];
        ensure!(*local == "192.168.50.111", "{links}");
        Ok(())
    })?;
    ensure!(trio.entry()? == before, "the published address moved");
    another_default_route(&mut trio)
}

fn another_default_route(trio: &mut Trio) -> Result<()> {
    trio.daemons.remove(0).kill()?;
    let daemon = trio.node()?.start_ready_flanneld(&[])?;
    trio.daemons.insert(0, daemon);
    trio.is_at("192.168.50.111", Some("flannel.1"))?;
    let before = trio.entry()?;
    trio.node()?.shell(
        "ip link add eth9 type veth peer name eth9p; ip link set eth9p up; ip link set eth9 up; \
         ip address add 10.77.0.2/24 dev eth9; ip route del default; \
         ip route add default via 10.77.0.1 dev eth9 metric 5; \
         ip route add default via 192.168.50.1 metric 50; ip link set eth0 mtu 1490",
    )?;
    trio.daemons[0].wait_log("lead to eth9 now")?;
    trio.is_reached()?;
    ensure!(trio.entry()? == before, "the lease was written");
    trio.is_at("192.168.50.111", Some("flannel.1"))
}

/// Each family by itself.
pub fn ipv6_follows_as_well() -> Result<()> {
    const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(DUAL))?;
    let mut daemons: Vec<Flanneld> = lab
        .nodes()
        .iter()
        .map(|node| node.start_flanneld(&[]))
        .collect::<Result<_>>()?;
    daemons.iter_mut().try_for_each(Flanneld::wait_ready)?;
    let pods = [lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?];
    let reached = || -> Result<()> {
        for address in pods[0].addresses()? {
            await_ping(&pods[1], &address)?;
        }
        Ok(())
    };
    reached()?;
    let node = lab.node(1)?;
    node.run(&["ip", "address", "del", "fd00:50::11/64", "dev", "eth0"])?;
    eventually(limit(10), "a node that says what it lacks", || {
        let status = status(node)?;
        ensure!(status.contains("eth0 has no IPv6 address"), "{status}");
        Ok(())
    })?;
    // IPv4 goes on, and is followed by itself.
    node.run(&["ip", "address", "del", "192.168.50.11/24", "dev", "eth0"])?;
    with_address(node, "192.168.50.111")?;
    let published = |ipv4: &str, ipv6: &str| {
        eventually(limit(10), &format!("{ipv4} and {ipv6} in the lease"), || {
            let leases = lab.etcd().list(SUBNETS_PREFIX)?;
            let says = |value: &Value| value["PublicIP"] == ipv4 && value["PublicIPv6"] == ipv6;
            let found = leases
                .iter()
                .filter_map(|lease| serde_json::from_str(&lease.value).ok());
            ensure!(found.filter(says).count() == 1, "{leases:?}");
            Ok(())
        })
    };
    published("192.168.50.111", "fd00:50::11")?;
    await_ping(&pods[1], pods[0].ip())?;
    node.run(&["ip", "address", "add", "fd00:50::111/64", "dev", "eth0", "nodad"])?;
    published("192.168.50.111", "fd00:50::111")?;
    let links = node.ip_json(&["link", "show", "flannel-v6.1"])?;
    ensure!(
        links[0]["linkinfo"]["info_data"]["local6"] == "fd00:50::111",
        "{links}"
    );
    eventually(limit(10), "a node that is content", || is_ready(node))?;
    reached()
}

/// A route of somebody else that took the place of ours is not touched, and serves nobody: ours is before it again.
pub fn a_route_in_our_place_stays_behind_ours() -> Result<()> {
    let pair = Pair::start(r#"{"Type":"vxlan"}"#)?;
    let node = pair.lab.node(1)?;
    let subnet = lease_of(&pair.lab, pair.lab.node(2)?)?.subnet;
    let shown = || node.run(&["ip", "route", "show", &subnet]);
    let ours = shown()?;
    let theirs = format!("{subnet} via 192.168.50.1 dev eth0 proto static");
    node.run(&[
        "ip",
        "route",
        "replace",
        &subnet,
        "via",
        "192.168.50.1",
        "proto",
        "static",
    ])?;
    eventually(limit(10), "our route before the other one", || {
        let now = shown()?;
        let lines: Vec<&str> = now.lines().map(str::trim_end).collect();
        ensure!(lines == [ours.trim_end(), theirs.as_str()], "{now}");
        Ok(())
    })?;
    await_ping(&pair.pods[0], pair.pods[1].ip())?;
    let log = pair.daemons[0].log()?;
    ensure!(log.contains("it stays, behind ours"), "{log}");
    // When its maker takes it away, nothing of ours goes with it.
    node.run(&["ip", "route", "del", &subnet, "via", "192.168.50.1"])?;
    std::thread::sleep(GAP);
    assert_eq!(shown()?, ours);
    Ok(())
}
