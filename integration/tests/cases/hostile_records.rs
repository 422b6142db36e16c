//! A thousand records that no node should have written, in the middle of traffic.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Flanneld, Lab, LabOptions, Pinger, eventually, http, limit};

use super::common::{await_ping, check_peers, lease_of, list, peer, start_all};

const RECORDS: usize = 1000;

/// No route for any of them, no peer lost, no packet lost, and the next good one is taken. Some pretend to be node 1 itself, which
/// only node 1 can know.
pub fn a_thousand_bad_records_under_traffic() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &["--healthz-port=9009"])?;
    let node = lab.node(1)?;
    let (own, other) = (lease_of(&lab, node)?, lease_of(&lab, lab.node(2)?)?);
    let (near, far) = (node.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let routes = foreign_routes(&lab)?;
    let stream = Pinger::start(&near, &far)?;
    let corpus = corpus(own.base(), node.address());
    ensure!(corpus.len() == RECORDS, "{} records", corpus.len());
    let keys = corpus.iter().map(|(key, _)| key).collect::<BTreeSet<_>>().len();
    lab.etcd().put_all(&corpus)?;
    // It comes last, so all others were looked at.
    let good = (
        format!("{SUBNETS_PREFIX}10.5.254.0-24"),
        vxlan("192.168.50.70", "02:00:00:00:00:70").into(),
    );
    lab.etcd().put_all(&[good])?;
    let last = peer("10.5.254.0/24", "192.168.50.70", "02:00:00:00:00:70");
    eventually(limit(30), "the good peers and nobody else", || {
        check_peers(node, &[&other, &last])
    })?;
    eventually(limit(10), "all of them counted", || {
        let (_, text) = http::get(&format!("{}:9009", node.address()), "/metrics")?;
        let skipped = text
            .lines()
            .find_map(|line| line.strip_prefix("flannel_records_skipped "));
        let skipped: usize = skipped.context("no such metric")?.parse()?;
        // Some stand at one key, and each key counts once.
        ensure!(skipped == keys, "{skipped} of {keys}");
        Ok(())
    })?;
    assert_eq!(foreign_routes(&lab)?, routes, "a route of the node's own moved");
    let report = stream.stop()?;
    ensure!(report.sent >= 50 && report.lost.is_empty(), "lost: {report:?}");
    // A start among them has the same subnet and the same peers, and loses nobody.
    daemons.remove(0).kill()?;
    let again: Flanneld = node.start_ready_flanneld(&[])?;
    eventually(limit(30), "the good peers after a start", || {
        check_peers(node, &[&other, &last])
    })?;
    ensure!(!again.log()?.contains("panicked"), "it panicked");
    assert_eq!(lease_of_own(&lab, &own.entry.key)?, own.entry.value);
    Ok(())
}

fn lease_of_own(lab: &Lab, key: &str) -> Result<String> {
    Ok(lab.etcd().get(key)?.map(|entry| entry.value).unwrap_or_default())
}

fn foreign_routes(lab: &Lab) -> Result<Vec<serde_json::Value>> {
    let all = lab.node(1)?.ip_json(&["-4", "route", "show", "table", "all"])?;
    Ok(list(&all)
        .into_iter()
        .filter(|route| route["dev"] != "flannel.1")
        .collect())
}

fn vxlan(public_ip: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Keys that are none, beside values that are none. The subnets are beyond the first hundred, where no node of the lab is.
fn corpus(own: &str, own_address: &str) -> Vec<(String, Vec<u8>)> {
    let third = |number: usize| 110 + number % 140;
    let mut records = Vec::new();
    for number in 0..RECORDS {
        let (key, value) = match number % 25 {
            0..=9 => (
                bad_key(number, own),
                vxlan("192.168.50.66", "02:00:00:00:00:66").into_bytes(),
            ),
            _ => (
                format!("10.5.{}.0-24", third(number)),
                bad_value(number, own_address),
            ),
        };
        records.push((format!("{SUBNETS_PREFIX}{key}"), value));
    }
    records
}

fn bad_key(number: usize, own: &str) -> String {
    let low = number / 25;
    match number % 25 {
        0 => ["0.0.0.0-0", "0.0.0.0-1", "128.0.0.0-1", "10.0.0.0-8"][low % 4].to_owned(),
        1 => format!("{own}-{}", 25 + low % 6),
        2 => format!("192.168.{}.0-24", 40 + low),
        3 => format!("10.5.{}.0-{}", 110 + low, [0, 31, 32, 33, 256, 99_999][low % 6]),
        4 => format!("10.5.{}.0-24/meta{low}", 110 + low),
        5 => format!("10.5.{}.{}-24", 110 + low, 1 + low),
        6 => format!("10.5.{}.0-23", 110 + 2 * low),
        7 => format!("10.5.{}.0-24&FD00:5::{low}-64", 110 + low),
        8 => format!("../../{low}"),
        _ => format!("\u{0}\u{1b}[31m{low}"),
    }
}

fn bad_value(number: usize, own_address: &str) -> Vec<u8> {
    let low = number / 25;
    let good_mac = "02:00:00:00:00:67";
    match number % 25 {
        10 => vxlan(own_address, good_mac).into_bytes(),
        11 => vxlan(
            [
                "0.0.0.0",
                "127.0.0.1",
                "224.0.0.1",
                "255.255.255.255",
                "169.254.1.1",
            ][low % 5],
            good_mac,
        )
        .into_bytes(),
        12 => vxlan(&format!("10.5.{low}.1"), good_mac).into_bytes(),
        13 => vxlan(
            "192.168.50.66",
            ["ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:5e:00:00:01", "2"][low % 4],
        )
        .into_bytes(),
        14 => vxlan("not an address", good_mac).into_bytes(),
        15 => vec![0xff; 1 + low * 7],
        16 => b"{".repeat(1 + low * 100),
        17 => b"[".repeat(20_000),
        18 => format!(
            r#"{{"PublicIP":{}}}"#,
            ["null", "1", "NaN", "[]", "1e400"][low % 5]
        )
        .into_bytes(),
        19 => vec![b'x'; 8 * 1024 + 1 + low * 1000],
        20 => vxlan("192.168.50.66", good_mac)
            .replace(r#""VNI":1"#, &format!(r#""VNI":{}"#, 2 + low))
            .into_bytes(),
        21 => vxlan("192.168.50.66", good_mac)
            .replace("VNI", "vni")
            .replace("VtepMAC", "Vtep")
            .into_bytes(),
        22 => r#"{"PublicIP":"192.168.50.66","PublicIPv6":"","BackendType":"vxlan"}"#.into(),
        23 => r#"{"PublicIP":"192.168.50.66","PublicIPv6":null,"BackendType":"udp","BackendData":{"VNI":1}}"#
            .into(),
        _ => Vec::new(),
    }
}
