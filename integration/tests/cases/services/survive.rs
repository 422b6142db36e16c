//! The daemon dies, and others delete what it wrote.

use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::{eventually, limit};
use serde_json::json;

use super::Mode;
use super::ask::{answers, check_reaches};
use super::change::{hold, none_broken};
use super::city::{City, Family};

/// And one of their endpoints has left before, so that the drain outlives the daemon too.
pub fn two_hundred_connections_survive_a_crash(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &city.both())?;
    let ask = |count: usize| {
        let ask = |family: Family| answers(&city.client, "tcp", &shop.at(family, 80), count).map(drop);
        Family::BOTH.into_iter().try_for_each(ask)
    };
    let held = hold(city, &shop, 100)?;
    shop.endpoints(&[&city.near])?;
    shop.await_endpoints(&[&city.near])?;
    city.crash()?;
    throughout(Duration::from_secs(1), "Services while flanneld is away", || {
        ask(1)
    })?;
    city.start()?;
    throughout(Duration::from_secs(2), "Services after the start", || ask(4))?;
    shop.await_endpoints(&[&city.near])?;
    none_broken(held, 100)
}

pub fn what_others_delete_comes_back(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &city.both())?;
    let node = city.node(1)?;
    let mut held = hold(city, &shop, 10)?;
    let nftables = [
        "nft flush map ip flannel-services-nat backends; nft flush map ip6 flannel-services-nat backends",
        "nft flush map ip flannel-services-nat frontends; nft flush chain ip6 flannel-services-nat postrouting",
        "nft delete table ip flannel-services-nat; nft delete table ip6 flannel-services-nat",
    ];
    // a real server, a virtual server, and all there is besides
    let near =
        |family| super::city::ip_of(&city.near, family).map(|ip| super::city::at(&ip, super::city::PORT));
    let ipvs = [
        format!("ipvsadm -d -t {} -r {}", shop.at(Family::V4, 80), near(Family::V4)?),
        format!("ipvsadm -d -t {} -r {}", shop.at(Family::V6, 80), near(Family::V6)?),
        format!("ipvsadm -D -t {}; ipvsadm -D -t {}", shop.at(Family::V4, 80), shop.at(Family::V6, 80)),
        "ip route delete local 10.96.0.0/16 table local; ip -6 route delete local fd00:96::/112 table local; nft flush ruleset".to_owned(),
    ];
    let (harms, patience): (Vec<&str>, u64) = match city.mode.get() {
        Mode::Nftables => (nftables.to_vec(), 10),
        // nothing tells of changes in IPVS: what stands is compared now and then
        Mode::Ipvs => (ipvs.iter().map(String::as_str).collect(), 60),
    };
    for harm in harms {
        if harm.contains("route") {
            // who gets nothing through for ten seconds gives up
            none_broken(std::mem::take(&mut held), 10)?;
        }
        node.shell(harm)?;
        eventually(limit(patience), &format!("repair after: {harm}"), || {
            for family in Family::BOTH {
                let address = shop.at(family, 80);
                check_reaches(&city.client, "tcp", &address, &city.both())?;
                check_reaches(node, "tcp", &address, &city.both())?;
            }
            Ok(())
        })?;
    }
    none_broken(held, 10)
}

/// A node changes its programmer: Services go on, and of the former one nothing stays.
pub fn the_other_programmer_takes_over(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &city.both())?;
    city.crash()?;
    city.mode.set(Mode::Nftables);
    city.start()?;
    shop.await_endpoints(&city.both())?;
    for family in Family::BOTH {
        check_reaches(&city.client, "tcp", &shop.at(family, 80), &city.both())?;
    }
    for node in city.lab.nodes() {
        eventually(limit(20), "what IPVS had to be gone", || {
            let servers = node.run(&["ipvsadm", "-Sn"])?;
            ensure!(servers.trim().is_empty(), "{servers}");
            let tables = node.run(&["nft", "list", "tables"])?;
            let left = tables.lines().find(|line| line.ends_with(" flannel-services"));
            ensure!(left.is_none(), "{tables}");
            let routes = node.run(&["ip", "route", "show", "table", "local", "10.96.0.0/16"])?;
            ensure!(routes.is_empty(), "{routes}");
            Ok(())
        })?;
    }
    city.clear()?;
    super::reach::sctp_is_a_protocol_like_others(city)?;
    city.clear()?;
    and_back(city)
}

/// From nftables to IPVS.
fn and_back(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &city.both())?;
    city.crash()?;
    city.mode.set(Mode::Ipvs);
    city.start()?;
    for node in city.lab.nodes() {
        eventually(limit(20), "what nftables had to be gone", || {
            let tables = node.run(&["nft", "list", "tables"])?;
            ensure!(!tables.contains("flannel-services-nat"), "{tables}");
            Ok(())
        })?;
    }
    shop.await_endpoints(&city.both())?;
    for family in Family::BOTH {
        check_reaches(&city.client, "tcp", &shop.at(family, 80), &city.both())?;
    }
    Ok(())
}
