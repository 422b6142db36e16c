//! How long until what somebody deleted is back: one object of each kind, and the device with all that was on it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Lab, LabOptions, limit};
use flannel_model::{IpFamily, Mac};
use flannel_netlink::monitor::Change;
use flannel_netlink::nftables::{self, delete_table};
use flannel_netlink::route::{Filter, Route, RouteKind};
use flannel_netlink::{Netns, OUR_PROTOCOL, RouteConn, fdb, link, neighbour, route};

use crate::kernel_changes::Changes;
use crate::leases::daemon::write_peers;
use crate::stats::Series;
use crate::table;

const PEERS: usize = 1_000;
/// Deletions of each kind of object. Each is of another peer: who deletes one object again and again is given way to.
const SINGLE: usize = 300;
const TABLES: usize = 20;
/// Writes to each setting of the device; with the deletions of the device after them, too few for a fight.
const WRITES: usize = 3;
/// Settings of the device, below /proc/sys/net.
const SETTINGS: [&str; 4] = [
    "ipv6/conf/flannel.1/accept_ra",
    "ipv6/conf/flannel.1/accept_redirects",
    "ipv4/conf/flannel.1/accept_redirects",
    "ipv4/conf/flannel.1/send_redirects",
];
const DEVICES: usize = 6;
/// Between two deletions.
const PAUSE: Duration = Duration::from_millis(20);
const DEVICE: &str = "flannel.1";
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
/// Upper ends of the histogram's classes, in microseconds.
const CLASSES: [u64; 9] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, u64::MAX];

/// The node as this suite reaches into it.
struct Scene {
    namespace: Netns,
    conn: RouteConn,
    changes: Changes,
    ifindex: u32,
}

/// Runs the suite.
pub fn run() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).config(CONFIG))?;
    write_peers(PEERS)?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    let namespace = Netns::open(format!("/run/netns/{}", node.name()))?;
    let mut scene = Scene {
        conn: namespace.connect()?,
        namespace,
        changes: Changes::watch(node)?,
        ifindex: 0,
    };
    scene.whole(limit(60))?;
    table::heading_ours(&format!("back after it was deleted, {PEERS} peers"));
    let mut histogram = BTreeMap::new();
    for (name, kind) in [
        ("route", Scene::route as fn(&mut Scene, usize) -> Result<Duration>),
        ("neighbour", Scene::neighbour),
        ("FDB entry", Scene::fdb),
    ] {
        let mut times = Vec::new();
        for n in 0..SINGLE {
            times.push(kind(&mut scene, 1 + n).with_context(|| format!("{name} of peer {}", 1 + n))?);
            std::thread::sleep(PAUSE);
        }
        histogram.insert(name, classes(&times));
        told(name, times, Some(Duration::from_millis(1)), Some(10.0));
    }
    for name in ["flannel-ipv4", "flannel-encap"] {
        let times = repeated(TABLES, || scene.table(name))?;
        told(&format!("nftables table ip {name}"), times, None, Some(100.0));
    }
    let mut times = Vec::new();
    for setting in SETTINGS {
        times.extend(repeated(WRITES, || scene.setting(setting))?);
    }
    told("setting (sysctl)", times, None, Some(100.0));
    let times = repeated(DEVICES, || scene.device())?;
    told(
        "device, with all peers",
        times,
        Some(Duration::from_millis(500)),
        None,
    );
    show(&histogram);
    Ok(())
}

fn repeated(times: usize, mut once: impl FnMut() -> Result<Duration>) -> Result<Vec<Duration>> {
    let once = |_| {
        std::thread::sleep(PAUSE);
        once()
    };
    (0..times).map(once).collect()
}

fn told(name: &str, times: Vec<Duration>, median: Option<Duration>, high: Option<f64>) {
    let series = Series::new(times);
    table::ours(name, &series, median);
    if high.is_some() {
        let value = series.percentile(99).unwrap_or_default();
        table::most("  its 99th percentile", value.as_secs_f64() * 1e3, "ms", high);
    }
}

fn classes(times: &[Duration]) -> [usize; CLASSES.len()] {
    let mut counts = [0; CLASSES.len()];
    for time in times {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(at) = CLASSES.iter().position(|end| micros <= *end) {
            counts[at] += 1;
        }
    }
    counts
}

fn show(histogram: &BTreeMap<&str, [usize; CLASSES.len()]>) {
    println!("\n-- histogram: how many were back within");
    print!("{:<12}", "");
    for end in CLASSES {
        match end {
            u64::MAX => print!(" {:>8}", "more"),
            end => print!(" {:>8}", format!("{} ms", end as f64 / 1e3)),
        }
    }
    println!();
    for (name, counts) in histogram {
        print!("{name:<12}");
        for count in counts {
            print!(" {count:>8}");
        }
        println!();
    }
}

/// Subnet, address and VTEP of a peer, as the leases have them.
fn peer(n: usize) -> Result<([u8; 4], [u8; 4], Mac)> {
    let (high, low) = (u8::try_from(n / 256)?, u8::try_from(n % 256)?);
    let mac: Mac = format!("8a:55:6f:00:{high:02x}:{low:02x}").parse()?;
    Ok(([10, high, low, 0], [172, 16, high, low], mac))
}

impl Scene {
    fn route(&mut self, n: usize) -> Result<Duration> {
        let (subnet, _, _) = peer(n)?;
        let destination = flannel_model::IpSubnet::around(subnet.into(), 24).context("no subnet")?;
        let route = Route::via_onlink(destination, subnet, self.ifindex);
        self.changes.forget();
        let begin = Instant::now();
        self.conn.run(&route::delete(&route))?;
        let back = |change: &Change| matches!(change, Change::Route { route, deleted: false } if route.destination == destination);
        Ok(self.changes.next(limit(20), back)? - begin)
    }

    fn neighbour(&mut self, n: usize) -> Result<Duration> {
        let (subnet, _, mac) = peer(n)?;
        let address = std::net::IpAddr::from(subnet);
        self.changes.forget();
        let begin = Instant::now();
        self.conn.run(&neighbour::delete(self.ifindex, address))?;
        let back = |change: &Change| {
            matches!(change, Change::Neighbour { neighbour, deleted: false }
                if neighbour.address == address && neighbour.permanent && neighbour.mac == Some(mac))
        };
        Ok(self.changes.next(limit(20), back)? - begin)
    }

    fn fdb(&mut self, n: usize) -> Result<Duration> {
        let (_, public_ip, mac) = peer(n)?;
        self.changes.forget();
        let begin = Instant::now();
        self.conn.run(&fdb::delete(self.ifindex, mac, public_ip))?;
        let back =
            |change: &Change| matches!(change, Change::Fdb { entry, deleted: false } if entry.mac == mac);
        Ok(self.changes.next(limit(20), back)? - begin)
    }

    fn table(&mut self, name: &str) -> Result<Duration> {
        let within = limit(30);
        self.namespace.run(|| {
            let family = nftables::Family::Ipv4;
            let begin = Instant::now();
            nftables::commit(family, &delete_table(name), "delete a table of ours")?;
            while !nftables::has_table(family, name)? {
                ensure!(begin.elapsed() < within, "table {name} does not come back");
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(begin.elapsed())
        })?
    }

    fn setting(&mut self, name: &str) -> Result<Duration> {
        let within = limit(30);
        self.namespace.run(|| {
            let file = format!("/proc/sys/net/{name}");
            let begin = Instant::now();
            std::fs::write(&file, "1")?;
            while std::fs::read_to_string(&file)?.trim() != "0" {
                ensure!(begin.elapsed() < within, "{file} does not come back");
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(begin.elapsed())
        })?
    }

    fn device(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        self.conn.run(&link::delete(DEVICE))?;
        self.whole(limit(60))?;
        Ok(begin.elapsed())
    }

    /// Waits until the device is there with every peer.
    fn whole(&mut self, within: Duration) -> Result<()> {
        let end = Instant::now() + within;
        while !self.is_whole()? {
            ensure!(Instant::now() < end, "not every peer is there");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn is_whole(&mut self) -> Result<bool> {
        let Some(device) = link::by_name(&mut self.conn, DEVICE)? else {
            return Ok(false);
        };
        self.ifindex = device.ifindex;
        let filter = Filter {
            family: IpFamily::V4,
            kind: Some(RouteKind::Unicast),
            protocol: Some(OUR_PROTOCOL),
            ..Filter::default()
        };
        let routes = route::dump(&mut self.conn, &filter)?.len();
        // A device that goes meanwhile is not whole.
        let (Ok(neighbours), Ok(entries)) = (
            neighbour::dump(&mut self.conn, IpFamily::V4, self.ifindex),
            fdb::dump(&mut self.conn, self.ifindex),
        ) else {
            return Ok(false);
        };
        let neighbours = neighbours.iter().filter(|neighbour| neighbour.permanent).count();
        Ok(device.up && routes == PEERS && neighbours == PEERS && entries.len() >= PEERS)
    }
}
