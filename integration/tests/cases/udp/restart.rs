//! The daemon ends and comes back under traffic.

use anyhow::{Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::{Pinger, Place, eventually, limit, sandbox};

use super::{two_nodes, udp_lab};
use crate::cases::common::await_ping;

/// Packets a second each way during restarts.
const RATE: u32 = 400;

pub fn restarts_lose_no_packet() -> Result<()> {
    let (lab, mut daemons, one, two) = two_nodes()?;
    let there = Pinger::at_rate(&one, &two, RATE)?;
    let back = Pinger::at_rate(&two, &one, RATE)?;
    let pause = std::time::Duration::from_secs(1);
    for round in 0..4 {
        let at = round % 2;
        let node = lab.node(at + 1)?;
        let daemon = daemons.remove(at);
        // A crash, and an upgrade: SIGTERM, then the new program.
        if round < 2 {
            daemon.kill()?;
        } else {
            ensure!(daemon.terminate()?.success(), "flanneld ended with an error");
        }
        std::thread::sleep(pause);
        daemons.insert(at, node.start_ready_flanneld(&["--ip-masq"])?);
        let log = daemons[at].log()?;
        ensure!(
            log.contains("taken over as they are"),
            "the descriptors were not taken over:\n{log}"
        );
        std::thread::sleep(pause);
    }
    for pinger in [there, back] {
        let report = pinger.stop()?;
        ensure!(
            report.lost.is_empty(),
            "{} of {} packets were lost: {:?}",
            report.lost.len(),
            report.sent,
            report.lost
        );
        ensure!(report.sent > 2000, "only {} packets were sent", report.sent);
    }
    Ok(())
}

/// As systemd does it: the descriptors are in the service manager, and no process of ours holds them.
pub fn a_service_manager_keeps_the_descriptors() -> Result<()> {
    let lab = udp_lab(2)?;
    let node = lab.node(1)?;
    let files = format!("{}/supervised", sandbox::SCRATCH);
    let (tool, flanneld) = (
        format!("{}/lab-tool", sandbox::BINARIES),
        format!("{}/flanneld", sandbox::BINARIES),
    );
    let endpoints = format!("--etcd-endpoints={}", flannel_lab::etcd::ENDPOINT);
    let argv = [
        tool.as_str(),
        "supervise",
        "1000",
        &files,
        &flanneld,
        &endpoints,
        "--etcd-insecure",
        "--ip-masq",
    ];
    let clean = Environment {
        clean: true,
        ..Environment::default()
    };
    let manager = node.spawn("manager", &argv, &clean)?;
    let ready = |times: usize| {
        eventually(limit(20), "flanneld below the manager", || {
            let said = std::fs::read_to_string(format!("{files}.said"))?;
            let found = said.lines().filter(|line| *line == "READY=1").count();
            ensure!(found >= times, "{said}\n{}", manager.log_text()?);
            Ok(())
        })
    };
    ready(1)?;
    let _other = lab.node(2)?.start_ready_flanneld(&["--ip-masq"])?;
    let (one, two) = (node.add_pod("one")?, lab.node(2)?.add_pod("two")?);
    await_ping(&one, two.ip())?;
    let folder = node.shell("ls /run/flannel")?;
    ensure!(
        !folder.contains("udp-descriptors"),
        "a holder beside the manager: {folder}"
    );
    let streams = [
        Pinger::at_rate(&one, &two, RATE)?,
        Pinger::at_rate(&two, &one, RATE)?,
    ];
    std::thread::sleep(std::time::Duration::from_millis(500));
    let pid = std::fs::read_to_string(format!("{files}.pid"))?;
    Place::sandbox().shell(&format!("kill -KILL {pid}"))?;
    ready(2)?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    for stream in streams {
        let report = stream.stop()?;
        ensure!(report.lost.is_empty(), "lost: {report:?}");
        ensure!(report.sent > 600, "only {} packets were sent", report.sent);
    }
    Ok(())
}
