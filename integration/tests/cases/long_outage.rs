//! An outage that is longer than every deadline, back-off and keep-alive: a minute and more, under traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Flanneld, Lab, LabOptions, Pinger, Stillness, eventually, limit};

use super::common::{await_ping, await_route_everywhere, lease_of, put_peer, start_all};

/// Longer than the longest pause between two tries, and than the two silences of 20 s after which a watch is given up. Unless
/// [`SECONDS_VARIABLE`] says another number of seconds, of 65 to 3,600.
const OUTAGE: Duration = Duration::from_secs(65);
const SECONDS_VARIABLE: &str = "LAB_OUTAGE_SECONDS";
/// Of this, what is away is frozen, so that connections stand and nothing answers; before, nobody listens.
const FROZEN: Duration = Duration::from_secs(25);
/// An outage is said once by each of those who follow etcd, not at every try.
const LINES: usize = 15;

fn outage() -> Result<Duration> {
    let Ok(text) = std::env::var(SECONDS_VARIABLE) else {
        return Ok(OUTAGE);
    };
    let seconds = text.parse().ok().filter(|seconds| (65..=3_600).contains(seconds));
    let seconds = seconds
        .with_context(|| format!("{SECONDS_VARIABLE} is {text:?}; expected a number of 65 to 3600"))?;
    Ok(Duration::from_secs(seconds))
}

/// What the case may take beside the outage itself, in seconds.
const AROUND: u64 = 175;

/// The case's time limit in seconds; an outage that cannot be read is what the case itself fails by.
pub fn seconds() -> u64 {
    AROUND + outage().unwrap_or(OUTAGE).as_secs()
}

/// No packet is lost, no kernel is written to, no daemon tries without a pause, and each says little. Then the lease is what it
/// was, and a new peer is seen within seconds.
pub fn a_minute_and_more_is_not_felt() -> Result<()> {
    let outage = outage()?;
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    // Renewed within the outage, so that renewals fail as well, and good for long enough to go on adding pods.
    let lifetime = format!("--subnet-lease-ttl={}s", outage.as_secs() * 3);
    let mut daemons = start_all(&lab, &[&lifetime])?;
    let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let before = [lease_of(&lab, lab.node(1)?)?, lease_of(&lab, lab.node(2)?)?];
    let env = subnet_env(&lab)?;
    let streams = [Pinger::start(&near, &far)?, Pinger::start(&far, &near)?];
    let said = lines(&daemons)?;
    let watches = [
        Stillness::watch(lab.node(1)?, &daemons[0])?,
        Stillness::watch(lab.node(2)?, &daemons[1])?,
    ];

    let began = Instant::now();
    lab.etcd_mut().kill()?;
    std::thread::sleep(outage - FROZEN);
    ensure!(began.elapsed() < outage, "the machine stood still");
    lab.etcd_mut().start()?;
    lab.etcd().freeze()?;
    std::thread::sleep(FROZEN);
    for (still, node) in watches.into_iter().zip(lab.nodes()) {
        still.end().with_context(|| format!("on {}", node.name()))?;
    }
    daemons.iter_mut().try_for_each(Flanneld::check_running)?;
    ensure!(subnet_env(&lab)? == env, "subnet.env was written");
    let more = lines(&daemons)?.saturating_sub(said);
    ensure!(
        more <= 2 * LINES,
        "{more} lines in the logs:\n{}",
        daemons[0].log()?
    );

    lab.etcd().thaw()?;
    eventually(limit(10), "etcd to take a record", || {
        put_peer(&lab, "10.5.200.0-24", "192.168.50.200", "02:00:00:00:02:00")
    })?;
    await_route_everywhere(&lab, 200, limit(30))?;
    for (lease, node) in before.iter().zip(lab.nodes()) {
        let now = lease_of(&lab, node)?.entry;
        ensure!(now == lease.entry, "{now:?}, before {lease:?}");
    }
    for stream in streams {
        let report = stream.stop()?;
        ensure!(
            report.sent >= 5000,
            "too few packets to mean anything: {report:?}"
        );
        ensure!(report.lost.is_empty(), "lost: {report:?}");
    }
    Ok(())
}

/// The text and the time of the last write of both nodes' files.
fn subnet_env(lab: &Lab) -> Result<Vec<(String, std::time::SystemTime)>> {
    let file = |node: &flannel_lab::Node| {
        let path = node.file("/run/flannel/subnet.env");
        let text = std::fs::read_to_string(&path)?;
        Ok((text, std::fs::metadata(&path)?.modified()?))
    };
    lab.nodes().iter().map(file).collect()
}

fn lines(daemons: &[Flanneld]) -> Result<usize> {
    daemons
        .iter()
        .map(|daemon| Ok(daemon.log()?.lines().count()))
        .sum()
}
