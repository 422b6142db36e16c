//! What a daemon makes of flags, a configuration, records and an etcd that are not as they should be.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::lab::{CONFIG_KEY, DEFAULT_CONFIG, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Lab, LabOptions, eventually, http, limit, notify};

use super::common::{check_peers, count, lease_of, leases, list, peer, programmed, put_peer, start_all};

pub fn unknown_and_unbuilt_flags_are_refused() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    for (flag, said) in [
        ("--no-such-flag", "no-such-flag"),
        ("--kube-subnet-mgr", "kube-subnet-mgr"),
        ("--healthz-port=x", "healthz-port"),
    ] {
        let mut daemon = lab.node(1)?.start_flanneld(&[flag])?;
        let status = daemon.wait_exit()?;
        ensure!(!status.success(), "{flag}: ended with {status}");
        ensure!(
            daemon.log()?.contains(said),
            "{flag}: does not name it: {}",
            daemon.log()?
        );
    }
    ensure!(leases(&lab)?.is_empty(), "a refused start left a lease");
    Ok(())
}

pub fn missing_config_is_waited_for() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).without_config())?;
    let mut daemon = lab.node(1)?.start_flanneld(&[])?;
    daemon.wait_log(CONFIG_KEY)?;
    throughout(Duration::from_secs(3), "waiting", || daemon.check_running())?;
    let said = count(&daemon.log()?, CONFIG_KEY);
    ensure!(
        said == 1,
        "a missing configuration was said {said} times in three seconds"
    );
    ensure!(!daemon.is_ready(), "ready without a network configuration");
    lab.etcd().put(CONFIG_KEY, DEFAULT_CONFIG)?;
    daemon.wait_ready()
}

pub fn bad_config_is_explained_by_field() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).config("{\"Network\": 10.5"))?;
    let mut daemon = lab.node(1)?.start_flanneld(&[])?;
    daemon.wait_log(CONFIG_KEY)?;
    let several = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0","SubnetMax":"10.5.0.1","Backend":{"Type":"vxlan"}}"#;
    lab.etcd().put(CONFIG_KEY, several)?;
    daemon.wait_log("SubnetMin")?;
    let log = daemon.log()?;
    let line = log.lines().find(|l| l.contains("SubnetMin")).unwrap_or_default();
    ensure!(line.contains("SubnetMax"), "not all errors at once: {log}");
    lab.etcd().put(
        CONFIG_KEY,
        r#"{"Network":"10.5.0.0/29","Backend":{"Type":"vxlan"}}"#,
    )?;
    daemon.wait_log("/28")?;
    ensure!(
        !daemon.is_ready() && leases(&lab)?.is_empty(),
        "a bad configuration was used"
    );
    lab.etcd().put(CONFIG_KEY, DEFAULT_CONFIG)?;
    daemon.wait_ready()
}

pub fn etcd_away_at_start_is_waited_for() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(1).without_etcd())?;
    let mut daemon = lab.node(1)?.start_flanneld(&[])?;
    daemon.wait_log("192.168.50.2:2379")?;
    throughout(Duration::from_secs(2), "waiting for etcd", || {
        daemon.check_running()
    })?;
    lab.etcd_mut().start()?;
    lab.etcd().put(CONFIG_KEY, DEFAULT_CONFIG)?;
    daemon.wait_ready()
}

/// While etcd is away nothing is taken back; when it is there again, what happened meanwhile is made up for.
pub fn etcd_away_later_changes_nothing() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[])?;
    let before = programmed(lab.node(1)?)?;
    lab.etcd_mut().kill()?;
    throughout(Duration::from_secs(5), "the peers while etcd is away", || {
        ensure!(programmed(lab.node(1)?)? == before, "they changed");
        daemons.iter_mut().try_for_each(Flanneld::check_running)
    })?;
    lab.etcd_mut().start()?;
    put_peer(&lab, "10.5.200.0-24", "192.168.50.99", "02:00:00:00:00:63")?;
    eventually(limit(30), "the new peer", || {
        let route = "route 10.5.200.0/24 via 10.5.200.0 onlink";
        ensure!(programmed(lab.node(1)?)?.contains(route), "not there");
        Ok(())
    })
}

/// Each of these makes a real flanneld drop every peer, steal an address or route the world to a stranger.
pub fn hostile_records_harm_nobody() -> Result<()> {
    // the real nodes take subnets among the first hundred, so that no record beyond them replaces theirs
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[])?;
    let node = lab.node(1)?;
    let (own, other) = (lease_of(&lab, node)?, lease_of(&lab, lab.node(2)?)?);
    let routes = node.ip_json(&["route", "show"])?;
    let own_half = format!("{}-25", own.base());
    let junk = "x".repeat(1024 * 1024);
    let bad_keys = [
        "0.0.0.0-0",
        "10.5.209.0-32",
        own_half.as_str(),
        "192.168.50.0-24",
        "10.5.210.0-24/meta",
        "foo",
    ];
    for key in bad_keys {
        put_peer(&lab, key, "192.168.50.66", "02:00:00:00:00:66")?;
    }
    put_peer(&lab, "10.5.211.0-24", node.address(), "02:00:00:00:00:67")?;
    put_peer(&lab, "10.5.212.0-24", "not an address", "02:00:00:00:00:68")?;
    put_peer(&lab, "10.5.213.0-24", "192.168.50.69", "ff:ff:ff:ff:ff:ff")?;
    for (key, value) in [
        ("10.5.214.0-24", junk.as_str()),
        ("10.5.215.0-24", "{"),
        ("10.5.216.0-24", ""),
    ] {
        lab.etcd().put(&format!("{SUBNETS_PREFIX}{key}"), value)?;
    }
    // Good ones before and after show that all of the bad ones have been looked at.
    put_peer(&lab, "10.5.250.0-24", "192.168.50.70", "02:00:00:00:00:70")?;
    let good = [
        &other,
        &peer("10.5.250.0/24", "192.168.50.70", "02:00:00:00:00:70"),
    ];
    eventually(limit(10), "the good peers and nothing else", || {
        check_peers(node, &good)
    })?;
    throughout(Duration::from_secs(2), "the good peers and nothing else", || {
        check_peers(node, &good)
    })?;
    for key in ["0.0.0.0-0", "10.5.209.0-32", "10.5.214.0-24", "10.5.215.0-24"] {
        daemons[0].wait_log(key)?;
    }
    ensure!(
        !daemons[0].log()?.contains("xxxxxxxxxx".repeat(100).as_str()),
        "a megabyte of junk is in the log"
    );
    let others = |routes: &serde_json::Value| {
        list(routes)
            .into_iter()
            .filter(|r| r["dev"] != "flannel.1")
            .collect::<Vec<_>>()
    };
    assert_eq!(
        others(&node.ip_json(&["route", "show"])?),
        others(&routes),
        "a route of the node's own moved"
    );
    restart_among(&lab, daemons.remove(0), &own.subnet)
}

/// A start among the same records finds its own lease, not the stranger's claim.
fn restart_among(lab: &Lab, daemon: Flanneld, subnet: &str) -> Result<()> {
    daemon.kill()?;
    let node = lab.node(1)?;
    let _again = node.start_ready_flanneld(&[])?;
    let file = node.read_file("/run/flannel/subnet.env")?;
    ensure!(
        file.contains(&subnet.replace(".0/24", ".1/24")),
        "after the restart: {file}"
    );
    Ok(())
}

pub fn last_subnet_goes_to_one() -> Result<()> {
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0","Backend":{"Type":"vxlan"}}"#;
    let lab = Lab::new(&LabOptions::nodes(2).config(config))?;
    let mut daemons: Vec<Flanneld> = lab
        .nodes()
        .iter()
        .map(|n| n.start_flanneld(&[]))
        .collect::<Result<_>>()?;
    let winner = eventually(limit(20), "one of the two to be ready", || {
        match (daemons[0].is_ready(), daemons[1].is_ready()) {
            (true, false) => Ok(0),
            (false, true) => Ok(1),
            both => bail!("ready: {both:?}"),
        }
    })?;
    let loser = 1 - winner;
    daemons[loser].wait_log("exhausted")?;
    throughout(Duration::from_secs(8), "the one that got none", || {
        ensure!(!daemons[loser].is_ready(), "ready without a subnet");
        daemons[loser].check_running()
    })?;
    // several retries lie behind it, and etcd answered all of them
    let log = daemons[loser].log()?;
    ensure!(count(&log, "exhausted") == 1, "said at every retry: {log}");
    ensure!(!log.contains("etcd answers again"), "etcd was never away: {log}");
    assert_eq!(lease_of(&lab, &lab.nodes()[winner])?.subnet, "10.5.7.0/24");
    let first = daemons.remove(winner);
    ensure!(first.terminate()?.success(), "SIGTERM is a clean end");
    lab.etcd().delete_prefix(SUBNETS_PREFIX)?;
    daemons[0].wait_ready()?;
    assert_eq!(lease_of(&lab, &lab.nodes()[loser])?.subnet, "10.5.7.0/24");
    Ok(())
}

/// A service manager that hangs takes a few messages and then no more: the network must not wait for it.
pub fn hanging_service_manager_stalls_nothing() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let (_unread, path) = notify::bind("hanging")?;
    let mut daemon = Flanneld::start_with(
        node,
        &["--healthz-port=9009"],
        &[("NOTIFY_SOCKET", path.as_str())],
    )?;
    eventually(limit(10), "/readyz", || {
        let (code, body) = http::get(&format!("{}:9009", node.address()), "/readyz")?;
        ensure!(code == 200, "{code} {body}");
        Ok(())
    })?;
    // each one changes the status line
    for number in 0..100 {
        put_peer(
            &lab,
            &format!("10.5.{number}.0-32"),
            "192.168.50.70",
            "02:00:00:00:00:70",
        )?;
    }
    put_peer(&lab, "10.5.50.0-24", "192.168.50.70", "02:00:00:00:00:70")?;
    let last = peer("10.5.50.0/24", "192.168.50.70", "02:00:00:00:00:70");
    eventually(limit(10), "the peer that came last", || {
        check_peers(node, &[&last])
    })?;
    daemon.check_running()?;
    ensure!(daemon.terminate()?.success(), "SIGTERM is a clean end");
    Ok(())
}
