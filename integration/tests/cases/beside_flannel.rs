//! What nodes of flannel find in the etcd that they share with ours.

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Lab, LabOptions, eventually, limit, sandbox};

const DUAL: &str =
    r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
const SERVICE: &str = r#"
{"apiVersion": "v1", "kind": "List", "items": [
 {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "one"}, "spec": {"cidrs": ["10.96.0.0/16"]}},
 {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "subnets"},
  "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}}
]}
"#;

/// Leases, reservations, notes, Services and the status of nodes, in dual stack: of all that was ever written, nothing but lease keys of
/// flannel's two forms begins with `<prefix>/subnets`. A single other key makes every node of flannel drop its peers.
pub fn nothing_else_ever_stood_where_flannel_looks() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(DUAL))?;
    let reserved = "10.5.77.0/24,fd00:5:0:77::/64";
    let of = [
        "--public-ip",
        lab.node(2)?.address(),
        "--public-ipv6",
        lab.node(2)?.ipv6_address(),
    ];
    lab.flannelctl(&[&["subnets", "reserve", reserved], &of[..]].concat())?
        .ok()?;
    let file = format!("{}/web.json", sandbox::SCRATCH);
    std::fs::write(&file, SERVICE)?;
    lab.flannelctl(&["service", "apply", "-f", &file])?.ok()?;
    let mut daemons = Vec::new();
    for node in lab.nodes() {
        daemons.push(node.start_ready_flanneld(&[])?);
    }
    let own = |number: usize| -> Result<flannel_lab::etcd::Entry> {
        let holder = format!(r#""PublicIP":"{}""#, lab.node(number)?.address());
        let all = lab.etcd().list(SUBNETS_PREFIX)?;
        all.into_iter()
            .find(|entry| entry.value.contains(&holder))
            .context("no lease")
    };
    ensure!(
        own(2)?.key.ends_with("10.5.77.0-24&fd00:5:0:77::-64"),
        "{:?}",
        own(2)?
    );
    // What makes nodes write once more: a lease that is gone, another run, a Service and a reservation that go.
    let first = own(1)?;
    lab.etcd().revoke(first.lease)?;
    eventually(limit(30), "node1 to have a lease again", || own(1).map(drop))?;
    daemons.clear();
    daemons.push(lab.node(1)?.start_ready_flanneld(&[])?);
    lab.flannelctl(&["service", "delete", "subnets/web"])?.ok()?;
    lab.flannelctl(&["subnets", "release", "--force", reserved])?
        .ok()?;

    let written = lab.etcd().history("/coreos.com/network/")?;
    let (leases, others): (Vec<_>, Vec<_>) = written
        .iter()
        .partition(|entry| entry.key.starts_with(SUBNETS_PREFIX.trim_end_matches('/')));
    ensure!(
        leases.len() >= 4 && others.len() >= 5,
        "{} and {} writes",
        leases.len(),
        others.len()
    );
    for entry in leases {
        is_a_lease_key(&entry.key).with_context(|| entry.key.clone())?;
    }
    Ok(())
}

/// `<prefix>/subnets/10.5.1.0-24` or `…/10.5.1.0-24&fd00:5::-64`, with lengths that flannel takes.
fn is_a_lease_key(key: &str) -> Result<()> {
    let key = key.strip_prefix(SUBNETS_PREFIX).context("not below the prefix")?;
    let mut parts = key.split('&');
    let (address, length) = parts
        .next()
        .and_then(|part| part.split_once('-'))
        .context("no IPv4 part")?;
    let address: std::net::Ipv4Addr = address.parse()?;
    let length: u8 = length.parse()?;
    ensure!((1..=31).contains(&length), "its length is {length}");
    let mut again = format!("{address}-{length}");
    if let Some(part) = parts.next() {
        let (address, length) = part.split_once('-').context("no IPv6 part")?;
        let address: std::net::Ipv6Addr = address.parse()?;
        let length: u8 = length.parse()?;
        ensure!((1..=127).contains(&length), "its length is {length}");
        again += &format!("&{address}-{length}");
    }
    ensure!(again == key, "flannel would write {again}");
    Ok(())
}
