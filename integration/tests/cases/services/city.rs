//! Two nodes with pods that serve, in both families, and Services in front of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Place, Pod, Process, eventually, held, limit};
use serde_json::{Value, json};

use super::Mode;
use crate::cases::common::await_ping;

pub const SERVICES: &str = "/coreos.com/network/services/v1";
/// Where the pods' responders listen.
pub const PORT: u16 = 8080;
/// Where their servers of lines listen.
pub const LINES: u16 = 8081;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// One of two.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    fn address_type(self) -> &'static str {
        self.pick("IPv4", "IPv6")
    }
}

/// `ip:port`, or `[ip]:port`.
pub fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// What the plugin gave a pod in a family: `address` or `gateway`.
fn given(pod: &Pod, family: Family, what: &str) -> Result<String> {
    let ips = pod.result()["ips"].as_array().context("no addresses")?;
    let bare = |ip: &Value| Some(ip[what].as_str()?.split('/').next()?.to_owned());
    let mut of_family = ips.iter().filter_map(bare);
    let found = of_family.find(|ip| ip.contains(':') == (family == Family::V6));
    found.with_context(|| format!("{} has no {what} of {family:?}", pod.name()))
}

pub fn ip_of(pod: &Pod, family: Family) -> Result<String> {
    given(pod, family, "address")
}

pub fn gateway_of(pod: &Pod, family: Family) -> Result<String> {
    given(pod, family, "gateway")
}

pub fn node_ip(node: &Node, family: Family) -> &str {
    family.pick(node.address(), node.ipv6_address())
}

/// Two nodes; `near` serves on the first, where the client is, and `far` on the second.
pub struct City {
    pub mode: Cell<Mode>,
    pub lab: Lab,
    pub daemons: RefCell<Vec<Flanneld>>,
    pub client: Pod,
    pub near: Pod,
    pub far: Pod,
    _servers: Vec<Process>,
    numbers: Cell<u8>,
}

impl City {
    pub fn open(mode: Mode, backend: &str) -> Result<Self> {
        let network = json!({"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48",
            "Backend": {"Type": backend}});
        let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(&network.to_string()))?;
        let daemons = start(&lab, mode)?;
        let client = lab.node(1)?.add_pod("client")?;
        let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
        let mut servers = Vec::new();
        for pod in [&near, &far] {
            servers.push(pod.respond(PORT)?);
            servers.push(held::echo(pod, pod.name(), LINES)?);
            for family in Family::BOTH {
                await_ping(&client, &ip_of(pod, family)?)?;
            }
        }
        let city = Self {
            mode: Cell::new(mode),
            lab,
            daemons: RefCell::new(daemons),
            client,
            near,
            far,
            _servers: servers,
            numbers: Cell::new(10),
        };
        city.configure(json!({}))?;
        Ok(city)
    }

    /// The config of all Services, with what `more` says.
    pub fn configure(&self, more: Value) -> Result<()> {
        let config = json!({"cidrs": ["10.96.0.0/16", "fd00:96::/112"], "externalCidrs": ["203.0.113.0/24", "2001:db8:113::/64"],
            "nodePortAddresses": ["192.168.50.0/24", "fd00:50::/64"]});
        self.put("config", &merged(config, more)?)
    }

    /// SIGKILL for both daemons.
    pub fn crash(&self) -> Result<()> {
        self.daemons.take().into_iter().try_for_each(Flanneld::kill)
    }

    /// Both daemons again.
    pub fn start(&self) -> Result<()> {
        self.daemons.replace(start(&self.lab, self.mode.get())?);
        Ok(())
    }

    /// Takes all Services away.
    pub fn clear(&self) -> Result<()> {
        for kind in ["spec", "slices", "endpoints"] {
            self.lab.etcd().delete_prefix(&format!("{SERVICES}/{kind}/"))?;
        }
        Ok(())
    }

    pub fn put(&self, key: &str, value: &Value) -> Result<()> {
        self.lab
            .etcd()
            .put(&format!("{SERVICES}/{key}"), value.to_string())
    }

    /// A Service of both families with the ports http (TCP 80), query (UDP 53) and lines (TCP 81), and what `more` says.
    pub fn shop(&self, more: Value) -> Result<Shop<'_>> {
        let number = self.numbers.get();
        self.numbers
            .set(number.checked_add(1).context("too many Services")?);
        let shop = Shop {
            city: self,
            name: format!("shop{number}"),
            number,
        };
        shop.spec(more)?;
        Ok(shop)
    }

    /// The same with these pods behind it, programmed on both nodes.
    pub fn open_shop(&self, more: Value, pods: &[&Pod]) -> Result<Shop<'_>> {
        let shop = self.shop(more)?;
        shop.endpoints(pods)?;
        shop.await_endpoints(pods)?;
        Ok(shop)
    }

    pub fn both(&self) -> [&Pod; 2] {
        [&self.near, &self.far]
    }

    pub fn node(&self, number: usize) -> Result<&Node> {
        self.lab.node(number)
    }

    pub fn outside(&self) -> &Place {
        self.lab.outside()
    }
}

fn start(lab: &Lab, mode: Mode) -> Result<Vec<Flanneld>> {
    let start = |node: &Node| {
        let name = format!("--hostname-override={}", node.name());
        node.start_flanneld(&["--ip-masq", mode.flag(), &name])
    };
    let mut daemons: Vec<Flanneld> = lab.nodes().iter().map(start).collect::<Result<_>>()?;
    daemons.iter_mut().try_for_each(Flanneld::wait_ready)?;
    Ok(daemons)
}

fn merged(mut base: Value, more: Value) -> Result<Value> {
    let (Some(fields), Value::Object(more)) = (base.as_object_mut(), more) else {
        anyhow::bail!("no object");
    };
    fields.extend(more);
    Ok(base)
}

/// A Service of the city.
pub struct Shop<'a> {
    city: &'a City,
    pub name: String,
    number: u8,
}

/// Its ports: protocol, number, and where that leads.
pub const PORTS: [(&str, u16, u16); 3] = [("tcp", 80, PORT), ("udp", 53, PORT), ("tcp", 81, LINES)];

impl Shop<'_> {
    /// Its cluster address.
    pub fn ip(&self, family: Family) -> String {
        family.pick(
            format!("10.96.0.{}", self.number),
            format!("fd00:96::{:x}", self.number),
        )
    }

    /// A port of it.
    pub fn at(&self, family: Family, port: u16) -> String {
        at(&self.ip(family), port)
    }

    /// Writes it again, with what `more` says.
    pub fn spec(&self, more: Value) -> Result<()> {
        let ips = Family::BOTH.map(|family| self.ip(family));
        let spec = json!({"clusterIPs": ips, "ports": [
            {"name": "http", "port": 80},
            {"name": "query", "port": 53, "protocol": "UDP"},
            {"name": "lines", "port": 81}]});
        self.city
            .put(&format!("spec/shop/{}", self.name), &merged(spec, more)?)
    }

    /// These pods are ready.
    pub fn endpoints(&self, pods: &[&Pod]) -> Result<()> {
        let pods: Vec<(&Pod, Value)> = pods.iter().map(|pod| (*pod, json!({}))).collect();
        self.slices(&pods)
    }

    /// These pods are endpoints, with what is said of each.
    pub fn slices(&self, pods: &[(&Pod, Value)]) -> Result<()> {
        for family in Family::BOTH {
            let endpoint = |(pod, more): &(&Pod, Value)| {
                merged(json!({"addresses": [ip_of(pod, family)?]}), more.clone())
            };
            let endpoints: Vec<Value> = pods.iter().map(endpoint).collect::<Result<_>>()?;
            let slice = json!({"addressType": family.address_type(), "endpoints": endpoints, "ports": [
                {"name": "http", "port": PORT},
                {"name": "query", "port": PORT, "protocol": "UDP"},
                {"name": "lines", "port": LINES}]});
            let writer = family.pick("v4", "v6");
            self.city
                .put(&format!("slices/shop/{}/{writer}", self.name), &slice)?;
        }
        Ok(())
    }

    /// Waits until both nodes have exactly these pods behind every port.
    pub fn await_endpoints(&self, pods: &[&Pod]) -> Result<()> {
        for node in self.city.lab.nodes() {
            self.await_endpoints_on(node, pods)?;
        }
        Ok(())
    }

    pub fn await_endpoints_on(&self, node: &Node, pods: &[&Pod]) -> Result<()> {
        for family in Family::BOTH {
            for (protocol, port, target) in PORTS {
                let expected = pods.iter().map(|pod| {
                    let text = at(&ip_of(pod, family)?, target);
                    text.parse().with_context(|| text.clone())
                });
                let expected: BTreeSet<SocketAddr> = expected.collect::<Result<_>>()?;
                let virtual_address = self.at(family, port);
                let what = format!("endpoints of {protocol} {virtual_address} on {}", node.name());
                eventually(limit(20), &what, || {
                    let seen = self.city.mode.get().endpoints(node, protocol, &virtual_address)?;
                    ensure!(seen == expected, "{seen:?}, expected {expected:?}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}
