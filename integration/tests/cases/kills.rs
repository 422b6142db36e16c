//! The daemon killed twenty times at random moments under a thousand packets a second: nothing is lost, nothing is left behind.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Node, Pinger, eventually, limit, sandbox};

use super::backend::Pair;

const KILLS: u32 = 20;
/// Packets a second.
const RATE: u32 = 1_000;
/// What a guest, with its one slow processor, may carry: the first at which it loses nothing by itself, while a program as large as the
/// daemon starts again and again.
const RATES_IN_GUEST: [u32; 4] = [1_000, 500, 250, 100];
/// How long each is tried, and how often a program starts meanwhile.
const TRIAL: Duration = Duration::from_millis(1_500);
const STARTS_IN_TRIAL: u32 = 5;
/// A kill comes at a random moment of this time after a start: sometimes before the daemon is ready, sometimes long after.
const LONGEST_LIFE: Duration = Duration::from_millis(900);

/// What the node has, without counters and timers. The order in which the kernel tells of it means nothing.
fn state(node: &Node) -> Result<String> {
    node.shell(
        "(ip -d link | sed 's/[a-z_]*timer *[0-9.]*//g'; ip -o address; ip -4 route show table all; ip -6 route show table all; \
         ip rule; ip neigh show nud permanent; bridge fdb; nft -s list ruleset; ls -A /run/flannel /var/lib/flannel) | sort",
    )
}

/// Peers that exist only in etcd: the first stays, the second vanishes while nobody looks.
const STAYS: &str = "10.5.253.0";
const VANISHES: &str = "10.5.254.0";

fn put_peer(pair: &Pair, subnet: &str, value: &str) -> Result<()> {
    pair.lab
        .etcd()
        .put(&format!("{SUBNETS_PREFIX}{subnet}-24"), value)
}

fn loses_nothing_in_twenty(backend: &str, peers: [&str; 2]) -> Result<()> {
    let mut pair = Pair::start(backend)?;
    put_peer(&pair, STAYS, peers[0])?;
    let settled = await_peer(&pair, STAYS)?;
    put_peer(&pair, VANISHES, peers[1])?;
    await_peer(&pair, VANISHES)?;
    let leases = pair.lab.etcd().list(SUBNETS_PREFIX)?;

    let rate = match std::env::var_os("LAB_GUEST") {
        Some(_) => carried(&pair)?,
        None => RATE,
    };
    println!("{rate} packets a second each way");
    let [one, two] = &pair.pods;
    let streams = [Pinger::at_rate(one, two, rate)?, Pinger::at_rate(two, one, rate)?];
    for _ in 0..KILLS {
        std::thread::sleep(random_life());
        pair.daemons.remove(0).kill()?;
        let daemon = pair.lab.node(1)?.start_flanneld(&["--ip-masq"])?;
        pair.daemons.insert(0, daemon);
    }
    // The last time a peer goes while the daemon is down.
    pair.daemons.remove(0).kill()?;
    pair.lab
        .etcd()
        .delete(&format!("{SUBNETS_PREFIX}{VANISHES}-24"))?;
    let daemon = pair.lab.node(1)?.start_ready_flanneld(&["--ip-masq"])?;
    pair.daemons.insert(0, daemon);
    for stream in streams {
        let report = stream.stop()?;
        ensure!(
            report.sent >= u64::from(KILLS) * u64::from(rate) / 10,
            "too few packets to mean anything: {report:?}"
        );
        ensure!(report.lost.is_empty(), "lost: {report:?}");
    }
    let node = pair.lab.node(1)?;
    eventually(
        limit(10),
        "the state of before, without the peer that vanished",
        || {
            let now = state(node)?;
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
            let (old, new) = (lines(&settled), lines(&now));
            let extra: Vec<_> = new.iter().filter(|line| !old.contains(line)).collect();
            let missing: Vec<_> = old.iter().filter(|line| !new.contains(line)).collect();
            ensure!(
                now == settled,
                "there is more: {extra:#?}, there is less: {missing:#?}"
            );
            Ok(())
        },
    )?;
    let after = pair.lab.etcd().list(SUBNETS_PREFIX)?;
    let values = |leases: &[flannel_lab::etcd::Entry]| {
        let kept = leases.iter().filter(|lease| !lease.key.contains(VANISHES));
        kept.map(|lease| (lease.key.clone(), lease.value.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        values(&leases),
        values(&after),
        "a subnet, an address or a key is another"
    );
    Ok(())
}

/// The rate at which no packet is lost although nobody is killed.
fn carried(pair: &Pair) -> Result<u32> {
    let [one, two] = &pair.pods;
    let mut lost = Vec::new();
    for rate in RATES_IN_GUEST {
        let streams = [Pinger::at_rate(one, two, rate)?, Pinger::at_rate(two, one, rate)?];
        for _ in 0..STARTS_IN_TRIAL {
            std::thread::sleep(TRIAL / STARTS_IN_TRIAL);
            let program = format!("{}/flanneld", sandbox::BINARIES);
            pair.lab.node(1)?.run(&[&program, "--version"])?;
        }
        let reports = streams
            .map(Pinger::stop)
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        if reports.iter().all(|report| report.lost.is_empty()) {
            return Ok(rate);
        }
        lost.extend(
            reports
                .iter()
                .map(|report| (rate, report.lost.len(), report.sent)),
        );
    }
    anyhow::bail!("packets are lost although nobody is killed: rate, lost, sent: {lost:?}")
}

/// Waits until node 1 knows the peer, and answers what it has then.
fn await_peer(pair: &Pair, subnet: &str) -> Result<String> {
    let node = pair.lab.node(1)?;
    eventually(limit(20), &format!("the peer {subnet}"), || {
        let known = node.shell("ip route show proto 70; wg show all allowed-ips 2>/dev/null || true")?;
        known.contains(subnet).then_some(()).context("not yet")?;
        let state = state(node)?;
        ensure!(!state.contains("tentative"), "addresses have not settled");
        ensure!(state.contains("peers.cache"), "the peers are not on disk yet");
        Ok(state)
    })
}

fn random_life() -> Duration {
    let nanos = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    LONGEST_LIFE * (nanos / 1_000 % 1_000) / 1_000
}

fn value(address: &str, rest: &str) -> String {
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,{rest}}}"#)
}

pub fn vxlan_loses_nothing_in_twenty() -> Result<()> {
    let peer = |last: u8| {
        let data = format!(
            r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"8a:00:00:00:00:{last:02x}"}}"#
        );
        value(&format!("192.168.50.{last}"), &data)
    };
    loses_nothing_in_twenty(r#"{"Type":"vxlan"}"#, [&peer(77), &peer(78)])
}

pub fn host_gw_loses_nothing_in_twenty() -> Result<()> {
    let peer = |address| value(address, r#""BackendType":"host-gw""#);
    loses_nothing_in_twenty(
        r#"{"Type":"host-gw"}"#,
        [&peer("192.168.50.77"), &peer("192.168.50.78")],
    )
}

pub fn ipip_loses_nothing_in_twenty() -> Result<()> {
    let peer = |address| value(address, r#""BackendType":"ipip""#);
    loses_nothing_in_twenty(
        r#"{"Type":"ipip"}"#,
        [&peer("192.168.50.77"), &peer("192.168.50.78")],
    )
}

pub fn wireguard_loses_nothing_in_twenty() -> Result<()> {
    let peer = |last: u8| {
        // Any 32 bytes are a public key.
        let key = format!("{:A<42}{last}=", "")
            .replace("77=", "g=")
            .replace("78=", "w=");
        let data = format!(r#""BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}}"#);
        value(&format!("192.168.50.{last}"), &data)
    };
    loses_nothing_in_twenty(r#"{"Type":"wireguard"}"#, [&peer(77), &peer(78)])
}
