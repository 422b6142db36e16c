//! The backends beside plain VXLAN, each on real nodes: pods reach each other, full-size packets pass, restarts are not felt.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::{CONFIG_KEY, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pinger, Pod, eventually, limit};

use super::common::await_ping;

pub fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#)
}

/// Two nodes on one link, a pod on each, and the daemons ready.
pub struct Pair {
    pub lab: Lab,
    pub daemons: Vec<Flanneld>,
    pub pods: [Pod; 2],
}

impl Pair {
    pub fn start(backend: &str) -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(2).config(&config(backend)))?;
        let daemons = lab
            .nodes()
            .iter()
            .map(|node| node.start_ready_flanneld(&["--ip-masq"]))
            .collect::<Result<_>>()?;
        let pods = [lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?];
        await_ping(&pods[0], pods[1].ip())?;
        await_ping(&pods[1], pods[0].ip())?;
        Ok(Self { lab, daemons, pods })
    }

    /// TCP both ways, and the largest packet that the pods' MTU allows, unfragmented, but none that is a byte larger.
    pub fn carries(&self, mtu: u32) -> Result<()> {
        let [one, two] = &self.pods;
        for (from, to) in [(one, two), (two, one)] {
            let bytes = flannel_lab::transfer(from, to, 1)?.bytes;
            ensure!(bytes > 1e6, "only {bytes} bytes in a second");
            // ICMP payload: less the IP header's 20 bytes and ICMP's 8.
            let largest = (mtu - 28).to_string();
            from.run(&["ping", "-c", "1", "-W", "2", "-M", "do", "-s", &largest, to.ip()])?;
            let above = (mtu - 27).to_string();
            let refused = from.exec(&["ping", "-c", "1", "-W", "1", "-M", "do", "-s", &above, to.ip()])?;
            ensure!(!refused.success(), "a packet above the MTU of {mtu} was carried");
        }
        Ok(())
    }

    /// Each daemon is killed and comes back under 100 packets a second each way.
    pub fn restarts_unfelt(&mut self) -> Result<()> {
        let streams = {
            let [one, two] = &self.pods;
            [Pinger::start(one, two)?, Pinger::start(two, one)?]
        };
        std::thread::sleep(Duration::from_millis(500));
        for number in [1, 2] {
            self.without_daemon(number, |_| {
                std::thread::sleep(Duration::from_millis(500));
                Ok(())
            })?;
            std::thread::sleep(Duration::from_secs(1));
        }
        for stream in streams {
            let report = stream.stop()?;
            ensure!(report.sent >= 200, "too few packets to mean anything: {report:?}");
            ensure!(report.lost.is_empty(), "lost: {report:?}");
        }
        Ok(())
    }

    /// Nobody repairs any more.
    pub fn stop(&mut self) {
        self.daemons.clear();
    }

    /// Kills a node's daemon, and starts it again afterwards.
    pub fn without_daemon(
        &mut self,
        number: usize,
        meanwhile: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        self.daemons.remove(number - 1).kill()?;
        meanwhile(self)?;
        let daemon = self.lab.node(number)?.start_ready_flanneld(&["--ip-masq"])?;
        self.daemons.insert(number - 1, daemon);
        Ok(())
    }

    /// The route on node 1 to node 2's pods, as `dev` and `via`.
    pub fn way(&self) -> Result<(String, String)> {
        way(self.lab.node(1)?, self.pods[1].ip())
    }
}

pub fn way(node: &Node, ip: &str) -> Result<(String, String)> {
    let routes = node.ip_json(&["route", "show", "proto", "70", "type", "unicast", "match", ip])?;
    let route = routes.as_array().and_then(|list| list.last());
    let route = route.with_context(|| format!("{} has no route of ours to {ip}", node.name()))?;
    let text = |name: &str| route[name].as_str().unwrap_or_default().to_owned();
    Ok((text("dev"), text("gateway")))
}

pub fn subnet_env(node: &Node) -> Result<String> {
    node.read_file("/run/flannel/subnet.env")
}

pub fn host_gw_routes_by_the_nodes_themselves() -> Result<()> {
    let mut pair = Pair::start(r#"{"Type":"host-gw"}"#)?;
    let node = pair.lab.node(1)?;
    assert_eq!(pair.way()?, ("eth0".to_owned(), "192.168.50.12".to_owned()));
    let env = subnet_env(node)?;
    ensure!(env.contains("FLANNEL_MTU=1500"), "{env}");
    ensure!(
        node.run(&["ip", "link", "show", "flannel.1"]).is_err(),
        "there is a tunnel device"
    );
    let lease = pair.lab.etcd().list(SUBNETS_PREFIX)?;
    ensure!(
        lease
            .iter()
            .all(|entry| entry.value.contains(r#""BackendType":"host-gw""#)),
        "{lease:?}"
    );
    pair.carries(1500)?;
    // What somebody takes away comes back.
    let subnet = format!(
        "{}.0/24",
        pair.pods[1].ip().rsplit_once('.').map_or("", |(base, _)| base)
    );
    node.run(&["ip", "route", "del", &subnet])?;
    eventually(limit(10), "the route that was taken away", || {
        pair.way().map(drop)
    })?;
    pair.restarts_unfelt()
}

/// A node that answers for the published address but does not have it cannot be a gateway.
pub fn host_gw_refuses_an_address_that_is_not_its_own() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).config(&config(r#"{"Type":"host-gw"}"#)))?;
    let mut daemon = lab
        .node(1)?
        .start_flanneld(&["--public-ip=203.0.113.7", "--iface=eth0"])?;
    ensure!(!daemon.wait_exit()?.success(), "it goes on");
    let log = daemon.log()?;
    ensure!(log.contains("host-gw") && log.contains("--public-ip"), "{log}");
    Ok(())
}

pub fn direct_routing_avoids_the_tunnel_on_one_link() -> Result<()> {
    let mut pair = Pair::start(r#"{"Type":"vxlan","DirectRouting":true}"#)?;
    assert_eq!(pair.way()?, ("eth0".to_owned(), "192.168.50.12".to_owned()));
    let node = pair.lab.node(1)?;
    let env = subnet_env(node)?;
    // Another node may be behind a router, so pods keep the tunnel's MTU.
    ensure!(env.contains("FLANNEL_MTU=1450"), "{env}");
    let entries = node.bridge_json(&["fdb", "show", "dev", "flannel.1"])?;
    let to_peers = entries
        .as_array()
        .into_iter()
        .flatten()
        .filter(|e| e["dst"].is_string());
    assert_eq!(to_peers.count(), 0, "{entries}");
    // A node behind a router is reached through the tunnel.
    let far = r#"{"PublicIP":"192.0.2.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:00:00:00:00:77"}}"#;
    pair.lab
        .etcd()
        .put("/coreos.com/network/subnets/10.5.250.0-24", far)?;
    eventually(limit(10), "the way to the node behind the router", || {
        let (dev, gateway) = way(node, "10.5.250.9")?;
        ensure!(
            (dev.as_str(), gateway.as_str()) == ("flannel.1", "10.5.250.0"),
            "{dev} {gateway}"
        );
        Ok(())
    })?;
    pair.restarts_unfelt()
}

pub fn alloc_gives_a_subnet_and_touches_nothing() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).config(&config(r#"{"Type":"alloc"}"#)))?;
    let node = lab.node(1)?;
    let before = node.shell("ip -d link; ip addr; ip route")?;
    let _daemon = node.start_ready_flanneld(&[])?;
    let env = subnet_env(node)?;
    ensure!(
        env.contains("FLANNEL_SUBNET=10.5.") && env.contains("FLANNEL_MTU=1500"),
        "{env}"
    );
    assert_eq!(node.shell("ip -d link; ip addr; ip route")?, before);
    let leases = lab.etcd().list(SUBNETS_PREFIX)?;
    ensure!(
        leases.len() == 1 && !leases[0].value.contains("BackendType"),
        "{leases:?}"
    );
    Ok(())
}

pub fn ipip_carries_packets_between_nodes() -> Result<()> {
    let mut pair = Pair::start(r#"{"Type":"ipip"}"#)?;
    assert_eq!(
        pair.way()?,
        ("flannel.ipip".to_owned(), "192.168.50.12".to_owned())
    );
    let env = subnet_env(pair.lab.node(1)?)?;
    ensure!(env.contains("FLANNEL_MTU=1480"), "{env}");
    pair.carries(1480)?;
    let node = pair.lab.node(1)?;
    node.run(&["ip", "link", "del", "flannel.ipip"])?;
    eventually(limit(10), "the device that was taken away", || {
        pair.pods[0].ping(pair.pods[1].ip())
    })?;
    pair.restarts_unfelt()
}

/// Types that flannel has or had, and one that nobody has: each is refused with what serves instead, and the node goes on as soon
/// as the config is mended.
pub fn other_types_are_refused_with_what_serves_instead() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).config(&config(r#"{"Type":"ipsec"}"#)))?;
    let mut daemon = lab.node(1)?.start_flanneld(&[])?;
    daemon.wait_log("strongSwan")?;
    for (kind, part) in [("extension", "runs commands"), ("quic", "no such backend")] {
        let text = config(&format!(r#"{{"Type":"{kind}"}}"#));
        lab.etcd().put(CONFIG_KEY, text)?;
        daemon.wait_log(part)?;
    }
    lab.etcd().put(CONFIG_KEY, config(r#"{"Type":"host-gw"}"#))?;
    daemon.wait_ready()
}
