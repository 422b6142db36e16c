//! A network config that changes while nodes run.

use anyhow::{Result, ensure};
use flannel_lab::lab::CONFIG_KEY;
use flannel_lab::{Lab, LabOptions, Node, Pinger, eventually, limit};
use rustix::process::Signal;

use super::common::{lease_of, start_all};

const NETWORK: &str = r#""Network":"10.5.0.0/16""#;

pub fn changes_are_applied_or_wait_with_their_reason() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[])?;
    let (node, daemon) = (lab.node(1)?, &mut daemons[0]);
    let lease = lease_of(&lab, node)?;
    let pods = [node.add_pod("near")?, lab.node(2)?.add_pod("far")?];
    eventually(limit(5), "the first packet", || pods[0].ping(pods[1].ip()))?;
    let pinger = Pinger::start(&pods[0], &pods[1])?;

    // What can be changed is: no restart, no lost packet.
    put(&lab, r#""Backend":{"Type":"vxlan","MTU":1400,"Learning":true}"#)?;
    eventually(limit(10), "the new MTU", || {
        ensure!(device_mtu(node)? == 1350, "the device has {}", device_mtu(node)?);
        let env = node.subnet_env()?;
        ensure!(
            env.contains(&("FLANNEL_MTU".to_owned(), "1350".to_owned())),
            "{env:?}"
        );
        Ok(())
    })?;
    daemon.wait_log("Backend.MTU: that of the interface → 1400")?;

    // The rest waits, with its reason.
    put(
        &lab,
        r#""SubnetLen":26,"Backend":{"Type":"vxlan","MTU":1400,"Learning":true,"VNI":7}"#,
    )?;
    daemon.wait_log("waits for a restart of flanneld: Backend.VNI: 1 → 7")?;
    ensure!(
        daemon.log()?.contains("SubnetLen: 24 → 26"),
        "not all that waits is named"
    );
    eventually(limit(10), "the status", || {
        ensure!(
            daemon.notifications().contains("waits for a restart"),
            "{}",
            daemon.notifications()
        );
        Ok(())
    })?;

    // One that cannot be used, and none at all, change nothing.
    lab.etcd()
        .put(CONFIG_KEY, r#"{"Network":"10.5.0.0/16","SubnetLen":99}"#)?;
    daemon.wait_log("changed to one that cannot be used: SubnetLen is 99")?;
    lab.etcd().delete(CONFIG_KEY)?;
    daemon.wait_log("the network config was deleted")?;
    put(&lab, r#""Backend":{"Type":"vxlan","MTU":1400,"Learning":true}"#)?;
    daemon.wait_log("is the one that this node runs")?;

    let report = pinger.stop()?;
    ensure!(
        report.lost.is_empty(),
        "lost {} of {}",
        report.lost.len(),
        report.sent
    );
    ensure!(
        lease_of(&lab, node)?.entry.key == lease.entry.key,
        "another subnet"
    );
    Ok(())
}

pub fn hangup_reads_everything_anew() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let mut daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    let before = daemon.notifications().matches("READY=1").count();
    daemon.signal(Signal::HUP)?;
    daemon.wait_log("SIGHUP: the network config and the credentials are read anew")?;
    eventually(limit(5), "the service manager to be told", || {
        let told = daemon.notifications();
        ensure!(
            told.contains("RELOADING=1") && told.contains("MONOTONIC_USEC="),
            "{told}"
        );
        ensure!(told.matches("READY=1").count() > before, "{told}");
        Ok(())
    })?;
    daemon.check_running()?;
    // A daemon that still waits for its config is not ended by it either.
    let lab_key = lab.etcd().get(CONFIG_KEY)?;
    ensure!(lab_key.is_some(), "the config is gone");
    lab.etcd().delete(CONFIG_KEY)?;
    drop(daemon);
    let mut waiting = node.start_flanneld(&[])?;
    waiting.wait_log("no network config")?;
    waiting.signal(Signal::HUP)?;
    put(&lab, r#""Backend":{"Type":"vxlan"}"#)?;
    waiting.wait_ready()
}

fn put(lab: &Lab, rest: &str) -> Result<()> {
    lab.etcd().put(CONFIG_KEY, format!("{{{NETWORK},{rest}}}"))
}

fn device_mtu(node: &Node) -> Result<u64> {
    let links = node.ip_json(&["link", "show", "flannel.1"])?;
    Ok(links[0]["mtu"].as_u64().unwrap_or(0))
}
