//! etcd that is away, in the ways in which it can be: packets go on, nobody writes into the kernel, and all is made up for when
//! it is back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::lab::{CONFIG_KEY, DEFAULT_CONFIG, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pinger, Pod, Stillness, eventually, limit};
use rustix::process::Signal;

use super::common::{
    await_ping, await_route_everywhere, check_peers, lease_of, link, peer, programmed, put_peer, start_all,
};

/// How long each outage lasts.
const OUTAGE: Duration = Duration::from_secs(7);
/// Where flanneld keeps what it knew.
const CACHE: &str = "/var/lib/flannel/peers.cache";
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// A backup of etcd.
const BACKUP: &str = "/run/lab/scratch/backup";

/// Killed, frozen without a reset, slow, and with the one connection in use cut without a word.
pub fn packets_go_on_and_the_kernel_is_left_alone() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    let daemons = start_all(&lab, &[])?;
    let pods = pods(&lab)?;
    let stream = Pinger::start(&pods[0], &pods[1])?;
    let outages: [(&str, Outage); 3] = [("killed", killed), ("frozen", frozen), ("slow", slow)];
    for (number, (name, outage)) in outages.into_iter().enumerate() {
        let still = Stillness::watch(lab.node(1)?, &daemons[0])?;
        outage(&mut lab).with_context(|| format!("etcd {name}"))?;
        still.end().with_context(|| format!("while etcd was {name}"))?;
        is_followed_again(&lab, 200 + number, limit(30)).with_context(|| format!("after etcd was {name}"))?;
    }
    cut_the_connection(lab.node(1)?)?;
    is_followed_again(&lab, 210, limit(40)).context("after the connection was cut")?;
    lossless(stream)
}

/// Begins and ends an outage.
type Outage = fn(&mut Lab) -> Result<()>;

fn killed(lab: &mut Lab) -> Result<()> {
    lab.etcd_mut().kill()?;
    std::thread::sleep(OUTAGE);
    lab.etcd_mut().start()
}

fn frozen(lab: &mut Lab) -> Result<()> {
    lab.etcd().freeze()?;
    std::thread::sleep(OUTAGE);
    lab.etcd().thaw()
}

/// About two seconds a call.
fn slow(lab: &mut Lab) -> Result<()> {
    for _ in 0..4 {
        lab.etcd().freeze()?;
        std::thread::sleep(Duration::from_millis(1900));
        lab.etcd().thaw()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Drops every packet of the connections that a node has with etcd now; new ones work.
fn cut_the_connection(node: &Node) -> Result<()> {
    node.shell(
        "nft add table inet cut
         nft 'add chain inet cut in { type filter hook input priority -300; }'
         nft 'add chain inet cut out { type filter hook output priority -300; }'
         for port in $(ss -Htn state established dst 192.168.50.2:2379 | sed 's/.*192.168.50.11:\\([0-9]*\\) .*/\\1/'); do
           nft add rule inet cut in tcp dport $port drop
           nft add rule inet cut out tcp sport $port drop
         done
         nft list table inet cut | grep -q drop",
    )
    .map(drop)
}

/// A new peer comes through to both nodes.
fn is_followed_again(lab: &Lab, third: usize, within: Duration) -> Result<()> {
    let mac = format!("02:00:00:00:01:{third:02x}");
    let address = format!("192.168.50.{third}");
    eventually(limit(10), "etcd to take a record", || {
        put_peer(lab, &format!("10.5.{third}.0-24"), &address, &mac)
    })?;
    await_route_everywhere(lab, third, within)
}

/// A pod on each node, which reach each other.
fn pods(lab: &Lab) -> Result<Vec<Pod>> {
    let pods: Vec<Pod> = lab
        .nodes()
        .iter()
        .map(|node| node.add_pod(&format!("{}-pod", node.name())))
        .collect::<Result<_>>()?;
    await_ping(&pods[0], pods[1].ip())?;
    await_ping(&pods[1], pods[0].ip())?;
    Ok(pods)
}

fn lossless(stream: Pinger) -> Result<()> {
    let report = stream.stop()?;
    ensure!(report.sent >= 100, "too few packets to mean anything: {report:?}");
    ensure!(report.lost.is_empty(), "lost: {report:?}");
    Ok(())
}

/// A host that boots during an outage has its peers and adds pods, by what it keeps on disk.
pub fn a_host_that_boots_meanwhile_has_connectivity() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[])?;
    let far = lab.node(2)?.add_pod("far")?;
    let (own, other) = (lease_of(&lab, lab.node(1)?)?, lease_of(&lab, lab.node(2)?)?);
    put_peer(&lab, "10.5.201.0-32", "192.168.50.66", "02:00:00:00:00:66")?;
    await_cache(lab.node(1)?, &other.entry.key)?;
    ensure!(
        !cache(lab.node(1)?)?.contains("192.168.50.66"),
        "a rejected record is kept"
    );
    assert_eq!(lab.node(1)?.file_mode(CACHE)?, "600");

    lab.etcd_mut().kill()?;
    daemons.remove(0).kill()?;
    boot(lab.node(1)?)?;
    let mut booted = lab.node(1)?.start_ready_flanneld(&[])?;
    check_peers(lab.node(1)?, &[&other])?;
    assert_eq!(link(lab.node(1)?, "flannel.1")?["address"], own.vtep.as_str());
    ensure!(
        lab.node(1)?.read_file(SUBNET_FILE)?.contains(&own.gateway()),
        "another subnet"
    );
    ensure!(
        booted.notifications().contains("degraded"),
        "not said: {}",
        booted.notifications()
    );
    let near = lab.node(1)?.add_pod("near")?;
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let stream = Pinger::start(&near, &far)?;

    lab.etcd_mut().start()?;
    is_followed_again(&lab, 202, limit(30))?;
    assert_eq!(lease_of(&lab, lab.node(1)?)?.entry.key, own.entry.key);
    lossless(stream)?;
    booted.check_running()?;
    only_a_whole_cache_is_used(&mut lab, booted)
}

fn only_a_whole_cache_is_used(lab: &mut Lab, booted: Flanneld) -> Result<()> {
    lab.etcd_mut().kill()?;
    booted.kill()?;
    boot(lab.node(1)?)?;
    let node = lab.node(1)?;
    node.shell(&format!("sed -i 's/192.168.50.12/192.168.50.13/' {CACHE}"))?;
    let mut refusing = node.start_flanneld(&[])?;
    refusing.wait_log("checksum")?;
    throughout(Duration::from_secs(8), "a start with a damaged cache", || {
        ensure!(!refusing.is_ready(), "ready without etcd and without a cache");
        ensure!(
            !node.link_names()?.contains(&"flannel.1".to_owned()),
            "it made a device"
        );
        refusing.check_running()
    })?;
    lab.etcd_mut().start()?;
    refusing.wait_ready()
}

/// What a boot takes away.
fn boot(node: &Node) -> Result<()> {
    node.shell(
        "for d in flannel.1 cni0; do ip link del $d 2>/dev/null || true; done
         nft flush ruleset; rm -rf /run/flannel/* /run/netns/* 2>/dev/null || true
         echo 0 > /proc/sys/net/ipv4/ip_forward",
    )
    .map(drop)
}

fn cache(node: &Node) -> Result<String> {
    node.read_file(CACHE)
}

fn await_cache(node: &Node, key: &str) -> Result<()> {
    let key = key.trim_start_matches(SUBNETS_PREFIX);
    eventually(limit(20), "the peers on disk", || {
        ensure!(cache(node)?.contains(key), "not there");
        Ok(())
    })
}

/// Nobody knows whether the subnet is still this node's once its lease may be over: pods stay, none is added, also after a boot.
pub fn beyond_its_lifetime_a_lease_adds_no_pod() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &["--subnet-lease-ttl=8s"])?;
    let pods = pods(&lab)?;
    let other = lease_of(&lab, lab.node(2)?)?;
    await_cache(lab.node(1)?, &other.entry.key)?;
    let stream = Pinger::start(&pods[0], &pods[1])?;
    let began = Instant::now();
    lab.etcd_mut().freeze()?;
    let node = lab.node(1)?;
    eventually(limit(30), "subnet.env to go", || {
        ensure!(!node.file(SUBNET_FILE).exists(), "it is there");
        Ok(())
    })?;
    let elapsed = began.elapsed();
    ensure!(
        elapsed > Duration::from_secs(3),
        "given up after {elapsed:?} of 8 s"
    );
    daemons.remove(0).kill()?;
    let again = node.start_flanneld(&["--subnet-lease-ttl=8s"])?;
    throughout(
        Duration::from_secs(9),
        "a start beyond the lease's lifetime",
        || {
            ensure!(!node.file(SUBNET_FILE).exists(), "pods could be added");
            Ok(())
        },
    )?;
    check_peers(node, &[&other])?;
    lossless(stream)?;
    lab.etcd().thaw()?;
    eventually(limit(30), "subnet.env to come back", || {
        ensure!(lab.node(1)?.file(SUBNET_FILE).exists(), "it is not there");
        Ok(())
    })?;
    drop(again);
    Ok(())
}

/// Compacted past our revision, wiped, restored from an older backup: nobody loses a packet or his subnet.
pub fn a_store_that_went_back_or_forgot_takes_nothing_away() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    put_peer(&lab, "10.5.220.0-24", "192.168.50.120", "02:00:00:00:02:20")?;
    lab.etcd().back_up(BACKUP)?;
    lab.etcd().delete(&format!("{SUBNETS_PREFIX}10.5.220.0-24"))?;
    let flags = ["--etcd-reset-grace=10s", "--peer-delete-hold=1s"];
    let daemons = start_all(&lab, &flags)?;
    let pods = pods(&lab)?;
    let subnets = subnets(&lab)?;
    let stream = Pinger::start(&pods[0], &pods[1])?;
    compacted(&mut lab, &daemons[0])?;
    restored(&mut lab, &subnets)?;
    wiped(&mut lab, &subnets)?;
    lossless(stream)
}

fn subnets(lab: &Lab) -> Result<Vec<String>> {
    let of = |node| Ok(lease_of(lab, node)?.subnet);
    lab.nodes().iter().map(of).collect()
}

/// A changed value is found by the new list as well as an absent key.
fn compacted(lab: &mut Lab, daemon: &Flanneld) -> Result<()> {
    put_peer(lab, "10.5.221.0-24", "192.168.50.121", "02:00:00:00:02:21")?;
    put_peer(lab, "10.5.222.0-24", "192.168.50.122", "02:00:00:00:02:22")?;
    let other = lease_of(lab, lab.node(2)?)?;
    let (first, second) = (
        peer("10.5.221.0/24", "192.168.50.121", "02:00:00:00:02:21"),
        peer("10.5.222.0/24", "192.168.50.122", "02:00:00:00:02:22"),
    );
    eventually(limit(20), "both peers", || {
        check_peers(lab.node(1)?, &[&other, &first, &second])
    })?;
    daemon.signal(Signal::STOP)?;
    for number in 0..20 {
        put_peer(
            lab,
            "10.5.221.0-24",
            "192.168.50.123",
            &format!("02:00:00:00:03:{number:02}"),
        )?;
    }
    lab.etcd().delete(&format!("{SUBNETS_PREFIX}10.5.222.0-24"))?;
    // A new etcd process, so that nothing waits in the connection.
    lab.etcd_mut().stop()?;
    lab.etcd_mut().start()?;
    lab.etcd().compact()?;
    daemon.signal(Signal::CONT)?;
    let changed = peer("10.5.221.0/24", "192.168.50.123", "02:00:00:00:03:19");
    let both = [&other, &changed];
    eventually(limit(40), "what happened meanwhile", || {
        check_peers(lab.node(1)?, &both)
    })?;
    lab.etcd().delete(&format!("{SUBNETS_PREFIX}10.5.221.0-24"))
}

/// The backup knows nothing of the nodes, and a peer that left long ago.
fn restored(lab: &mut Lab, subnets: &[String]) -> Result<()> {
    lab.etcd_mut().stop()?;
    lab.etcd().restore(BACKUP)?;
    lab.etcd_mut().start()?;
    came_back(lab, subnets).context("after the restore")
}

fn wiped(lab: &mut Lab, subnets: &[String]) -> Result<()> {
    lab.etcd_mut().kill()?;
    lab.etcd().wipe()?;
    lab.etcd_mut().start()?;
    came_back(lab, subnets).context("after the wipe")?;
    lab.etcd().put(CONFIG_KEY, DEFAULT_CONFIG)?;
    is_followed_again(lab, 230, limit(30))
}

/// Every node registers again under the subnet that it has, and the routes to it stay meanwhile.
fn came_back(lab: &Lab, before: &[String]) -> Result<()> {
    let route = format!(
        "route {} via {} onlink",
        before[1],
        before[1].trim_end_matches("/24")
    );
    eventually(limit(60), "both nodes to register again", || {
        let there = programmed(lab.node(1)?)?.contains(&route);
        ensure!(there, "node1 dropped the route to node2");
        let now = subnets(lab)?;
        ensure!(now == before, "{now:?}, before {before:?}");
        Ok(())
    })
}
