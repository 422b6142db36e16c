//! Single records that come, change and go: what is written for each by itself is what a look at everything asks for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Flanneld, Lab, LabOptions, eventually, limit};
use rustix::process::Signal;

use super::common::{lease_of, programmed, put_peer};

/// Passes and what is written without one, and nothing of single peers.
const LOG: (&str, &str) = ("RUST_LOG", "info,flanneld::pass=debug");
const SEEDS: [u64; 2] = [3, 11];
const STEPS: usize = 60;
/// Subnets that come and go.
const SUBNETS: u64 = 6;

/// Everybody has an address and a station of their own: nobody is looked at but who changed.
pub fn who_meets_nobody_is_written_without_a_pass() -> Result<()> {
    history(
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
        |n, random| {
            let address = format!("172.16.{n}.{}", 1 + random % 3);
            (address, format!("02:00:00:00:{n:02x}:{:02x}", random / 3 % 3))
        },
        true,
    )
}

/// Some have the station of others, some are reached without the tunnel and some change over.
pub fn who_meets_others_is_written_as_well() -> Result<()> {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    history(
        config,
        |_, random| {
            let link = if random & 1 == 0 { "192.168.50" } else { "172.16.9" };
            let address = format!("{link}.{}", 100 + random / 2 % 4);
            (address, format!("02:00:00:00:00:{:02x}", random / 8 % 24))
        },
        false,
    )
}

/// `says` gives public address and station of a subnet's node, from a random number.
fn history(config: &str, says: impl Fn(u64, u64) -> (String, String), alone: bool) -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).config(config))?;
    let node = lab.node(1)?;
    let mut daemon = Flanneld::start_with(node, &["--peer-delete-hold=1s"], &[LOG])?;
    daemon.wait_ready()?;
    let own = lease_of(&lab, node)?.subnet;
    // Out of the way of the node's own subnet.
    let third: u64 = own.split('.').nth(2).context("no third number")?.parse()?;
    let first = if third < 128 { 140 } else { 20 };
    for seed in SEEDS {
        let mut random = seed;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let passes = passes(&daemon)?.len();
        for _ in 0..STEPS {
            let n = first + next() % SUBNETS;
            let key = format!("10.5.{n}.0-24");
            if next() % 3 == 0 {
                lab.etcd().delete(&format!("{SUBNETS_PREFIX}{key}"))?;
            } else {
                let (address, mac) = says(n, next() % 997);
                put_peer(&lab, &key, &address, &mac)?;
            }
            std::thread::sleep(Duration::from_millis(next() % 40));
        }
        // Events come in their order: what is behind all others is there when all are.
        let last = format!("10.5.{}.0", first + 50 + seed);
        put_peer(
            &lab,
            &format!("{last}-24"),
            &format!("172.16.240.{seed}"),
            &format!("02:00:00:00:f0:{seed:02x}"),
        )?;
        // A peer that was deleted just now leaves a second later.
        std::thread::sleep(Duration::from_millis(1500));
        eventually(limit(20), "the last peer", || {
            let route = format!("route {last}/24 via {last} onlink");
            ensure!(programmed(node)?.contains(&route), "no {route}");
            Ok(())
        })?;
        let meanwhile = self::passes(&daemon)?.len() - passes;
        ensure!(
            !alone || meanwhile <= STEPS / 6,
            "{meanwhile} passes over the kernel for {STEPS} single changes"
        );
        agrees(&daemon)?;
    }
    let few = daemon.log()?.matches("single peers are written").count();
    let least = if alone { STEPS / 6 } else { 1 };
    ensure!(few >= least, "only {few} changes were written by themselves");
    daemon.check_running()
}

/// The first pass over everything finds nothing to write.
fn agrees(daemon: &Flanneld) -> Result<()> {
    let before = passes(daemon)?.len();
    daemon.signal(Signal::HUP)?;
    let first = eventually(limit(30), "a pass after SIGHUP", || {
        passes(daemon)?.get(before).cloned().context("none yet")
    })?;
    ensure!(
        first.contains("writes=0") && first.contains("failed=0"),
        "single changes led elsewhere than a look at everything: {first}\n{}",
        daemon.log()?
    );
    Ok(())
}

fn passes(daemon: &Flanneld) -> Result<Vec<String>> {
    let log = daemon.log()?;
    let lines = log.lines().filter(|line| line.contains("a pass over the kernel"));
    Ok(lines.map(str::to_owned).collect())
}
