//! One real flanneld with many peers: its memory, its start, what it asks of etcd, and what it takes while etcd is away.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_lab::{Flanneld, Lab, etcd, eventually, limit};
use flannel_store::{EtcdOptions, EtcdStore, Store};

use super::{calls, heading, row, seconds};
use flannel_lab::Asked;

/// Writes in one transaction: etcd takes 128.
const BATCH: usize = 100;
/// After the last write in the kernel, until memory is read.
const SETTLE: Duration = Duration::from_secs(3);

/// Starts flanneld beside so many peers and looks at it. `goal` is the most that it should need, in MiB.
pub fn with_peers(lab: &Lab, peers: usize, goal: f64) -> Result<Flanneld> {
    heading(&format!("one flanneld with {peers} peers"));
    write_peers(peers)?;
    let node = lab.node(1)?;
    let before = Asked::read()?;
    let start = Instant::now();
    let daemon = node.start_flanneld(&[])?;
    eventually(limit(300), "flanneld to be ready", || {
        anyhow::ensure!(daemon.is_ready(), "{}", daemon.notifications());
        Ok(())
    })?;
    row(
        "from its start until every peer is in the kernel, s",
        &seconds(start.elapsed()),
        "",
        "",
    );
    std::thread::sleep(SETTLE);
    let calls = Asked::read()?.since(&before);
    calls::print(&calls, "messages to etcd", 1.0, 6.0 + 2.0 * peers as f64);
    let routes = node.shell("ip route show proto 70 | wc -l")?;
    row("routes in the kernel", routes.trim(), "", "");
    let memory = memory(daemon.pid())?;
    let verdict = if memory.now <= goal { "met" } else { "MISSED" };
    row(
        &format!("memory, MiB (goal: below {goal:.0}, {verdict})"),
        &format!("{:.1}", memory.now),
        "",
        "",
    );
    row("memory at its peak, MiB", &format!("{:.1}", memory.peak), "", "");
    row(
        "memory that it shares with nobody, MiB",
        &format!("{:.1}", memory.own),
        "",
        "",
    );
    Ok(daemon)
}

/// Etcd dies, comes back, and freezes, each for half of `outage`. `goal` is the most of a core that the daemon should take meanwhile.
pub fn without_etcd(lab: &mut Lab, daemon: &Flanneld, outage: Duration, goal: f64) -> Result<()> {
    heading(&format!(
        "the same flanneld while etcd is away, {} s each",
        outage.as_secs() / 2
    ));
    lab.etcd_mut().kill()?;
    part_of_a_core(daemon, outage / 2, "dead", goal)?;
    lab.etcd_mut().start()?;
    std::thread::sleep(SETTLE);
    lab.etcd().freeze()?;
    part_of_a_core(daemon, outage / 2, "frozen", goal)
}

fn part_of_a_core(daemon: &Flanneld, time: Duration, how: &str, goal: f64) -> Result<()> {
    let (before, began) = (daemon.cpu_time()?, Instant::now());
    std::thread::sleep(time);
    let part = (daemon.cpu_time()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let verdict = if part <= goal { "met" } else { "MISSED" };
    row(
        &format!("{how}: % of a core (goal: {:.0}, {verdict})", goal * 100.0),
        &format!("{:.2}", part * 100.0),
        "",
        "",
    );
    Ok(())
}

/// Leases of nodes that are not there, as flannel writes them.
pub fn write_peers(peers: usize) -> Result<()> {
    let options = EtcdOptions {
        endpoints: vec![etcd::ENDPOINT.to_owned()],
        insecure: true,
        ..EtcdOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let store = runtime.block_on(async { EtcdStore::connect(options) })?;
    let all: Vec<(String, String)> = (1..=peers).map(record).collect();
    all.chunks(BATCH)
        .try_for_each(|some| runtime.block_on(store.put_all(some)).map(drop))?;
    Ok(())
}

fn record(n: usize) -> (String, String) {
    let (high, low) = (n / 256, n % 256);
    let key = format!("/coreos.com/network/subnets/10.{high}.{low}.0-24");
    let value = format!(
        r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"8a:55:6f:00:{high:02x}:{low:02x}"}}}}"#
    );
    (key, value)
}

/// Memory of a process, in MiB.
struct Memory {
    now: f64,
    peak: f64,
    own: f64,
}

fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let clean = field(&smaps, "Private_Clean:")?;
    let dirty = field(&smaps, "Private_Dirty:")?;
    Ok(Memory {
        now: field(&status, "VmRSS:")?,
        peak: field(&status, "VmHWM:")?,
        own: clean + dirty,
    })
}

/// A field of /proc in kB, as MiB.
fn field(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {name}"))? / 1024.0)
}
