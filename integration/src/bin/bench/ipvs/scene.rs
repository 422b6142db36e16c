//! So many Services, in etcd and in the kernel.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::DEFAULT_CONFIG;
use flannel_lab::{Lab, Node, eventually, limit};
use flannel_netlink::Netns;
use flannel_netlink::generic::{Ipvs, IpvsKey, RealServer};
use serde_json::json;

use super::key;

/// Endpoints of each Service.
pub const ENDPOINTS: u16 = 10;

/// The virtual server of Service `number`.
pub fn server(number: u32) -> IpvsKey {
    key(address(number))
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number)
}

/// Endpoint `index` of Service `number`: nothing answers there.
pub fn endpoint(number: u32, index: u16) -> SocketAddr {
    let base = u32::from(Ipv4Addr::new(172, 16, 0, 1));
    let ip = base + number * u32::from(ENDPOINTS) + u32::from(index);
    (Ipv4Addr::from(ip), 8080).into()
}

/// Services in etcd, below a prefix of their own.
pub struct Scene<'a> {
    lab: &'a Lab,
    /// How many.
    pub count: u32,
}

impl<'a> Scene<'a> {
    /// Writes `count` Services.
    pub fn write(lab: &'a Lab, count: u32) -> Result<Self> {
        let scene = Self { lab, count };
        let config = json!({"cidrs": ["10.96.0.0/12"]}).to_string();
        let mut records = vec![
            (
                format!("{}/config", scene.prefix()),
                Some(DEFAULT_CONFIG.to_owned()),
            ),
            (scene.key("config"), Some(config)),
        ];
        records.extend((0..count).flat_map(|n| scene.records(n, &endpoints(n))));
        for chunk in records.chunks(1000) {
            lab.etcd().write_many(chunk)?;
        }
        Ok(scene)
    }

    /// Where its keys are.
    pub fn prefix(&self) -> String {
        format!("/services{}", self.count)
    }

    /// How many virtual and real servers there are to be.
    pub fn objects(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX) * usize::from(1 + ENDPOINTS)
    }

    fn key(&self, name: &str) -> String {
        format!("{}/services/v1/{name}", self.prefix())
    }

    fn records(&self, number: u32, endpoints: &[SocketAddr]) -> [(String, Option<String>); 2] {
        let spec = json!({"clusterIP": address(number), "ports": [{"name": "http", "port": 80}]});
        [
            (self.key(&format!("spec/bench/s{number}")), Some(spec.to_string())),
            self.slice(number, endpoints),
        ]
    }

    fn slice(&self, number: u32, endpoints: &[SocketAddr]) -> (String, Option<String>) {
        let list: Vec<_> = endpoints.iter().map(|e| json!({"addresses": [e.ip()]})).collect();
        let slice =
            json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": list});
        (
            self.key(&format!("slices/bench/s{number}/a")),
            Some(slice.to_string()),
        )
    }

    /// One endpoint of a Service gives way to another.
    pub fn replace_endpoint(&self, number: u32, by: SocketAddr) -> Result<()> {
        let mut list = endpoints(number);
        if let Some(first) = list.first_mut() {
            *first = by;
        }
        self.lab.etcd().write_many(&[self.slice(number, &list)])
    }

    /// One more Service.
    pub fn add(&self, number: u32) -> Result<()> {
        let [spec, slice] = self.records(number, &endpoints(number));
        // the endpoints first, so that it is whole when it begins
        self.lab.etcd().write_many(&[slice])?;
        self.lab.etcd().write_many(&[spec])
    }

    /// IPVS of a node.
    pub fn kernel(&self, node: &Node) -> Result<Kernel> {
        Kernel::of(node.name())
    }

    /// Checks that a node has exactly these.
    pub fn check(&self, node: &Node) -> Result<()> {
        let mut kernel = self.kernel(node)?.0;
        let virtual_servers = kernel.virtual_servers()?.len();
        let mut real = 0;
        for number in 0..self.count {
            real += kernel.real_servers(&server(number))?.len();
        }
        ensure!(
            virtual_servers + real == self.objects(),
            "{virtual_servers} virtual and {real} real servers stand"
        );
        Ok(())
    }
}

/// The endpoints of Service `number`.
pub fn endpoints(number: u32) -> Vec<SocketAddr> {
    (0..ENDPOINTS).map(|index| endpoint(number, index)).collect()
}

/// IPVS of one network namespace.
pub struct Kernel(pub Ipvs);

impl Kernel {
    /// That of the namespace called `netns`.
    pub fn of(netns: &str) -> Result<Self> {
        let netns = Netns::open(format!("/run/netns/{netns}"))?;
        let ipvs = netns.run(Ipvs::open)??;
        Ok(Self(ipvs.context("the kernel has no IPVS")?))
    }

    /// Looks as often as it can until the real servers are as wanted.
    pub fn await_real(&mut self, server: IpvsKey, fits: impl Fn(&[RealServer]) -> bool) -> Result<()> {
        let deadline = std::time::Instant::now() + limit(20);
        while std::time::Instant::now() < deadline {
            if self.0.real_servers(&server).is_ok_and(|real| fits(&real)) {
                return Ok(());
            }
            // the daemon and etcd want to run as well
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        eventually(limit(1), &format!("real servers of {server}"), || {
            ensure!(fits(&self.0.real_servers(&server)?), "not as wanted");
            Ok(())
        })
    }
}
