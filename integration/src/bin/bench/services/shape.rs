//! The rival: Services as kube-proxy lays them out in nftables, a chain for each Service port and each endpoint, written by `nft -f`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_lab::{Place, sandbox};

use super::city;

/// Longest that one `nft -f` may take, in seconds: it does not grow in proportion.
const PATIENCE: u64 = 300;

/// A network namespace with the rival's table in it.
pub struct Rival {
    place: Place,
    file: PathBuf,
}

impl Rival {
    pub fn new(name: &str) -> Result<Self> {
        Place::sandbox().shell(&format!("ip netns add {name}; ip -n {name} link set lo up"))?;
        Ok(Self {
            place: Place::netns(name),
            file: Path::new(sandbox::SCRATCH).join(format!("{name}.nft")),
        })
    }

    /// Takes the namespace away.
    pub fn end(self) -> Result<()> {
        let name = self.place.name();
        Place::sandbox().run(&["ip", "netns", "delete", name]).map(drop)
    }

    /// The whole of it, as at the start of kube-proxy.
    pub fn load(&self, services: usize) -> Result<Duration> {
        let mut text = base();
        for index in 0..services {
            text.push_str(&service(index, &city::endpoints(index, 0)));
        }
        self.apply(&text)
    }

    /// One endpoint of a Service in the place of another.
    pub fn change(&self, index: usize, before: usize, after: usize) -> Result<Duration> {
        let (old, new) = (city::endpoints(index, before), city::endpoints(index, after));
        let mut text = String::new();
        for ip in new.iter().filter(|ip| !old.contains(ip)) {
            text.push_str(&endpoint(index, ip));
        }
        let chain = chain(index);
        let _ = writeln!(text, "flush chain ip kube-proxy {chain}");
        text.push_str(&choice(index, &new));
        for ip in old.iter().filter(|ip| !new.contains(ip)) {
            let gone = endpoint_chain(index, ip);
            let _ = writeln!(
                text,
                "flush chain ip kube-proxy {gone}\ndelete chain ip kube-proxy {gone}"
            );
        }
        self.apply(&text)
    }

    /// One Service more.
    pub fn add(&self, index: usize) -> Result<Duration> {
        self.apply(&service(index, &city::endpoints(index, 0)))
    }

    /// From the start of `nft` to its end.
    fn apply(&self, text: &str) -> Result<Duration> {
        std::fs::write(&self.file, text)?;
        let file = self.file.to_str().context("not text")?;
        let start = Instant::now();
        self.place.exec_within(&["nft", "-f", file], PATIENCE)?.ok()?;
        Ok(start.elapsed())
    }
}

fn base() -> String {
    let mut text = String::from("add table ip kube-proxy\n");
    for line in [
        "map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }",
        "set ip kube-proxy cluster-ips { type ipv4_addr; }",
        "chain ip kube-proxy services",
        "chain ip kube-proxy mark-for-masquerade",
        "chain ip kube-proxy cluster-ips-check",
        "chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100; }",
        "chain ip kube-proxy nat-output { type nat hook output priority -100; }",
        "chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100; }",
        "chain ip kube-proxy filter-prerouting { type filter hook prerouting priority -110; }",
        "chain ip kube-proxy filter-forward { type filter hook forward priority -110; }",
        "rule ip kube-proxy mark-for-masquerade meta mark set meta mark or 0x4000",
        "rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips",
        "rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject",
        "rule ip kube-proxy nat-prerouting jump services",
        "rule ip kube-proxy nat-output jump services",
        "rule ip kube-proxy nat-postrouting meta mark & 0x4000 == 0x4000 masquerade fully-random",
        "rule ip kube-proxy filter-forward ct state new jump cluster-ips-check",
    ] {
        let _ = writeln!(text, "add {line}");
    }
    text
}

fn chain(index: usize) -> String {
    format!("service-{index:08X}-bench/shop-{index}/tcp/http")
}

fn endpoint_chain(index: usize, ip: &str) -> String {
    format!("endpoint-{index:08X}-bench/shop-{index}/tcp/http__{ip}/8080")
}

fn service(index: usize, endpoints: &[String]) -> String {
    let (chain, ip) = (chain(index), city::virtual_ip(index));
    let mut text = format!("add chain ip kube-proxy {chain}\n");
    for endpoint_ip in endpoints {
        text.push_str(&endpoint(index, endpoint_ip));
    }
    text.push_str(&choice(index, endpoints));
    let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {ip} }}");
    let _ = writeln!(
        text,
        "add element ip kube-proxy service-ips {{ {ip} . tcp . 80 : goto {chain} }}"
    );
    text
}

/// The rules of a Service's chain.
fn choice(index: usize, endpoints: &[String]) -> String {
    let (chain, ip) = (chain(index), city::virtual_ip(index));
    let verdicts: Vec<String> = endpoints
        .iter()
        .enumerate()
        .map(|(number, ip)| format!("{number} : goto {}", endpoint_chain(index, ip)))
        .collect();
    format!(
        "add rule ip kube-proxy {chain} ip daddr {ip} tcp dport 80 ip saddr != 10.0.0.0/9 jump mark-for-masquerade\n\
         add rule ip kube-proxy {chain} numgen random mod {} vmap {{ {} }}\n",
        endpoints.len(),
        verdicts.join(", ")
    )
}

fn endpoint(index: usize, ip: &str) -> String {
    let chain = endpoint_chain(index, ip);
    format!(
        "add chain ip kube-proxy {chain}\n\
         add rule ip kube-proxy {chain} ip saddr {ip} jump mark-for-masquerade\n\
         add rule ip kube-proxy {chain} meta l4proto tcp dnat to {ip}:8080\n"
    )
}
