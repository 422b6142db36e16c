//! Whose a subnet is, when a node and etcd did not hear each other, and when somebody else writes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{
    Environment, Lab, LabOptions, Node, Pinger, Pod, Process, etcd, eventually, limit, sandbox,
};

use super::common::{Lease, await_ping, count, lease_of, leases, link, programmed, put_peer, start_all};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Lifetime of a lease here; etcd gives at least as many seconds as its elections take, some three.
const SHORT: &str = "--subnet-lease-ttl=6s";

/// A node that etcd does not hear for longer than its lease's lifetime: it adds no pod, and takes the subnet again.
pub fn expired_and_free_is_taken_again() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let _daemons = start_all(&lab, &[SHORT])?;
    let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let before = lease_of(&lab, lab.node(1)?)?;
    let routes = programmed(lab.node(1)?)?;
    let stream = Pinger::start(&near, &far)?;
    cut_off(&lab, lab.node(1)?)?;
    expires(&lab, &before)?;
    await_subnet_file(lab.node(1)?, false)?;
    heal(lab.node(1)?)?;
    eventually(limit(40), "the same subnet to be taken again", || {
        let after = lease_of(&lab, lab.node(1)?)?;
        ensure!(
            after.subnet == before.subnet,
            "{} instead of {}",
            after.subnet,
            before.subnet
        );
        Ok(())
    })?;
    await_subnet_file(lab.node(1)?, true)?;
    ensure!(programmed(lab.node(1)?)? == routes, "its routes moved");
    let report = stream.stop()?;
    ensure!(report.sent >= 100 && report.lost.is_empty(), "lost: {report:?}");
    Ok(())
}

/// The same, but another node took the subnet: it is that node's. The pods that are there keep their network inside the node.
pub fn expired_and_taken_belongs_to_the_new_holder() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[SHORT, "--peer-delete-hold=1s"])?;
    let node = lab.node(1)?;
    let (one, two) = (node.add_pod("one")?, node.add_pod("two")?);
    await_ping(&one, two.ip())?;
    let before = lease_of(&lab, node)?;
    cut_off(&lab, node)?;
    expires(&lab, &before)?;
    let taken = before.entry.key.trim_start_matches(SUBNETS_PREFIX);
    put_peer(&lab, taken, "192.168.50.99", "02:00:00:00:00:99")?;
    heal(node)?;
    let after = another_subnet(&lab, node, &before)?;
    daemons[0].wait_log("192.168.50.99")?;
    daemons[0].wait_ready()?;
    // Whose record it is, and where the other node sends packets for it.
    let record = lab
        .etcd()
        .get(&before.entry.key)?
        .context("the new holder's record is gone")?;
    ensure!(record.value.contains("192.168.50.99"), "overwritten: {record:?}");
    let fdb = "fdb 02:00:00:00:00:99 192.168.50.99 permanent";
    eventually(limit(20), "node2 to follow etcd", || {
        ensure!(programmed(lab.node(2)?)?.contains(fdb), "it does not");
        Ok(())
    })?;
    // Old pods reach each other, a new one gets an address of the new subnet.
    await_ping(&one, two.ip())?;
    let new = node.add_pod("new")?;
    ensure!(in_subnet(&new, &after), "{} is not in {}", new.ip(), after.subnet);
    let far = lab.node(2)?.add_pod("far")?;
    await_ping(&new, far.ip())?;
    await_ping(&new, one.ip())?;
    daemons[0].check_running()
}

/// Another address stands in our record: no fight, another subnet.
pub fn an_overwritten_record_is_given_up() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let mut daemon = node.start_ready_flanneld(&[])?;
    let before = lease_of(&lab, node)?;
    let taken = before.entry.key.trim_start_matches(SUBNETS_PREFIX);
    put_peer(&lab, taken, "192.168.50.99", "02:00:00:00:00:99")?;
    let foreign = lab.etcd().get(&before.entry.key)?.context("no record")?;
    another_subnet(&lab, node, &before)?;
    throughout(Duration::from_secs(2), "the foreign record", || {
        let now = lab.etcd().get(&before.entry.key)?;
        ensure!(now.as_ref() == Some(&foreign), "it was written: {now:?}");
        daemon.check_running()
    })
}

/// Another address under this node's own identity: put back once; undone at once, it is no fight, and no pod is added.
pub fn a_record_in_our_name_is_put_right() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[])?;
    let (node, daemon) = (lab.node(1)?, &mut daemons[0]);
    let before = lease_of(&lab, node)?;
    let (near, far) = (node.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&far, near.ip())?;
    let forge = |address: &str| -> Result<()> {
        let value = before.entry.value.replace(node.address(), address);
        ensure!(value != before.entry.value, "{value} has no {}", node.address());
        let etcdctl = format!(
            "etcdctl --endpoints {} put --ignore-lease {} '{value}'",
            etcd::ENDPOINT,
            before.entry.key
        );
        lab.etcd().place().shell(&etcdctl).map(drop)
    };
    forge("192.168.50.66")?;
    eventually(limit(20), "the record to be put right", || {
        let now = lab.etcd().get(&before.entry.key)?.context("no record")?;
        ensure!(
            now.value == before.entry.value && now.version == before.entry.version + 2,
            "{now:?}"
        );
        ensure!(now.lease == before.entry.lease, "another etcd lease: {now:?}");
        Ok(())
    })?;
    daemon.wait_log("is put right")?;
    await_ping(&far, near.ip())?;
    await_subnet_file(node, true)?;

    forge("192.168.50.66")?;
    await_subnet_file(node, false)?;
    daemon.wait_log("--state-dir")?;
    throughout(Duration::from_secs(3), "the record to be left alone", || {
        let now = lab.etcd().get(&before.entry.key)?.context("no record")?;
        ensure!(now.value.contains("192.168.50.66"), "{now:?}");
        Ok(())
    })?;
    daemon.check_running()
}

/// Deleted once it is a mishap, deleted twice within a minute it is meant.
pub fn a_subnet_that_is_deleted_twice_is_revoked() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let mut daemon = node.start_ready_flanneld(&[])?;
    let before = lease_of(&lab, node)?;
    lab.etcd().delete(&before.entry.key)?;
    eventually(limit(20), "the same subnet to be claimed again", || {
        let after = lease_of(&lab, node)?;
        ensure!(
            after.subnet == before.subnet && after.entry.mod_revision > before.entry.mod_revision,
            "{after:?}"
        );
        Ok(())
    })?;
    await_subnet_file(node, true)?;
    lab.etcd().delete(&before.entry.key)?;
    daemon.wait_log("revoked")?;
    await_subnet_file(node, false)?;
    ensure!(leases(&lab)?.is_empty(), "it claimed a subnet all the same");
    ensure!(link(node, "flannel.1").is_ok(), "the data path went");
    ensure!(
        daemon.notifications().contains("revoked"),
        "the status does not say it"
    );
    daemon.check_running()
}

/// A hundred nodes for one subnet: one has it, the others wait, and one of them gets it when it is free.
pub fn a_hundred_race_for_the_last_subnet() -> Result<()> {
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0","Backend":{"Type":"alloc"}}"#;
    let lab = Lab::new(&LabOptions::nodes(1).config(config))?;
    let mut racers: Vec<Process> = (1..=RACERS)
        .map(|number| racer(lab.node(1)?, number))
        .collect::<Result<_>>()?;
    eventually(limit(90), "all others to wait", || {
        let waiting = racers
            .iter()
            .filter(|racer| racer.log_text().is_ok_and(|log| log.contains("exhausted")));
        let waiting = waiting.count();
        ensure!(waiting == RACERS - 1, "{waiting} wait");
        Ok(())
    })?;
    let first = lab.etcd().list(SUBNETS_PREFIX)?;
    ensure!(first.len() == 1, "{} have it", first.len());
    racers.iter_mut().try_for_each(Process::check_running)?;
    let winner = racers
        .iter()
        .position(|racer| racer.log_text().is_ok_and(|log| log.contains("ready:")));
    racers.remove(winner.context("nobody is ready")?).kill()?;
    lab.etcd().revoke(first[0].lease)?;
    eventually(limit(60), "one of the others to have it", || {
        let second = lab.etcd().list(SUBNETS_PREFIX)?;
        ensure!(
            second.len() == 1 && second[0].value != first[0].value,
            "{second:?}"
        );
        Ok(())
    })?;
    racers.iter_mut().try_for_each(Process::check_running)?;
    let said: BTreeSet<usize> = racers
        .iter()
        .map(|racer| Ok(count(&racer.log_text()?, "the pool is exhausted")))
        .collect::<Result<_>>()?;
    ensure!(
        said.iter().all(|times| *times <= 1),
        "said at every retry: {said:?}"
    );
    Ok(())
}

/// Machines behind one NAT have one address; their own identities keep them from one lease.
pub fn two_nodes_with_one_address_are_told_apart() -> Result<()> {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;
    let lab = Lab::new(&LabOptions::nodes(1).config(config))?;
    let mut racers: Vec<Process> = Vec::new();
    for number in [1, 2] {
        racers.push(racer_at(lab.node(1)?, number, "10.0.2.15")?);
    }
    let both = eventually(limit(30), "two leases", || {
        let both = lab.etcd().list(SUBNETS_PREFIX)?;
        ensure!(both.len() == 2, "{both:?}");
        Ok(both)
    })?;
    ensure!(
        both.iter().all(|entry| entry.value.contains("10.0.2.15")),
        "{both:?}"
    );
    // A start finds its own lease again, not that of the other one.
    racers.remove(0).kill()?;
    racers.push(racer_at(lab.node(1)?, 1, "10.0.2.15")?);
    eventually(limit(30), "the first one again", || {
        let log = racers.last().context("none")?.log_text()?;
        ensure!(log.contains("ready:"), "not ready: {log}");
        Ok(())
    })?;
    let after: Vec<_> = lab.etcd().list(SUBNETS_PREFIX)?;
    let names = |entries: &[etcd::Entry]| -> Vec<(String, String)> {
        entries
            .iter()
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect()
    };
    assert_eq!(names(&after), names(&both));
    Ok(())
}

/// A key without an etcd lease is its node's for ever, also after flannel made an ordinary lease of it.
pub fn a_reservation_survives_its_use() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let reserve = [
        "subnets",
        "reserve",
        "10.5.77.0/24",
        "--public-ip",
        node.address(),
    ];
    lab.flannelctl(&reserve)?.ok()?;
    for _ in 0..2 {
        let daemon = node.start_ready_flanneld(&[SHORT])?;
        let lease = lease_of(&lab, node)?;
        assert_eq!((lease.subnet.as_str(), lease.entry.lease), ("10.5.77.0/24", 0));
        // Longer than the lifetime of an ordinary lease.
        std::thread::sleep(Duration::from_secs(8));
        assert_eq!(lease_of(&lab, node)?.entry.lease, 0);
        daemon.kill()?;
    }
    // What flannel does to a reservation when it starts.
    let lease = lease_of(&lab, node)?;
    lab.etcd()
        .put_leased(&lease.entry.key, &lease.entry.value, 86_400)?;
    let _daemon = node.start_ready_flanneld(&[SHORT])?;
    eventually(limit(20), "the reservation again", || {
        let after = lease_of(&lab, node)?;
        ensure!(
            after.entry.lease == 0 && after.subnet == lease.subnet,
            "{after:?}"
        );
        Ok(())
    })
}

const RACERS: usize = 100;

/// A node of its own as far as etcd can see; the backend touches no kernel.
fn racer(node: &Node, number: usize) -> Result<Process> {
    racer_at(node, number, &format!("192.168.50.{number}"))
}

fn racer_at(node: &Node, number: usize, address: &str) -> Result<Process> {
    let argv = [
        format!("{}/flanneld", sandbox::BINARIES),
        format!("--etcd-endpoints={}", etcd::ENDPOINT),
        "--etcd-insecure".into(),
        format!("--public-ip={address}"),
        format!("--state-dir=/run/flannel/{number}"),
        format!("--subnet-file=/run/flannel/{number}.env"),
    ];
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let env = Environment {
        clean: true,
        ..Environment::default()
    };
    node.spawn(&format!("racer{number}"), &argv, &env)
}

/// The node and etcd do not hear each other, and nobody tells them.
fn cut_off(lab: &Lab, node: &Node) -> Result<()> {
    node.shell(
        "nft add table inet cut
         nft 'add chain inet cut in { type filter hook input priority -300; }'
         nft 'add chain inet cut out { type filter hook output priority -300; }'
         nft add rule inet cut in tcp sport 2379 drop
         nft add rule inet cut out tcp dport 2379 drop",
    )?;
    ensure!(lease_of(lab, node).is_ok(), "the operator is cut off as well");
    Ok(())
}

fn heal(node: &Node) -> Result<()> {
    node.run(&["nft", "delete", "table", "inet", "cut"]).map(drop)
}

fn expires(lab: &Lab, lease: &Lease) -> Result<()> {
    eventually(limit(40), "the lease to expire", || {
        ensure!(lab.etcd().get(&lease.entry.key)?.is_none(), "it is there");
        Ok(())
    })
}

fn another_subnet(lab: &Lab, node: &Node, before: &Lease) -> Result<Lease> {
    eventually(limit(60), "another subnet", || {
        let after = lease_of(lab, node)?;
        ensure!(after.subnet != before.subnet, "still {}", after.subnet);
        let file = node.read_file(SUBNET_FILE)?;
        ensure!(
            file.contains(&after.gateway()),
            "subnet.env is not there yet: {file}"
        );
        Ok(after)
    })
}

fn await_subnet_file(node: &Node, there: bool) -> Result<()> {
    eventually(limit(30), "subnet.env", || {
        ensure!(
            node.file(SUBNET_FILE).exists() == there,
            "is it there: {}",
            !there
        );
        Ok(())
    })
}

fn in_subnet(pod: &Pod, lease: &Lease) -> bool {
    pod.ip().starts_with(lease.base().trim_end_matches('0'))
}
