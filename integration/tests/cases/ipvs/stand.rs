//! One node with pods that serve, and what its kernel has for Services.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flannel_lab::held;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pod, Process, eventually, limit};
use serde_json::{Value, json};

use crate::cases::common::await_ping;

pub const SERVICES: &str = "/coreos.com/network/services/v1";
pub const VIP: &str = "10.96.0.10";
/// Where pods answer once, by TCP and UDP.
pub const PORT: u16 = 8080;
/// Where pods answer every line.
pub const LINES: u16 = 8081;
pub const ARGUMENTS: [&str; 2] = ["--ip-masq", "--service-mode=ipvs"];

/// One node with a client and two pods that serve.
pub struct Stand {
    pub lab: Lab,
    pub daemon: Option<Flanneld>,
    pub client: Pod,
    pub pods: Vec<Pod>,
    _servers: Vec<Process>,
}

impl Stand {
    /// Without any Service.
    pub fn open(config: &Value) -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(1))?;
        let node = lab.node(1)?;
        let daemon = node.start_ready_flanneld(&ARGUMENTS)?;
        let client = node.add_pod("client")?;
        let pods = vec![node.add_pod("one")?, node.add_pod("two")?];
        let mut servers = Vec::new();
        for pod in &pods {
            servers.push(pod.respond(PORT)?);
            servers.push(held::echo(pod, pod.name(), LINES)?);
            await_ping(&client, pod.ip())?;
        }
        let stand = Self {
            lab,
            daemon: Some(daemon),
            client,
            pods,
            _servers: servers,
        };
        stand.put("config", config)?;
        Ok(stand)
    }

    /// With the Service `web` at [`VIP`] and both pods behind it.
    pub fn serving(config: &Value) -> Result<Self> {
        let stand = Self::open(config)?;
        stand.put("spec/shop/web", &web(VIP))?;
        stand.endpoints("web", &[0, 1])?;
        stand.await_servers("TCP 10.96.0.10:80 rr", &[(0, PORT, 1), (1, PORT, 1)])?;
        stand.await_servers("TCP 10.96.0.10:81 rr", &[(0, LINES, 1), (1, LINES, 1)])?;
        Ok(stand)
    }

    pub fn node(&self) -> Result<&Node> {
        self.lab.node(1)
    }

    pub fn put(&self, key: &str, value: &Value) -> Result<()> {
        let key = format!("{SERVICES}/{key}");
        self.lab.etcd().put(&key, value.to_string())
    }

    pub fn delete(&self, key: &str) -> Result<()> {
        self.lab.etcd().delete(&format!("{SERVICES}/{key}"))
    }

    /// The pods of these numbers are the endpoints of a Service.
    pub fn endpoints(&self, service: &str, pods: &[usize]) -> Result<()> {
        let addresses = pods.iter().map(|n| json!({"addresses": [self.pods[*n].ip()]}));
        let endpoints: Vec<Value> = addresses.collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [
            {"name": "http", "port": PORT}, {"name": "query", "port": PORT, "protocol": "UDP"}, {"name": "lines", "port": LINES}]});
        self.put(&format!("slices/shop/{service}/lab"), &slice)
    }

    /// Waits until a virtual server has exactly these pods, each with its port and weight.
    pub fn await_servers(&self, title: &str, expected: &[(usize, u16, u32)]) -> Result<()> {
        let text = |(pod, port, weight): &(usize, u16, u32)| {
            format!("{}:{port} Masq {weight}", self.pods[*pod].ip())
        };
        let expected: BTreeSet<String> = expected.iter().map(text).collect();
        eventually(limit(30), &format!("real servers of {title}"), || {
            let seen = real_servers(self.node()?, title)?;
            ensure!(seen == expected, "{seen:?}, expected {expected:?}");
            Ok(())
        })
    }

    pub fn await_answer(&self, address: &str) -> Result<()> {
        eventually(limit(20), &format!("an answer of {address}"), || {
            self.client.ask("tcp", address).map(drop)
        })
    }

    pub fn await_log(&mut self, text: &str) -> Result<()> {
        let daemon = self.daemon.as_mut().context("no daemon runs")?;
        daemon.wait_log(text)
    }

    /// SIGKILL.
    pub fn crash(&mut self) -> Result<()> {
        self.daemon.take().context("no daemon runs")?.kill()
    }

    pub fn start(&mut self) -> Result<()> {
        self.daemon = Some(self.node()?.start_ready_flanneld(&ARGUMENTS)?);
        Ok(())
    }
}

pub fn config() -> Value {
    json!({"cidrs": ["10.96.0.0/16"], "nodePortAddresses": ["192.168.50.0/24"]})
}

/// A Service with the ports http (TCP 80), query (UDP 53) and lines (TCP 81).
pub fn web(address: &str) -> Value {
    json!({"clusterIP": address, "ports": [
        {"name": "http", "port": 80}, {"name": "query", "port": 53, "protocol": "UDP"}, {"name": "lines", "port": 81}]})
}

/// `10.5.1.2:8080 Masq 1` for each real server of a virtual server that `ipvsadm -Ln` shows as `title`.
pub fn real_servers(node: &Node, title: &str) -> Result<BTreeSet<String>> {
    let table = node.run(&["ipvsadm", "-Ln"])?;
    let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let title: Vec<&str> = title.split(' ').collect();
    lines
        .find(|words| *words == title)
        .with_context(|| format!("no {title:?} in:\n{table}"))?;
    let real = lines.take_while(|words| words.first() == Some(&"->"));
    Ok(real.map(|words| words[1..4].join(" ")).collect())
}

/// The lines of `ipvsadm -Sn` that name one of these, in order.
pub fn saved(node: &Node, parts: &[&str]) -> Result<Vec<String>> {
    let text = node.run(&["ipvsadm", "-Sn"])?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.retain(|l| parts.iter().any(|p| l.contains(p)));
    lines.sort();
    Ok(lines)
}
