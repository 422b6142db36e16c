//! Others that load the same virtual and real servers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Place, sandbox};
use flannel_netlink::generic::{IpvsRequest, RealServer, VirtualServer};

use super::scene::{Kernel, Scene, endpoints, server};

/// Who loads them.
#[derive(Debug, Clone, Copy)]
pub enum Rival {
    /// All requests in batches with one answer each: the least that the kernel takes.
    Batched,
    /// A request and its answer, then the next.
    OneByOne,
    /// `ipvsadm --restore`.
    Restore,
}

impl Rival {
    /// Loads all into a new network namespace.
    pub fn load(self, scene: &Scene<'_>, round: usize) -> Result<Duration> {
        let name = format!("{self:?}{}-{round}", scene.count).to_lowercase();
        let operator = Place::sandbox();
        operator.shell(&format!("ip netns add {name}; ip -n {name} link set lo up"))?;
        let took = match self {
            Self::Batched => apply(&name, scene, usize::MAX),
            Self::OneByOne => apply(&name, scene, 1),
            Self::Restore => restore(&name, scene),
        };
        Place::netns(&name).run(&["ipvsadm", "--clear"])?;
        operator.run(&["ip", "netns", "delete", &name])?;
        took
    }
}

fn apply(netns: &str, scene: &Scene<'_>, at_once: usize) -> Result<Duration> {
    let mut requests = Vec::with_capacity(scene.objects());
    for number in 0..scene.count {
        let key = server(number);
        requests.push(IpvsRequest::AddVirtual(VirtualServer {
            key,
            scheduler: "rr".into(),
            flags: 0,
            timeout: 0,
        }));
        let real = |address| IpvsRequest::AddReal(key, RealServer::masquerade(address, 1));
        requests.extend(endpoints(number).into_iter().map(real));
    }
    let mut kernel = Kernel::of(netns)?;
    let begin = Instant::now();
    for chunk in requests.chunks(at_once.min(requests.len())) {
        for result in kernel.0.apply(chunk) {
            result?;
        }
    }
    let took = begin.elapsed();
    let stand = kernel.0.virtual_servers()?.len();
    ensure!(
        u32::try_from(stand)? == scene.count,
        "{stand} virtual servers stand"
    );
    Ok(took)
}

fn restore(netns: &str, scene: &Scene<'_>) -> Result<Duration> {
    let mut text = String::new();
    for number in 0..scene.count {
        let at = server(number).to_string();
        let at = at.rsplit(' ').next().context("no address")?;
        text += &format!("-A -t {at} -s rr\n");
        for endpoint in endpoints(number) {
            text += &format!("-a -t {at} -r {endpoint} -m -w 1\n");
        }
    }
    let file = format!("{}/restore", sandbox::SCRATCH);
    std::fs::write(&file, text)?;
    let begin = Instant::now();
    let output =
        Place::netns(netns).exec_within(&["sh", "-c", &format!("exec ipvsadm --restore < {file}")], 120)?;
    output.ok()?;
    Ok(begin.elapsed())
}
