//! Endpoints that come and go while clients are at it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::held::Held;
use flannel_lab::{Flanneld, Pinger, PingerReport, Pod, eventually, limit};
use serde_json::json;

use super::super::flows::UdpFlow;
use super::Mode;
use super::ask::{answers, await_answer, check_reaches};
use super::city::{City, Family, PORT, SERVICES, Shop, at, ip_of};

/// As clients of DNS do it: one socket each, while everything behind the address is replaced.
pub fn udp_goes_on_when_its_endpoint_is_replaced(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &[&city.near])?;
    let streams = open_streams(city, &shop)?;
    shop.endpoints(&[&city.far])?;
    shop.await_endpoints(&[&city.far])?;
    none_lost_from_now_on(city, &shop, streams, &city.far)?;
    // and when nobody is there for a while
    let streams = open_streams(city, &shop)?;
    shop.endpoints(&[])?;
    shop.await_endpoints(&[])?;
    std::thread::sleep(Duration::from_millis(300));
    shop.endpoints(&[&city.near])?;
    shop.await_endpoints(&[&city.near])?;
    none_lost_from_now_on(city, &shop, streams, &city.near)
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

/// Since the streams are at `pod`, and nowhere else.
fn none_lost_from_now_on(city: &City, shop: &Shop<'_>, streams: Vec<Pinger>, pod: &Pod) -> Result<()> {
    for family in Family::BOTH {
        let (service, here) = (shop.ip(family), ip_of(pod, family)?);
        let other = city.both().into_iter().find(|other| other.name() != pod.name());
        let elsewhere = ip_of(other.context("no other pod")?, family)?;
        eventually(limit(20), "the stream at its new endpoint", || {
            let flows = UdpFlow::all(city.node(1)?, family == Family::V4)?;
            let at = |pod: &str| flows.iter().any(|flow| flow.is_through(&service, pod));
            ensure!(at(&here) && !at(&elsewhere), "{flows:#?}");
            Ok(())
        })?;
    }
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
    let check = |expected: &[&Pod]| {
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
    for held in held {
        // each connection is used once more
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
