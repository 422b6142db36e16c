//! Services: from `flannelctl service apply` to answers of pods through IPVS.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pod, Process, eventually, kernel, limit, sandbox};
use std::time::Duration;

use super::common::{await_convergence, await_ping, start_all};

const VIP: &str = "10.96.0.10";

/// Two nodes, a pod on each that serves port 8080, a client pod on the first, and a Service that stands for the two.
struct Shop {
    lab: Lab,
    daemons: Vec<Flanneld>,
    client: Pod,
    servers: Vec<Pod>,
    _responders: Vec<Process>,
}

impl Shop {
    fn open() -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(2))?;
        let daemons = start_all(&lab, &["--ip-masq"])?;
        let client = lab.node(1)?.add_pod("client")?;
        let servers = vec![lab.node(1)?.add_pod("web1")?, lab.node(2)?.add_pod("web2")?];
        let responders = servers.iter().map(|s| s.respond(8080)).collect::<Result<_>>()?;
        for server in &servers {
            await_ping(&client, server.ip())?;
        }
        let shop = Self {
            lab,
            daemons,
            client,
            servers,
            _responders: responders,
        };
        let addresses: Vec<&str> = shop.servers.iter().map(|s| s.ip()).collect();
        shop.apply(&addresses)?;
        Ok(shop)
    }

    /// `flannelctl service apply` of the Service with these endpoints, in Kubernetes' words.
    fn apply(&self, endpoints: &[&str]) -> Result<()> {
        let file = format!("{}/service.yaml", sandbox::SCRATCH);
        std::fs::write(&file, manifest(endpoints))?;
        self.lab
            .flannelctl(&["service", "apply", "-f", &file])?
            .ok()
            .map(drop)
    }

    /// Waits until IPVS on every node has exactly these real servers for TCP port 80.
    fn await_programmed(&self, endpoints: &[&str]) -> Result<()> {
        let mut expected: Vec<String> = endpoints.iter().map(|e| format!("{e}:8080")).collect();
        expected.sort();
        for node in self.lab.nodes() {
            eventually(limit(20), &format!("IPVS on {}", node.name()), || {
                let seen = real_servers(node, &format!("TCP {VIP}:80 rr"))?;
                ensure!(seen == expected, "real servers {seen:?}, expected {expected:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<&str> {
        self.servers.iter().map(|s| s.ip()).collect()
    }
}

fn manifest(endpoints: &[&str]) -> String {
    let list: String = endpoints
        .iter()
        .map(|e| format!("  - addresses: [\"{e}\"]\n    conditions: {{ready: true}}\n"))
        .collect();
    format!(
        "apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {{name: kubernetes}}
spec: {{cidrs: [10.96.0.0/16]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  clusterIP: {VIP}
  ports:
  - {{name: http, port: 80, targetPort: 8080, protocol: TCP}}
  - {{name: query, port: 53, targetPort: 8080, protocol: UDP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {{kubernetes.io/service-name: web}}
addressType: IPv4
ports:
- {{name: http, port: 8080, protocol: TCP}}
- {{name: query, port: 8080, protocol: UDP}}
endpoints:
{list}"
    )
}

/// The real servers of a virtual server as `ipvsadm -Ln` shows it, in order; each must be masqueraded.
fn real_servers(node: &Node, title: &str) -> Result<Vec<String>> {
    let table = node.run(&["ipvsadm", "-Ln"])?;
    let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let wanted: Vec<&str> = title.split(' ').collect();
    lines
        .find(|words| *words == wanted)
        .with_context(|| format!("no {title:?} in:\n{table}"))?;
    let mut servers = Vec::new();
    for words in lines.take_while(|words| words.first() == Some(&"->")) {
        ensure!(words[2] == "Masq", "not masqueraded: {words:?}");
        // a weight of 0: on its way out
        if words[3] != "0" {
            servers.push(words[1].to_owned());
        }
    }
    servers.sort();
    Ok(servers)
}

pub fn table_is_what_operators_expect() -> Result<()> {
    let shop = Shop::open()?;
    shop.await_programmed(&shop.addresses())?;
    let table = shop.lab.node(1)?.run(&["ipvsadm", "-Ln"])?;
    ensure!(
        table.lines().any(|l| l.trim_end() == "TCP  10.96.0.10:80 rr"),
        "{table}"
    );
    ensure!(
        table.lines().any(|l| l.trim_end() == "UDP  10.96.0.10:53 rr"),
        "{table}"
    );
    let routes = shop
        .lab
        .node(1)?
        .run(&["ip", "route", "show", "table", "local", "10.96.0.0/16"])?;
    ensure!(
        routes.starts_with("local 10.96.0.0/16 dev lo"),
        "the route of the service CIDR: {routes:?}"
    );
    let list = shop.lab.flannelctl(&["services"])?.ok()?;
    ensure!(
        list.contains("web") && list.contains(VIP),
        "flannelctl services: {list}"
    );
    Ok(())
}

pub fn answers_come_from_pods_on_both_nodes() -> Result<()> {
    let shop = Shop::open()?;
    shop.await_programmed(&shop.addresses())?;
    for (protocol, port) in [("tcp", 80), ("udp", 53)] {
        let address = format!("{VIP}:{port}");
        eventually(limit(10), "a first answer", || {
            shop.client.ask(protocol, &address)
        })?;
        let shares = shares(shop.client.ask_many(protocol, &address, 10)?)?;
        // round robin: exactly by turns
        assert_eq!(
            shares,
            BTreeMap::from([("web1".to_owned(), 5), ("web2".to_owned(), 5)]),
            "{protocol}"
        );
    }
    // the host and the servers themselves are clients, too
    for place in [
        &**shop.lab.node(1)?,
        &**shop.lab.node(2)?,
        &*shop.servers[0],
        &*shop.servers[1],
    ] {
        let answers = flannel_lab::pod::ask(place, "tcp", &format!("{VIP}:80"), 4)?;
        let shares = shares(answers).with_context(|| format!("asked from {}", place.name()))?;
        assert_eq!(shares.values().sum::<usize>(), 4, "asked from {}", place.name());
        assert_eq!(shares.len(), 2, "asked from {}: {shares:?}", place.name());
    }
    Ok(())
}

/// How many answers each server gave.
fn shares(answers: Vec<Result<String, String>>) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for answer in answers {
        let answer = answer.map_err(anyhow::Error::msg)?;
        *shares
            .entry(answer.split(' ').next().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    Ok(shares)
}

pub fn unknown_ports_are_refused() -> Result<()> {
    let shop = Shop::open()?;
    shop.await_programmed(&shop.addresses())?;
    // The node listens on this port itself: it must not answer on every virtual address.
    let node = shop.lab.node(1)?;
    let _host = flannel_lab::pod::respond(node, "host", 9999)?;
    for address in [
        format!("{VIP}:9999"),
        format!("{VIP}:81"),
        "10.96.7.7:80".to_owned(),
        "10.96.7.7:9999".to_owned(),
    ] {
        for place in [&*shop.client, &**node] {
            let answer = flannel_lab::pod::ask(place, "tcp", &address, 1)?;
            let refused = matches!(answer.as_slice(), [Err(e)] if e.contains("refused"));
            ensure!(refused, "{address} asked from {}: {answer:?}", place.name());
        }
    }
    Ok(())
}

pub fn endpoints_come_and_go() -> Result<()> {
    let shop = Shop::open()?;
    let (first, second) = (shop.servers[0].ip(), shop.servers[1].ip());
    shop.await_programmed(&[first, second])?;
    shop.apply(&[second])?;
    shop.await_programmed(&[second])?;
    let shares = shares(shop.client.ask_many("tcp", &format!("{VIP}:80"), 4)?)?;
    assert_eq!(shares, BTreeMap::from([("web2".to_owned(), 4)]));
    shop.apply(&[first, second])?;
    shop.await_programmed(&[first, second])?;
    shop.lab
        .etcd()
        .delete_prefix("/coreos.com/network/services/v1/spec/shop/")?;
    for node in shop.lab.nodes() {
        eventually(limit(20), "the virtual server to be gone", || {
            let table = node.run(&["ipvsadm", "-Ln"])?;
            ensure!(!table.contains(VIP), "{table}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Somebody else's, outside the service CIDR.
pub fn foreign_virtual_servers_stay() -> Result<()> {
    let shop = Shop::open()?;
    shop.await_programmed(&shop.addresses())?;
    let node = shop.lab.node(1)?;
    node.shell(
        "ipvsadm -A -t 203.0.113.5:443 -s wlc; ipvsadm -a -t 203.0.113.5:443 -r 192.168.50.99:443 -m -w 3",
    )?;
    shop.apply(&[shop.servers[1].ip()])?;
    shop.await_programmed(&[shop.servers[1].ip()])?;
    let table = node.run(&["ipvsadm", "-Ln"])?;
    ensure!(
        table.contains("TCP  203.0.113.5:443 wlc") && table.contains("192.168.50.99:443"),
        "{table}"
    );
    Ok(())
}

/// A crash and a start leave the table as it is, and open connections open.
pub fn restart_adopts() -> Result<()> {
    let mut shop = Shop::open()?;
    shop.await_programmed(&shop.addresses())?;
    let node = shop.lab.node(1)?;
    // ipvsadm --save's order is the kernel's: what was deleted and made again moves
    let table = || node.run(&["ipvsadm", "-Sn"]);
    let before = table()?;
    shop.daemons.remove(0).kill()?;
    throughout(Duration::from_secs(1), "the table while flanneld is away", || {
        ensure!(table()? == before, "it changed");
        shop.client.ask("tcp", &format!("{VIP}:80")).map(drop)
    })?;
    let _again = node.start_ready_flanneld(&["--ip-masq"])?;
    throughout(Duration::from_secs(3), "the table after the start", || {
        ensure!(table()? == before, "it changed:\n{}\n{before}", table()?);
        Ok(())
    })
}

/// Both nodes say so, once: the one that must have IPVS programs nothing, the other one takes nftables; and the overlay works.
pub fn kernel_without_ipvs_is_said_once() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut strict = lab.node(1)?.start_ready_flanneld(&["--service-mode=ipvs"])?;
    let mut free = lab.node(2)?.start_ready_flanneld(&[])?;
    await_convergence(&lab)?;
    let file = format!("{}/service.yaml", sandbox::SCRATCH);
    std::fs::write(&file, manifest(&["10.5.1.9"]))?;
    lab.flannelctl(&["service", "apply", "-f", &file])?.ok()?;
    strict.wait_log("no IPVS, so Services are not programmed")?;
    free.wait_log("no IPVS, so Services are programmed through nftables")?;
    std::fs::write(&file, manifest(&["10.5.1.9", "10.5.1.10"]))?;
    lab.flannelctl(&["service", "apply", "-f", &file])?.ok()?;
    eventually(limit(20), "the second endpoint", || {
        let table = lab
            .node(2)?
            .run(&["nft", "list", "map", "ip", "flannel-services-nat", "backends"])?;
        ensure!(table.contains("10.5.1.10 . 8080"), "{table}");
        Ok(())
    })?;
    throughout(Duration::from_secs(3), "the daemons", || {
        strict.check_running()?;
        free.check_running()
    })?;
    for daemon in [&strict, &free] {
        let lines = daemon.log()?.lines().filter(|l| l.contains("no IPVS")).count();
        assert_eq!(lines, 1, "lines about IPVS");
    }
    ensure!(
        !lab.node(1)?
            .run(&["nft", "list", "tables"])?
            .contains("flannel-services"),
        "a table without IPVS"
    );
    let (one, two) = (lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?);
    await_ping(&one, two.ip())
}

/// Settings of the host that the flags ask for, and no others.
pub fn settings_of_the_host_are_made_as_asked_for() -> Result<()> {
    const SETTINGS: [(&str, &str); 3] = [
        ("netfilter/nf_conntrack_tcp_timeout_established", "7200"),
        ("netfilter/nf_conntrack_udp_timeout_stream", "77"),
        ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ];
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let read = |name: &str| {
        let text = node.run(&["cat", &format!("/proc/sys/net/{name}")])?;
        anyhow::Ok(text.trim().to_owned())
    };
    let untouched = read("netfilter/nf_conntrack_udp_timeout")?;
    lab.etcd().put(
        "/coreos.com/network/services/v1/config",
        r#"{"cidrs":["10.96.0.0/16"]}"#,
    )?;
    let mut daemon = node.start_ready_flanneld(&[
        "--conntrack-tcp-timeout-established=2h0m0s",
        "--conntrack-udp-timeout-stream=77s",
        "--conntrack-udp-timeout=0s",
        "--conntrack-tcp-be-liberal",
        "--ipvs-tcp-timeout=16m40s",
        "--ipvs-udp-timeout=45s",
        "--ipvs-strict-arp",
    ])?;
    for (name, value) in SETTINGS {
        eventually(limit(20), name, || {
            let now = read(name)?;
            ensure!(now == value, "{now}");
            Ok(())
        })?;
    }
    assert_eq!(read("netfilter/nf_conntrack_udp_timeout")?, untouched);
    if kernel::has_ipvs() {
        eventually(limit(20), "timeouts of IPVS", || {
            let told = node.run(&["ipvsadm", "-L", "--timeout"])?;
            ensure!(told.trim() == "Timeout (tcp tcpfin udp): 1000 120 45", "{told}");
            Ok(())
        })?;
        assert_eq!(
            (
                read("ipv4/conf/all/arp_ignore")?,
                read("ipv4/conf/all/arp_announce")?
            ),
            ("1".into(), "2".into())
        );
    }
    daemon.check_running()
}
