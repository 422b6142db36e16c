//! A peer that sends more than the node can take.

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::{OPERATOR_ADDRESS, SUBNETS_PREFIX};
use flannel_lab::{Flanneld, Node, Pinger, Place, eventually, limit, sandbox};
use serde_json::Value;

use super::{BOUND_KIB, await_ping, drops, peak_memory, received, udp_lab};

/// One queue, so that all peers' datagrams arrive at one socket.
const ONE_QUEUE: &str = "--udp-offloads=tso,uso,udp-segment,udp-gro";
/// How long the flood lasts.
const MILLISECONDS: &str = "5000";

/// While one peer sends as fast as a processor can, next to nothing is kept back of what another sends: what the kernel drops before we see
/// it is all that it loses, which is less than of the flood. The node's memory stays what its buffers are.
pub fn a_peer_that_floods_does_not_starve_the_others() -> Result<()> {
    let lab = udp_lab(2)?;
    let node = lab.node(1)?;
    let value = format!(r#"{{"PublicIP":"{OPERATOR_ADDRESS}","PublicIPv6":null}}"#);
    lab.etcd()
        .put_leased(&format!("{SUBNETS_PREFIX}10.5.99.0-24"), &value, 86_400)?;
    let flags = ["--ip-masq", "--healthz-port=9009", ONE_QUEUE];
    let mut daemons = lab
        .nodes()
        .iter()
        .map(|node| node.start_ready_flanneld(&flags))
        .collect::<Result<Vec<_>>>()?;
    let (one, two) = (node.add_pod("one")?, lab.node(2)?.add_pod("two")?);
    await_ping(&one, two.ip())?;
    daemons[0].wait_log("knows the peers subnets=2")?;
    let before = received(&one)?;
    let before_memory = peak_memory(&daemons[0])?;
    let pinger = Pinger::at_rate(&two, &one, 200)?;
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    let (local, victim) = (
        format!("{OPERATOR_ADDRESS}:8285"),
        format!("{}:8285", node.address()),
    );
    let argv = [
        &program,
        "flood",
        &local,
        &victim,
        "10.5.99.9",
        one.ip(),
        MILLISECONDS,
    ];
    let sent = Place::sandbox().exec_within(&argv, 60)?.ok()?;
    let sent: u64 = sent
        .trim()
        .parse()
        .with_context(|| format!("{sent:?} is no number"))?;
    let report = pinger.stop()?;
    let overload = drops(node, "overload")?;
    ensure!(
        overload > 1000,
        "the flood of {sent} packets was none: {overload} were too much"
    );
    only_the_flood_was_kept_back(node, &local, overload, report.sent)?;
    // What a queue that is shared by all drops, it drops of both alike: without shares these two parts are equal.
    let passed = received(&one)?.saturating_sub(before + report.sent);
    let of_flood = passed as f64 / sent as f64;
    let of_other = 1.0 - report.lost.len() as f64 / report.sent as f64;
    ensure!(
        report.sent > 500 && of_other > of_flood,
        "{of_other:.2} of {} packets of the other peer were answered, {of_flood:.2} of {sent} of the flood went on; {overload} were kept back",
        report.sent
    );
    let memory = peak_memory(&daemons[0])?;
    ensure!(
        memory < before_memory + BOUND_KIB,
        "{before_memory} KiB became {memory}"
    );
    await_ping(&one, two.ip())?;
    daemons.iter_mut().try_for_each(Flanneld::check_running)
}

/// flannelctl blames the peer at `flooding` for what was kept back. Of the other, which sent so many packets, at most a twentieth may be
/// among it: a burst after its sender stood still can be more than a fair part of a batch. This is the data path's own choice, whatever
/// the machine's speed.
fn only_the_flood_was_kept_back(node: &Node, flooding: &str, packets: u64, of_other: u64) -> Result<()> {
    let program = format!("{}/flannelctl", sandbox::BINARIES);
    // The report is a second old at the most.
    eventually(limit(10), "the status after the flood", || {
        let text = node.run(&[&program, "-o", "json", "status"])?;
        let report: Value = serde_json::from_str(&text)?;
        let peers = report["udp"]["peers"].as_array().context("no peers")?;
        let kept_back = |blamed: bool| -> u64 {
            let some = peers
                .iter()
                .filter(|peer| (peer["address"] == flooding) == blamed);
            some.filter_map(|peer| peer["overload"].as_u64()).sum()
        };
        ensure!(
            kept_back(true) + kept_back(false) == packets && kept_back(false) <= of_other / 20,
            "{packets} were too many, {flooding} floods, the other sent {of_other}: {peers:?}"
        );
        Ok(())
    })
}
