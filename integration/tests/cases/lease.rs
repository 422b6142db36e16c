//! Leases in etcd: what is written, and how it is kept.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::lab::{CONFIG_KEY, DEFAULT_CONFIG, SUBNETS_PREFIX};
use flannel_lab::{Asked, Flanneld, Lab, LabOptions, Node, eventually, http, limit};

use super::common::{
    addresses, await_convergence, check_peers, lease_of, leases, link, peer, put_peer, start_all,
};

/// flannel's lease time: 24 hours.
const TTL: i64 = 86_400;

pub fn record_is_what_flannel_writes() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&[])?;
    let lease = lease_of(&lab, node)?;
    let device = link(node, "flannel.1")?;
    let mac = device["address"].as_str().context("flannel.1 has no address")?;
    let third: u8 = lease
        .base()
        .split('.')
        .nth(2)
        .context("no third number")?
        .parse()?;
    ensure!(third != 0, "the network's first subnet is not handed out");
    assert_eq!(
        lease.entry.key,
        format!("/coreos.com/network/subnets/10.5.{third}.0-24")
    );
    // flannel's fields in flannel's order, then what it ignores
    let id = node.read_file("/var/lib/flannel/node-id")?;
    let id = id.trim();
    let value = format!(
        r#"{{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"NodeID":"{id}"}}"#
    );
    assert_eq!(lease.entry.value, value);
    let ttl = lab.etcd().lease_ttl(lease.entry.lease)?;
    ensure!(
        (TTL - 60..=TTL).contains(&ttl),
        "the lease has {ttl} s to live, not {TTL}"
    );
    Ok(())
}

pub fn subnet_file_and_device_are_flannels() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&[])?;
    let lease = lease_of(&lab, node)?;
    let expected = format!(
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={}/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
        lease.gateway()
    );
    assert_eq!(node.read_file("/run/flannel/subnet.env")?, expected);
    assert_eq!(node.file_mode("/run/flannel/subnet.env")?, "644");
    assert_eq!(
        node.shell("ls /run/flannel")?,
        "cni-released.sock\nflanneld.sock\nsubnet.env\n",
        "a temporary file was left"
    );

    let device = link(node, "flannel.1")?;
    let data = &device["linkinfo"]["info_data"];
    assert_eq!(
        (&device["mtu"], &data["id"], &data["port"]),
        (&1450.into(), &1.into(), &8472.into())
    );
    assert_eq!(
        (&data["local"], &data["link"]),
        (&"192.168.50.11".into(), &"eth0".into())
    );
    assert_eq!(data["learning"], false);
    assert_eq!(addresses(&device), [format!("{}/32", lease.base())]);
    assert_eq!(
        node.read_file("/proc/sys/net/ipv6/conf/flannel.1/accept_ra")?,
        "0\n"
    );
    Ok(())
}

pub fn ready_is_told_to_systemd_and_by_http() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).without_config())?;
    let node = lab.node(1)?;
    let mut daemon = node.start_flanneld(&["--healthz-port=9009"])?;
    let address = format!("{}:9009", node.address());
    let probe = |path: &str| http::get(&address, path);
    eventually(limit(10), "/healthz", || probe("/healthz").map(drop))?;
    assert_eq!(probe("/healthz")?.0, 200);
    assert_eq!(probe("/readyz")?.0, 503);
    ensure!(!daemon.is_ready(), "ready without a network configuration");
    lab.etcd().put(CONFIG_KEY, DEFAULT_CONFIG)?;
    daemon.wait_ready()?;
    eventually(limit(2), "/readyz", || {
        let (code, body) = probe("/readyz")?;
        ensure!(code == 200, "{code} {body}");
        Ok(())
    })
}

/// A margin of 1439 minutes leaves one minute between two renewals of a lease of 1440.
pub fn lease_is_renewed() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&["--subnet-lease-renew-margin=1439"])?;
    let first = lease_of(&lab, node)?;
    let start = Instant::now();
    let mut lowest = TTL;
    let within = limit(30) + Duration::from_secs(60);
    eventually(within, "the lease's time to live to go up again", || {
        let lease = lease_of(&lab, node)?;
        ensure!(
            lease.subnet == first.subnet,
            "the subnet changed from {} to {}",
            first.subnet,
            lease.subnet
        );
        let ttl = lab.etcd().lease_ttl(lease.entry.lease)?;
        lowest = lowest.min(ttl);
        ensure!(
            lowest <= TTL - 50 && ttl > TTL - 20,
            "{ttl} s left after {:?}, at least {lowest}",
            start.elapsed()
        );
        Ok(())
    })
}

/// What an earlier flannel left: a key on a lease that soon ends. It is taken over, and it does not end.
pub fn earlier_lease_is_taken_over_and_kept() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let key = format!("{SUBNETS_PREFIX}10.5.77.0-24");
    let value = r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#;
    let ttl = i64::try_from(limit(6).as_secs())?;
    lab.etcd().put_leased(&key, value, ttl)?;
    let _daemon = node.start_ready_flanneld(&[])?;
    throughout(
        limit(6) + Duration::from_secs(4),
        "the lease that was taken over",
        || {
            let lease = lease_of(&lab, node)?;
            ensure!(
                lease.entry.key == key && lease.entry.value.starts_with(value.trim_end_matches('}')),
                "it became {lease:?}"
            );
            Ok(())
        },
    )?;
    assert_eq!(
        link(node, "flannel.1")?["address"],
        "8a:55:6f:01:02:03",
        "the earlier VTEP address"
    );
    Ok(())
}

/// What subnet.env says was this node's is asked for again, even when etcd has forgotten it.
pub fn earlier_subnet_is_asked_for_again() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let file = "FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.123.1/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=false\\n";
    node.shell(&format!("printf '{file}' > /run/flannel/subnet.env"))?;
    let _daemon = node.start_ready_flanneld(&[])?;
    assert_eq!(lease_of(&lab, node)?.subnet, "10.5.123.0/24");
    Ok(())
}

pub fn environment_stands_for_flags() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).without_config())?;
    lab.etcd().put(
        "/elsewhere/config",
        r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#,
    )?;
    let node = lab.node(1)?;
    let variables = [
        ("FLANNELD_ETCD_PREFIX", "/elsewhere/"),
        ("FLANNELD_SUBNET_FILE", "/run/flannel/other/subnet.env"),
    ];
    let mut daemon = Flanneld::start_with(node, &[], &variables)?;
    daemon.wait_ready()?;
    let entry = lab
        .etcd()
        .list("/elsewhere/subnets/")?
        .pop()
        .context("no lease below the other prefix")?;
    ensure!(
        entry.key.starts_with("/elsewhere/subnets/10.9."),
        "the lease is {}",
        entry.key
    );
    ensure!(
        node.read_file("/run/flannel/other/subnet.env")?
            .contains("FLANNEL_NETWORK=10.9.0.0/16"),
        "subnet.env"
    );
    let data = link(node, "flannel.7")?["linkinfo"]["info_data"].clone();
    assert_eq!((&data["id"], &data["port"]), (&7.into(), &4789.into()));
    Ok(())
}

pub fn departed_peers_go_and_changed_ones_change() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let daemon = node.start_ready_flanneld(&["--peer-delete-hold=1s"])?;
    put_peer(&lab, "10.5.201.0-24", "192.168.50.99", "02:00:00:00:00:63")?;
    let first = peer("10.5.201.0/24", "192.168.50.99", "02:00:00:00:00:63");
    eventually(limit(10), "the peer", || check_peers(node, &[&first]))?;
    put_peer(&lab, "10.5.201.0-24", "192.168.50.98", "02:00:00:00:00:64")?;
    let moved = peer("10.5.201.0/24", "192.168.50.98", "02:00:00:00:00:64");
    eventually(limit(10), "the changed peer, and nothing of what it was", || {
        check_peers(node, &[&moved])
    })?;
    // One that leaves while nobody looks must go, too.
    daemon.kill()?;
    lab.etcd().delete(&format!("{SUBNETS_PREFIX}10.5.201.0-24"))?;
    let _daemon = node.start_ready_flanneld(&["--peer-delete-hold=1s"])?;
    eventually(limit(10), "the peer to be gone", || check_peers(node, &[]))?;
    put_peer(&lab, "10.5.202.0-24", "192.168.50.98", "02:00:00:00:00:64")?;
    let next = peer("10.5.202.0/24", "192.168.50.98", "02:00:00:00:00:64");
    eventually(limit(10), "the peer with another subnet", || {
        check_peers(node, &[&next])
    })?;
    lab.etcd().delete(&format!("{SUBNETS_PREFIX}10.5.202.0-24"))?;
    eventually(limit(10), "no peer", || check_peers(node, &[]))
}

/// Twenty nodes at once: nobody shares a subnet, nobody gives up, everybody learns of everybody.
pub fn many_start_at_once() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(12))?;
    let _daemons = start_all(&lab, &[])?;
    let mut subnets: Vec<String> = leases(&lab)?.into_iter().map(|l| l.subnet).collect();
    subnets.sort();
    subnets.dedup();
    assert_eq!(subnets.len(), 12);
    Ok(())
}

pub fn deleted_lease_is_claimed_again() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = start_all(&lab, &[])?;
    let node: &Node = lab.node(1)?;
    let before = lease_of(&lab, node)?;
    lab.etcd().delete(&before.entry.key)?;
    eventually(limit(20), "the same subnet to be claimed again", || {
        let after = lease_of(&lab, node)?;
        ensure!(after.subnet == before.subnet, "it is {}", after.subnet);
        Ok(())
    })?;
    daemons[0].check_running()?;
    await_convergence(&lab)
}

/// Beside a thousand peers a node reads each range once, and in rest it sends a message a renewal: no stream is opened again,
/// and no key is asked for.
pub fn a_node_asks_little_of_etcd() -> Result<()> {
    const PEERS: usize = 1_500;
    let lab =
        Lab::new(&LabOptions::nodes(1).config(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#))?;
    let records: Vec<(String, Vec<u8>)> = (1..=PEERS).map(lease_far_away).collect();
    records
        .chunks(100)
        .try_for_each(|some| lab.etcd().put_all(some))?;
    let node = lab.node(1)?;
    let before = Asked::read()?;
    // The shortest lease that etcd grants lasts a few seconds, and is renewed every two of them.
    let mut daemon = node.start_ready_flanneld(&["--subnet-lease-ttl=6s"])?;
    // Its own subnet is read as the other nodes' are; the rest of the ranges does not grow with the network.
    let start = Asked::read()?.since(&before);
    let ranges = start.calls("Range");
    ensure!(
        (3..=5).contains(&ranges),
        "{ranges} ranges at the start: {start:?}"
    );
    let rest = eventually(limit(60), "ten renewals", || {
        let asked = Asked::read()?.since(&before);
        ensure!(asked.messages("LeaseKeepAlive") >= 12, "{asked:?}");
        Ok(asked)
    })?;
    for stream in ["Watch", "LeaseKeepAlive"] {
        ensure!(rest.calls(stream) == 1, "streams of {stream}: {rest:?}");
    }
    ensure!(
        rest.calls("Range") == ranges,
        "{ranges} at the start, then {rest:?}"
    );
    ensure!(rest.calls("LeaseTimeToLive") == 0, "asked for a lease: {rest:?}");
    daemon.check_running()
}

/// A lease as flannel writes it, of a node that is not there.
fn lease_far_away(number: usize) -> (String, Vec<u8>) {
    let (high, low) = (100 + number / 256, number % 256);
    let value = format!(
        r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"8a:55:6f:00:{high:02x}:{low:02x}"}}}}"#
    );
    (
        format!("{SUBNETS_PREFIX}10.{high}.{low}.0-24"),
        value.into_bytes(),
    )
}
