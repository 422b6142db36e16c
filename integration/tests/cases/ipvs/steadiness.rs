//! What others do is put right, and many changes end in the last state.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flannel_lab::{Flanneld, Pinger, eventually, limit};

use super::stand::{LINES, PORT, SERVICES, Stand, config, real_servers, saved, web};
use crate::cases::common::count;

/// Whatever others do to ours is put right, most of it within seconds: IPVS tells nobody, so it is looked at in turns.
pub fn what_others_change_is_repaired() -> Result<()> {
    let stand = Stand::serving(&config())?;
    let node = stand.node()?;
    stand.await_answer("10.96.0.10:80")?;
    let picture = || -> Result<String> {
        let servers = saved(node, &[""])?.join("\n");
        let others = node.shell(
            "ip route show table local proto 70; nft -s list table ip flannel-services | grep -v flannel-hash || true; cat /proc/sys/net/ipv4/vs/conntrack /proc/sys/net/ipv4/vs/expire_nodest_conn",
        )?;
        Ok(format!("{servers}\n{others}"))
    };
    let whole = picture()?;
    let real = format!("{}:{PORT}", stand.pods[0].ip());
    let of_ipvs = [
        "ipvsadm -D -t 10.96.0.10:80".to_owned(),
        format!("ipvsadm -d -t 10.96.0.10:81 -r {}:{LINES}", stand.pods[0].ip()),
        format!("ipvsadm -e -u 10.96.0.10:53 -r {real} -m -w 0"),
        "ipvsadm -a -t 10.96.0.10:81 -r 192.168.50.99:81 -m".to_owned(),
        "ipvsadm -A -t 10.96.0.99:80 -s rr".to_owned(),
    ];
    for harm in [
        of_ipvs.join("; "),
        format!("ipvsadm -E -t 10.96.0.10:80 -s lc -p 60; ipvsadm -e -t 10.96.0.10:80 -r {real} -m -w 7"),
        "ipvsadm -C; ip route del local 10.96.0.0/16 dev lo table local; echo 0 > /proc/sys/net/ipv4/vs/conntrack".to_owned(),
        "nft flush chain ip flannel-services guard".to_owned(),
        "nft delete table ip flannel-services".to_owned(),
    ] {
        node.shell(&harm)?;
        ensure!(picture()? != whole || harm.contains("nft"), "no harm in {harm}");
        eventually(limit(40), &format!("repair after: {harm}"), || {
            let now = picture()?;
            ensure!(now == whole, "{now}\nexpected:\n{whole}");
            Ok(())
        })?;
    }
    stand.await_answer("10.96.0.10:80")
}

/// A thousand changes a second and more: few writes, nothing lost, nothing kept, and the neighbours undisturbed.
pub fn a_thousand_changes_a_second_end_in_the_exact_state() -> Result<()> {
    let stand = Stand::serving(&config())?;
    stand.put("spec/shop/still", &web("10.96.0.11"))?;
    stand.endpoints("still", &[0])?;
    stand.await_answer("10.96.0.11:80")?;
    let daemon = stand.daemon.as_ref().context("no daemon runs")?;
    let passes = || -> Result<usize> { Ok(count(&daemon.log()?, "virtual servers are programmed")) };
    let key = |n: usize| format!("{SERVICES}/endpoints/shop/web/http/172.31.77.{}:80", n % 200 + 1);
    // once before, so that memory for them is there
    let warm: Vec<(String, Option<String>)> = (0..200).map(|n| (key(n), Some("{}".to_owned()))).collect();
    stand.lab.etcd().write_many(&warm)?;
    stand
        .lab
        .etcd()
        .delete_prefix(&format!("{SERVICES}/endpoints/"))?;
    stand.await_servers("TCP 10.96.0.10:80 rr", &[(0, PORT, 1), (1, PORT, 1)])?;
    let (memory, before) = (resident(daemon)?, passes()?);
    let asking = Pinger::to(&stand.client, "10.96.0.11:53")?;
    let begin = std::time::Instant::now();
    for round in 0..40 {
        let change = |n: usize| (key(n), (n + round).is_multiple_of(2).then(|| "{}".to_owned()));
        let changes: Vec<_> = (0..100).map(change).collect();
        stand.lab.etcd().write_many(&changes)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let odd: BTreeSet<String> = (0..100)
        .filter(|n| (n + 39) % 2 == 0)
        .map(|n| format!("172.31.77.{}:80", n + 1))
        .collect();
    eventually(limit(30), "exactly the last state", || {
        let seen = real_servers(stand.node()?, "TCP 10.96.0.10:80 rr")?;
        let flapping = seen
            .iter()
            .filter(|s| s.starts_with("172.31.77.") && s.ends_with(" 1"));
        let flapping: BTreeSet<String> = flapping
            .filter_map(|s| s.split(' ').next())
            .map(str::to_owned)
            .collect();
        ensure!(flapping == odd, "{} of {}", flapping.len(), odd.len());
        Ok(())
    })?;
    let (grown, passes) = (resident(daemon)?.saturating_sub(memory), passes()? - before);
    println!("4000 changes in {seconds:.1} s, {passes} passes, {grown} KiB more");
    // one pass each 20 ms at the most, and a look at what drains once a second; on a slow machine they go on when all is written
    let all = begin.elapsed().as_secs_f64();
    ensure!(
        passes <= 2 + (all * 51.0) as usize,
        "{passes} passes in {all:.1} s"
    );
    ensure!(grown < 8 * 1024, "the daemon grew by {grown} KiB");
    let report = asking.stop()?;
    ensure!(report.lost.is_empty(), "the neighbour lost {report:?}");
    Ok(())
}

/// Resident memory of the daemon in KiB.
fn resident(daemon: &Flanneld) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let line = line.context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
