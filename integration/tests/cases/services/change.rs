//! Endpoints that come and go while clients are at it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::held::Held;
use flannel_lab::{Flanneld, Pinger, PingerReport, eventually, limit};
use serde_json::json;

use super::Mode;
use super::ask::{answers, await_answer, check_reaches};
use super::city::{City, Family, PORT, SERVICES, Shop, at, ip_of};

/// As clients of DNS do it: one socket each, while everything behind the address is replaced.
pub fn udp_goes_on_when_its_endpoint_is_replaced(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &[&city.near])?;
    let streams = open_streams(city, &shop)?;
    std::thread::sleep(Duration::from_millis(500));
    shop.endpoints(&[&city.far])?;
    shop.await_endpoints(&[&city.far])?;
    none_lost_from_now_on(streams)?;
    // and when nobody is there for a while
    let streams = open_streams(city, &shop)?;
    shop.endpoints(&[])?;
    shop.await_endpoints(&[])?;
    std::thread::sleep(Duration::from_millis(300));
    shop.endpoints(&[&city.near])?;
    shop.await_endpoints(&[&city.near])?;
    none_lost_from_now_on(streams)
}

/// One stream a family, each answered already.
fn open_streams(city: &City, shop: &Shop<'_>) -> Result<Vec<Pinger>> {
    let open = |family: Family| {
        let address = shop.at(family, 53);
        await_answer(&city.client, "udp", &address)?;
        Pinger::to(&city.client, &address)
    };
    Family::BOTH.into_iter().map(open).collect()
}

fn none_lost_from_now_on(streams: Vec<Pinger>) -> Result<()> {
    // what is under way may still be on its way to the old one
    std::thread::sleep(Duration::from_millis(200));
    streams.iter().try_for_each(Pinger::mark)?;
    std::thread::sleep(Duration::from_millis(1500));
    for stream in streams {
        let report: PingerReport = stream.stop()?;
        let mark = report.mark.context("the stream was not marked")?;
        ensure!(report.sent > mark + 30, "{report:?}");
        let lost = report.lost.iter().filter(|n| **n >= mark).count();
        ensure!(lost == 0, "{lost} lost after the switch: {report:?}");
    }
    Ok(())
}

/// Connections to an endpoint that leaves go on; new ones go elsewhere; and it may come back.
pub fn open_connections_outlive_the_choice_of_their_endpoint(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &city.both())?;
    let held = hold(city, &shop, 20)?;
    shop.endpoints(&[&city.near])?;
    shop.await_endpoints(&[&city.near])?;
    let check = |expected: &[&flannel_lab::Pod]| {
        let ask = |family: Family| check_reaches(&city.client, "tcp", &shop.at(family, 80), expected);
        Family::BOTH.into_iter().try_for_each(ask)
    };
    check(&[&city.near])?;
    std::thread::sleep(Duration::from_secs(1));
    shop.endpoints(&city.both())?;
    shop.await_endpoints(&city.both())?;
    check(&city.both())?;
    none_broken(held, 20)
}

/// Connections to the lines of a shop, so many in each family, spread over all its endpoints.
pub fn hold(city: &City, shop: &Shop<'_>, count: usize) -> Result<Vec<Held>> {
    let open = |family: Family| {
        let address = shop.at(family, 81);
        Held::open(&city.client, &address, count)
    };
    Family::BOTH.into_iter().map(open).collect()
}

/// All went on, and both endpoints had some.
pub fn none_broken(held: Vec<Held>, count: u64) -> Result<()> {
    for held in held {
        let report = held.close()?;
        ensure!(report.broken == 0 && report.opened == count, "{report:?}");
        ensure!(report.servers == ["far", "near"], "{report:?}");
    }
    Ok(())
}

/// A drain has an end: what is still open then is cut.
pub fn a_drain_ends(city: &City) -> Result<()> {
    if city.mode.get() == Mode::Nftables {
        // its connections are tracked flows, which end by themselves
        return Ok(());
    }
    city.configure(json!({"drainTimeout": 3}))?;
    let shop = city.open_shop(json!({}), &city.both())?;
    let held = hold(city, &shop, 10)?;
    shop.endpoints(&[&city.near])?;
    shop.await_endpoints(&[&city.near])?;
    let node = city.node(1)?;
    eventually(limit(20), "the end of the drain", || {
        let table = node.run(&["ipvsadm", "-Ln"])?;
        for family in Family::BOTH {
            let gone = at(&ip_of(&city.far, family)?, super::city::LINES);
            ensure!(!table.contains(&gone), "{gone} is still there:\n{table}");
        }
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(1));
    for held in held {
        let report = held.close()?;
        ensure!(report.broken > 0 && report.broken < 10, "{report:?}");
    }
    city.configure(json!({}))
}

/// A thousand changes a second of one Service, beside one that does not change.
pub fn flapping_endpoints_end_in_the_exact_state(city: &City) -> Result<()> {
    const ROUNDS: u32 = 100;
    const EACH: u32 = 30;
    let shop = city.open_shop(json!({}), &city.both())?;
    let still = city.open_shop(json!({}), &[&city.near])?;
    let key = |n: u32| {
        format!(
            "{SERVICES}/endpoints/shop/{}/http/10.5.9.{}:{PORT}",
            shop.name,
            n + 1
        )
    };
    let change = |round: u32, n: u32| {
        (
            key(n),
            (round + n)
                .is_multiple_of(2)
                .then(|| r#"{"weight":1}"#.to_owned()),
        )
    };
    let memory = || resident(city.daemons.borrow().first().context("no daemon")?);
    let (before, start) = (memory()?, Instant::now());
    for round in 0..ROUNDS {
        let changes: Vec<(String, Option<String>)> = (0..EACH).map(|n| change(round, n)).collect();
        city.lab.etcd().apply(&changes)?;
        answers(&city.client, "tcp", &still.at(Family::V4, 80), 1)?;
    }
    println!(
        "{} changes in {:.1} s",
        ROUNDS * EACH,
        start.elapsed().as_secs_f64()
    );
    city.lab
        .etcd()
        .delete_prefix(&format!("{SERVICES}/endpoints/shop/{}/", shop.name))?;
    shop.await_endpoints(&city.both())?;
    check_reaches(&city.client, "tcp", &shop.at(Family::V4, 80), &city.both())?;
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < 16 * 1024, "the daemon grew by {grown} KiB");
    Ok(())
}

/// Resident memory of the daemon in KiB.
fn resident(daemon: &Flanneld) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
