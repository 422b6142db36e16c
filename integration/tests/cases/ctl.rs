//! flannelctl about leases and peers, on nodes that run.

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Lab, LabOptions, Node, Output, etcd, eventually, limit, sandbox};
use serde_json::Value;

use super::common::{lease_of, start_all};

const IN_USE: i32 = 5;
const FINDINGS: i32 = 6;

pub fn doctor_finds_what_a_node_lacks() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let node = lab.node(1)?;
    let stranger = lab.flannelctl(&["doctor"])?.ok()?;
    ensure!(stranger.contains("skipped  node"), "{stranger}");
    let daemons = start_all(&lab, &[])?;
    let sound = await_sound(node)?;
    for part in [
        "ok       own-lease",
        "ok       tunnel-device",
        "ok       peer-routes",
        "ok       peer-entries",
    ] {
        ensure!(sound.contains(part), "no {part:?} in\n{sound}");
    }

    // Nobody repairs any more.
    drop(daemons);
    let peer = lease_of(&lab, lab.node(2)?)?;
    node.run(&["bridge", "fdb", "del", &peer.vtep, "dev", "flannel.1"])?;
    finds(node, "error", "peer-entries", &peer.subnet)?;
    node.run(&["ip", "route", "del", &peer.subnet])?;
    finds(node, "error", "peer-routes", &peer.subnet)?;
    node.run(&["ip", "link", "set", "flannel.1", "address", "8a:55:6f:01:02:03"])?;
    finds(node, "error", "tunnel-device", "8a:55:6f:01:02:03")?;
    node.run(&["ip", "link", "del", "flannel.1"])?;
    finds(node, "error", "tunnel-device", "no device flannel.1")?;
    lab.etcd().delete(&lease_of(&lab, node)?.entry.key)?;
    finds(node, "error", "own-lease", "no such lease")?;

    let _again = start_all(&lab, &[])?;
    await_sound(node).map(drop)
}

/// What the doctor says as soon as it finds nothing: the peers come to the disk a little later than into the kernel.
pub(super) fn await_sound(node: &Node) -> Result<String> {
    eventually(limit(20), "a node without findings", || {
        let said = doctor(node)?.ok()?;
        is_sound(&said).map(|()| said)
    })
}

/// No finding, but that the machine's etcd may be one with a known weakness.
fn is_sound(said: &str) -> Result<()> {
    let finds = |line: &&str| {
        (line.starts_with("warning") && !line.contains("etcd-version")) || line.starts_with("ERROR")
    };
    ensure!(said.lines().find(finds).is_none(), "{said}");
    ensure!(said.contains("\n0 errors, "), "{said}");
    Ok(())
}

fn doctor(node: &Node) -> Result<Output> {
    let program = format!("{}/flannelctl", sandbox::BINARIES);
    let arguments = [
        "--etcd-insecure",
        "--etcd-endpoints",
        etcd::ENDPOINT,
        "-o",
        "table",
        "doctor",
    ];
    node.exec(&[&[program.as_str()], &arguments[..]].concat())
}

/// Checks that the doctor says `part` in `check`, and that its exit code fits.
pub(super) fn finds(node: &Node, level: &str, check: &str, part: &str) -> Result<()> {
    let said = doctor(node)?;
    let shown = if level == "error" { "ERROR" } else { level };
    let line = said
        .stdout
        .lines()
        .find(|line| line.starts_with(shown) && line.contains(check));
    ensure!(
        line.is_some_and(|line| line.contains(part)),
        "no {shown} {check} with {part:?} in\n{}",
        said.stdout
    );
    let expected = if said.stdout.contains("\nERROR") {
        FINDINGS
    } else {
        0
    };
    ensure!(said.status.code() == Some(expected), "{said:?}");
    Ok(())
}

pub fn a_reservation_waits_for_its_node_and_outlives_it() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let (first, second) = (lab.node(1)?, lab.node(2)?);
    let reserve = [
        "subnets",
        "reserve",
        "10.5.77.0/24",
        "--public-ip",
        second.address(),
    ];
    lab.flannelctl(&reserve)?.ok()?;
    ensure!(state(&lab, "10.5.77.0/24")? == "reserved", "not reserved");
    let daemons = start_all(&lab, &[])?;
    ensure!(lease_of(&lab, second)?.subnet == "10.5.77.0/24", "another subnet");
    ensure!(
        lease_of(&lab, first)?.subnet != "10.5.77.0/24",
        "somebody else has it"
    );
    eventually(limit(5), "the reservation to be in use", || {
        ensure!(state(&lab, "10.5.77.0/24")? == "held", "not held");
        Ok(())
    })?;
    ensure!(
        lease_of(&lab, second)?.entry.lease == 0,
        "it became a lease that expires"
    );
    let refused = lab.flannelctl(&["subnets", "release", "10.5.77.0/24"])?;
    ensure!(refused.status.code() == Some(IN_USE), "{refused:?}");

    drop(daemons);
    let shown = lab.flannelctl(&["subnets", "show", "10.5.77.9"])?.ok()?;
    ensure!(shown.contains("none: a reservation"), "{shown}");
    lab.flannelctl(&["subnets", "release", "--force", "10.5.77.0/24"])?
        .ok()?;
    ensure!(
        lab.etcd()
            .get(&format!("{SUBNETS_PREFIX}10.5.77.0-24"))?
            .is_none(),
        "it is still there"
    );
    Ok(())
}

/// The state of a subnet as `flannelctl subnets` says it.
fn state(lab: &Lab, subnet: &str) -> Result<String> {
    let said = lab.flannelctl(&["subnets", "-o", "json"])?.ok()?;
    let all: Value = serde_json::from_str(&said)?;
    let subnets = all["subnets"].as_array().context("no subnets")?;
    let found = subnets.iter().find(|found| found["subnet"] == subnet);
    let state = found.with_context(|| format!("no {subnet} in {said}"))?["state"].as_str();
    Ok(state.context("no state")?.to_owned())
}

pub fn nothing_but_lease_keys_was_ever_written_where_flannel_looks() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3))?;
    lab.flannelctl(&[
        "subnets",
        "reserve",
        "10.5.77.0/24",
        "--public-ip",
        lab.node(3)?.address(),
    ])?
    .ok()?;
    let daemons = start_all(&lab, &[])?;
    // A lease that is gone, one that another node takes, a restart: everything that makes a node write.
    lab.etcd().revoke(lease_of(&lab, lab.node(1)?)?.entry.lease)?;
    let own = lease_of(&lab, lab.node(2)?)?.entry;
    let thief = r#"{"PublicIP":"192.168.50.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#;
    lab.etcd().put(&own.key, thief)?;
    eventually(limit(30), "both nodes to have a lease again", || {
        lease_of(&lab, lab.node(1)?)?;
        lease_of(&lab, lab.node(2)?).map(drop)
    })?;
    drop(daemons);
    let mut daemon = lab.node(1)?.start_flanneld(&[])?;
    daemon.wait_ready()?;
    lab.flannelctl(&["subnets", "release", "--force", "10.5.77.0/24"])?
        .ok()?;

    let written = lab.etcd().history(SUBNETS_PREFIX.trim_end_matches('/'))?;
    ensure!(written.len() >= 7, "only {} writes", written.len());
    for entry in &written {
        check_as_flannel_does(&entry.key, &entry.value)
            .with_context(|| format!("{} = {}", entry.key, entry.value))?;
    }
    Ok(())
}

/// What flannel reads: `<prefix>/subnets/<a.b.c.d>-<len>` and its JSON names. Anything else makes it forget all its peers.
fn check_as_flannel_does(key: &str, value: &str) -> Result<()> {
    let rest = key.strip_prefix(SUBNETS_PREFIX).context("not below the prefix")?;
    let (address, length) = rest.split_once('-').context("no length")?;
    let address: std::net::Ipv4Addr = address.parse()?;
    ensure!(matches!(length.parse(), Ok(1..=31_u8)), "length");
    ensure!(format!("{address}-{length}") == rest, "not as flannel writes it");
    let fields: Value = serde_json::from_str(value)?;
    ensure!(
        fields["PublicIP"]
            .as_str()
            .is_some_and(|ip| ip.parse::<std::net::Ipv4Addr>().is_ok()),
        "PublicIP"
    );
    ensure!(
        value.contains(r#","PublicIPv6":null"#),
        "PublicIPv6 has to be there"
    );
    Ok(())
}

/// What kube-proxy left is named with what removes it, and `flanneld cleanup --services` removes what is ours and nothing else.
pub fn each_proxy_is_removed_by_its_own_means() -> Result<()> {
    const THEIRS: &str = "add table ip kube-proxy; add chain ip kube-proxy services; add table ip nat; add chain ip nat KUBE-SERVICES; \
                          add chain ip nat KUBE-KUBELET-CANARY; add chain ip nat DOCKER";
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    node.run(&["nft", THEIRS])?;
    // where the kernel still has the former interface of iptables
    let legacy = node
        .shell("iptables-legacy -t nat -N KUBE-SERVICES && iptables-legacy -t nat -N KUBE-KUBELET-CANARY");
    // this kernel may have no dummy devices, and any device of that name will do
    node.run(&[
        "ip",
        "link",
        "add",
        "kube-ipvs0",
        "type",
        "veth",
        "peer",
        "name",
        "other0",
    ])?;
    node.run(&["ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0"])?;
    let mut daemons = start_all(&lab, &[])?;
    ensure!(
        !doctor(node)?.stdout.contains("kube-proxy"),
        "it has the Services still"
    );
    lab.etcd().put(
        "/coreos.com/network/services/v1/config",
        r#"{"cidrs":["10.96.0.0/16"]}"#,
    )?;
    lab.etcd().put(
        "/coreos.com/network/services/v1/spec/shop/web",
        r#"{"clusterIP":"10.96.0.10","ports":[{"port":80}]}"#,
    )?;
    let of_services = || -> Result<String> {
        let tables = node.run(&["nft", "list", "tables"])?;
        let routes = node.run(&["ip", "route", "show", "table", "local", "proto", "70"])?;
        let ours = tables.lines().filter(|line| line.contains("flannel-services"));
        Ok(ours.chain(routes.lines()).collect::<Vec<_>>().join("\n"))
    };
    eventually(limit(20), "the Service", || {
        ensure!(!of_services()?.is_empty(), "nothing is programmed");
        Ok(())
    })?;
    for part in [
        "device kube-ipvs0 with 1 addresses",
        "table ip kube-proxy",
        "1 chains in table ip nat",
    ] {
        finds(node, "warning", "kube-proxy", part)?;
    }
    if legacy.is_ok() {
        finds(
            node,
            "warning",
            "kube-proxy",
            "1 chains in table nat of the former iptables",
        )?;
        let fix = "iptables-legacy-save | grep -v KUBE- | iptables-legacy-restore";
        let told = doctor(node)?.stdout;
        ensure!(told.contains(fix), "{told}");
    }

    let flanneld = format!("{}/flanneld", sandbox::BINARIES);
    let refused = node.exec(&[&flanneld, "cleanup", "--services"])?;
    ensure!(
        refused.ok().is_err() && !of_services()?.is_empty(),
        "a daemon runs"
    );
    let rest = || {
        node.run(&[
            "sh",
            "-c",
            "nft list tables | grep -v flannel-services; ip -o address; ip route",
        ])
    };
    let before = rest()?;
    daemons.drain(..).try_for_each(|daemon| daemon.kill())?;
    node.run(&[&flanneld, "cleanup", "--services"])?;
    let left = of_services()?;
    ensure!(left.is_empty(), "{left}");
    assert_eq!(rest()?, before, "and nothing else");
    node.run(&[&flanneld, "cleanup", "--services"]).map(drop)
}
