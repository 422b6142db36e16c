//! A wall clock that jumps.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::{Flanneld, Lab, LabOptions, Pinger, sandbox};

use super::common::{await_ping, lease_of, put_peer};

/// Says the time to whoever runs under libfaketime.
const WALL_CLOCK: &str = "/run/lab/scratch/wall-clock";

/// A year forth and a year back: the lease is renewed as before, and nobody notices.
pub fn a_jump_of_the_wall_clock_moves_nothing() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    ensure!(
        WALL_CLOCK.starts_with(sandbox::SCRATCH),
        "the file is not in the sandbox"
    );
    std::fs::write(WALL_CLOCK, "+0\n")?;
    let library = lab.operator().shell("ls /usr/lib/*/faketime/libfaketime.so.1")?;
    let variables = [
        ("LD_PRELOAD", library.trim()),
        ("FAKETIME_TIMESTAMP_FILE", WALL_CLOCK),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut daemons: Vec<Flanneld> = lab
        .nodes()
        .iter()
        .map(|node| Flanneld::start_with(node, &["--subnet-lease-ttl=9s"], &variables))
        .collect::<Result<_>>()?;
    daemons.iter_mut().try_for_each(Flanneld::wait_ready)?;
    let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let before = lease_of(&lab, lab.node(1)?)?;
    let stream = Pinger::start(&near, &far)?;
    for (number, jump) in ["+365d", "-365d"].into_iter().enumerate() {
        std::fs::write(WALL_CLOCK, format!("{jump}\n"))?;
        // What is logged now carries the date that the daemon sees.
        put_peer(
            &lab,
            &format!("10.5.20{number}.0-24"),
            "192.168.50.99",
            "02:00:00:00:00:99",
        )?;
        let month = lab.operator().shell(&format!(
            "date -u -d '{} days' +%Y-%m",
            jump.trim_end_matches('d')
        ))?;
        daemons[0].wait_log(month.trim())?;
        // Longer than a renewal of three seconds and its slack.
        throughout(Duration::from_secs(5), &format!("the lease at {jump}"), || {
            let now = lease_of(&lab, lab.node(1)?)?;
            ensure!(now.entry == before.entry, "{now:?}, before {before:?}");
            ensure!(lab.etcd().lease_ttl(now.entry.lease)? > 1, "it is not renewed");
            ensure!(
                lab.node(1)?.file("/run/flannel/subnet.env").exists(),
                "no pod can be added"
            );
            Ok(())
        })?;
    }
    let report = stream.stop()?;
    ensure!(report.sent >= 500 && report.lost.is_empty(), "lost: {report:?}");
    daemons
        .iter_mut()
        .try_for_each(Flanneld::check_running)
        .context("after the jumps")
}
