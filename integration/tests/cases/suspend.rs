//! A host that sleeps. A sandbox cannot put the machine to sleep; what a daemon sees of it can be shown piece by piece: a boot-time clock
//! that is ahead of the monotonic one (a time namespace), and a process that did not run for longer than its lease lives (SIGSTOP).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::{Flanneld, Lab, LabOptions, Node, Pinger, eventually, limit};
use rustix::process::Signal;

use super::common::{await_ping, check_peers, lease_of, start_all};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const CACHE: &str = "/var/lib/flannel/peers.cache";
/// The lease of the default lifetime, 24 hours, is over after this one but not after that.
const LONG: &str = "108000";
const SHORT: &str = "3600";

/// After 30 hours asleep, without etcd, the lease is over by the boot-time clock although the monotonic clock shows some minutes: the data
/// path is there, but no pod is added. After one hour pods are added.
pub fn time_asleep_counts_for_the_lease() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[])?;
    let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let (own, other) = (lease_of(&lab, lab.node(1)?)?, lease_of(&lab, lab.node(2)?)?);
    let node = lab.node(1)?;
    let known = other.entry.key.rsplit('/').next().context("no key")?.to_owned();
    eventually(limit(20), "the peers on disk", || {
        ensure!(node.read_file(CACHE)?.contains(&known), "not there");
        Ok(())
    })?;
    let stream = Pinger::start(&near, &far)?;
    lab.etcd_mut().kill()?;
    daemons.remove(0).kill()?;
    let node = lab.node(1)?;
    node.shell(&format!("rm -f {SUBNET_FILE}"))?;

    let mut slept_long = asleep(node, LONG)?;
    slept_long.wait_log("the peers of the earlier run")?;
    throughout(Duration::from_secs(5), "a node that slept for 30 hours", || {
        ensure!(!node.file(SUBNET_FILE).exists(), "pods can be added");
        slept_long.check_running()
    })?;
    check_peers(node, &[&other])?;
    slept_long.kill()?;

    let slept_short = asleep(node, SHORT)?;
    eventually(limit(30), "pods to be added again", || {
        let text = node.read_file(SUBNET_FILE)?;
        ensure!(text.contains(&own.gateway()), "another subnet: {text}");
        Ok(())
    })?;
    check_peers(node, &[&other])?;
    drop(slept_short);
    let report = stream.stop()?;
    ensure!(report.sent >= 500 && report.lost.is_empty(), "lost: {report:?}");
    Ok(())
}

/// A flanneld whose boot-time clock is so many seconds ahead, as after a sleep of that length; its monotonic clock is not.
fn asleep(node: &Node, seconds: &str) -> Result<Flanneld> {
    Flanneld::start_under(node, &["unshare", "--time", "--boottime", seconds], &[])
}

/// A daemon that did not run for longer than its lease lives: the lease is gone from etcd meanwhile, and is this node's again at once when it
/// goes on. No pod loses a packet.
pub fn who_slept_longer_than_the_lease_takes_it_again() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let daemons = start_all(&lab, &["--subnet-lease-ttl=6s"])?;
    let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let before = lease_of(&lab, lab.node(1)?)?;
    let stream = Pinger::start(&near, &far)?;
    daemons[0].signal(Signal::STOP)?;
    eventually(limit(30), "the lease to expire", || {
        ensure!(lab.etcd().get(&before.entry.key)?.is_none(), "it is there");
        Ok(())
    })?;
    daemons[0].signal(Signal::CONT)?;
    eventually(limit(30), "the lease to be back", || {
        let now = lease_of(&lab, lab.node(1)?)?;
        ensure!(now.subnet == before.subnet, "another subnet: {now:?}");
        ensure!(lab.node(1)?.file(SUBNET_FILE).exists(), "no pod can be added");
        Ok(())
    })?;
    let report = stream.stop()?;
    ensure!(report.sent >= 500 && report.lost.is_empty(), "lost: {report:?}");
    Ok(())
}
