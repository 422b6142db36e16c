//! flannelctl as an operator uses it, against the etcd of two nodes that run: tables, JSON, YAML and exit codes.

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::lab::{CONFIG_KEY, DEFAULT_CONFIG, OPERATOR_ADDRESS, SUBNETS_PREFIX};
use flannel_lab::{Lab, LabOptions, Output, Process, etcd, eventually, limit, sandbox};
use serde_json::Value;

use super::backend::Pair;
use super::common::{Lease, lease_of, put_peer, start_all};
use super::ctl::{await_sound, finds};

const USAGE: i32 = 1;
const UNREACHABLE: i32 = 2;
const BAD_CONTENT: i32 = 3;
const NOT_FOUND: i32 = 4;

/// The same command as a table, as JSON and as YAML; the two latter must say the same.
fn in_every_form(lab: &Lab, arguments: &[&str]) -> Result<(String, Value)> {
    let table = lab.flannelctl(arguments)?.ok()?;
    let json = lab.flannelctl(&[arguments, &["-o", "json"]].concat())?.json()?;
    let yaml = lab.flannelctl(&[arguments, &["-o", "yaml"]].concat())?.ok()?;
    let yaml: Value = serde_norway::from_str(&yaml).with_context(|| format!("no YAML: {yaml}"))?;
    ensure!(without_clocks(&yaml) == without_clocks(&json), "{yaml}\n{json}");
    Ok((table, json))
}

/// Time goes on between two commands.
fn without_clocks(value: &Value) -> Value {
    match value {
        Value::Array(all) => all.iter().map(without_clocks).collect(),
        Value::Object(fields) => {
            let still = fields.iter().filter(|(name, _)| !name.contains("econds"));
            still
                .map(|(name, value)| (name.clone(), without_clocks(value)))
                .collect()
        }
        other => other.clone(),
    }
}

fn ends_with(said: &Output, code: i32, part: &str) -> Result<()> {
    ensure!(said.status.code() == Some(code), "not {code}: {said:?}");
    ensure!(said.stderr.contains(part), "no {part:?} in {said:?}");
    Ok(())
}

pub fn subnets_in_every_form() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(2))?;
    let _daemons = start_all(&lab, &[])?;
    let own = lease_of(&lab, lab.node(1)?)?;
    put_peer(&lab, "10.5.200.0-24", "192.168.50.99", "02:00:00:00:00:99")?;
    the_list(&lab, &own)?;
    the_map(&lab)?;
    one_lease(&lab, &own)?;
    lab.etcd_mut().kill()?;
    ends_with(&lab.flannelctl(&["subnets"])?, UNREACHABLE, "connection refused")?;
    ends_with(&lab.flannelctl(&["subnets", "map"])?, UNREACHABLE, etcd::ENDPOINT)
}

fn the_list(lab: &Lab, own: &Lease) -> Result<()> {
    let (table, json) = in_every_form(lab, &["subnets"])?;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split("   ").collect()).collect();
    let header: Vec<&str> = lines[0]
        .iter()
        .map(|cell| cell.trim())
        .filter(|cell| !cell.is_empty())
        .collect();
    let expected = [
        "SUBNET",
        "PUBLIC IP",
        "NODE",
        "BACKEND",
        "STATE",
        "AGE",
        "RENEWED",
        "EXPIRES",
        "DATA",
    ];
    assert_eq!(header, expected, "{table}");
    assert_eq!(lines.len(), 4, "{table}");
    let row = table
        .lines()
        .find(|line| line.starts_with(&own.subnet))
        .context("no row")?;
    for part in [own.public_ip.as_str(), " vxlan ", " held ", "23h5", &own.vtep] {
        ensure!(row.contains(part), "no {part:?} in {row:?}");
    }
    let subnets = json["subnets"].as_array().context("no subnets")?;
    let ours = subnets
        .iter()
        .find(|found| found["subnet"] == own.subnet.as_str());
    let ours = ours.context("it is not in the JSON")?;
    let age = ours["ageSeconds"].as_u64().context("no age")?;
    let renewed = ours["renewedSecondsAgo"].as_u64().context("no time of renewal")?;
    ensure!(age < 120 && renewed <= 120, "{ours}");
    ensure!(ours["nodeID"].as_str().is_some_and(|id| id.len() == 32), "{ours}");
    let stranger = subnets.iter().find(|found| found["subnet"] == "10.5.200.0/24");
    let stranger = stranger.context("the other record is missing")?;
    ensure!(
        stranger["ageSeconds"].is_null() && stranger["nodeID"].is_null(),
        "{stranger}"
    );
    Ok(())
}

fn the_map(lab: &Lab) -> Result<()> {
    let (table, json) = in_every_form(lab, &["subnets", "map"])?;
    ensure!(
        table.starts_with(
            "10.5.0.0/16 in subnets of /24: 3 used, 0 reserved, 0 in hold-down, 252 free of 255; 11 ‰ full\n"
        ),
        "{table}"
    );
    let marks = table
        .lines()
        .skip(1)
        .flat_map(str::chars)
        .filter(|c| *c == '#')
        .count();
    // One stands in the line that explains the marks.
    assert_eq!(marks, 4, "{table}");
    assert_eq!(json["networks"][0]["used"], 3);
    let nowhere = ["--etcd-prefix", "/nobody", "subnets", "map"];
    ends_with(&lab.flannelctl(&nowhere)?, NOT_FOUND, "/nobody/config")
}

fn one_lease(lab: &Lab, own: &Lease) -> Result<()> {
    let key = own.subnet.replace('/', "-");
    let pod = own.gateway();
    for name in [own.subnet.as_str(), key.as_str(), pod.as_str()] {
        let (table, json) = in_every_form(lab, &["subnets", "show", name])?;
        assert_eq!(json["key"], format!("{SUBNETS_PREFIX}{key}"));
        assert_eq!(json["etcdLease"], format!("{:016x}", own.entry.lease));
        for part in [
            "Backend     vxlan",
            "State       held",
            "Age         ",
            "Renewed     ",
            own.vtep.as_str(),
        ] {
            ensure!(table.contains(part), "no {part:?} in {table}");
        }
    }
    ends_with(
        &lab.flannelctl(&["subnets", "show", "10.5.254.7"])?,
        NOT_FOUND,
        "10.5.254.7",
    )?;
    ends_with(
        &lab.flannelctl(&["subnets", "show", "junk"])?,
        USAGE,
        "no subnet of a node",
    )
}

pub fn changes_are_told_while_they_happen() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let _daemons = start_all(&lab, &[])?;
    let lines = watch(&lab, "table")?;
    let objects = watch(&lab, "json")?;
    let told = |event: &str, part: &str| -> Result<()> {
        eventually(limit(20), &format!("{event} of {part}"), || {
            let said = lines.log_text()?;
            let line = |line: &str| line.starts_with(event) && line.contains(part);
            ensure!(said.lines().any(line), "the lines:\n{said}");
            let said = objects.log_text()?;
            let object = |line: &str| -> bool {
                let line: Value = serde_json::from_str(line).unwrap_or_default();
                line["event"] == event && line.to_string().contains(part)
            };
            ensure!(said.lines().any(object), "the objects:\n{said}");
            Ok(())
        })
    };
    let other = lease_of(&lab, lab.node(2)?)?;
    told("listed", &other.subnet)?;
    put_peer(&lab, "10.5.200.0-24", "192.168.50.98", "02:00:00:00:00:98")?;
    told("added", "10.5.200.0/24")?;
    put_peer(&lab, "10.5.200.0-24", "192.168.50.99", "02:00:00:00:00:98")?;
    told("moved", "192.168.50.99")?;
    put_peer(&lab, "10.5.200.0-24", "192.168.50.99", "02:00:00:00:00:99")?;
    told("changed", "10.5.200.0/24")?;
    lab.etcd().put(&format!("{SUBNETS_PREFIX}0.0.0.0-0"), "{}")?;
    told("rejected", "0.0.0.0-0")?;
    // The node registers again: for it that is nothing, for who watches it is two lines.
    lab.etcd().revoke(other.entry.lease)?;
    told("removed", &other.subnet)?;
    told("added", &other.subnet)
}

fn watch(lab: &Lab, form: &str) -> Result<Process> {
    let program = format!("{}/flannelctl", sandbox::BINARIES);
    let argv = [
        program.as_str(),
        "--etcd-insecure",
        "--etcd-endpoints",
        etcd::ENDPOINT,
        "subnets",
        "watch",
        "-o",
        form,
    ];
    lab.operator()
        .spawn(&format!("watch-{form}"), &argv, &Environment::default())
}

pub fn a_config_is_checked_beside_what_runs() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let _daemons = start_all(&lab, &[])?;
    let own = lease_of(&lab, lab.node(1)?)?;
    let (table, json) = in_every_form(&lab, &["check-config", "--etcd"])?;
    ensure!(
        table.contains("ok       lease-fit") && table.ends_with("0 errors, 0 warnings\n"),
        "{table}"
    );
    assert_eq!(json["result"], "ok");
    let file = format!("{}/net-conf.json", sandbox::SCRATCH);
    std::fs::write(&file, DEFAULT_CONFIG)?;
    in_every_form(&lab, &["check-config", &file])?;

    // What would take its place, and what it would mean for the nodes.
    std::fs::write(&file, r#"{"Network":"10.9.0.0/16","Backend":{"Type":"host-gw"}}"#)?;
    in_every_form(&lab, &["check-config", &file]).context("alone it is fine")?;
    let said = lab.flannelctl(&["check-config", "--etcd", &file])?;
    ends_with(&said, BAD_CONTENT, &file)?;
    for part in [
        "warning  lease-fit",
        "ERROR    lease-backends",
        own.public_ip.as_str(),
    ] {
        ensure!(said.stdout.contains(part), "no {part:?} in {said:?}");
    }
    std::fs::write(
        &file,
        r#"{"Network":"10.9.0.0/16","SubnetLen":99,"SubnetMin":"10.1.0.0"}"#,
    )?;
    let said = lab.flannelctl(&["check-config", "-o", "json", &file])?;
    ends_with(&said, BAD_CONTENT, &file)?;
    let found: Value = serde_json::from_str(&said.stdout)?;
    assert_eq!(found["result"], "error", "{found}");
    ends_with(
        &lab.flannelctl(&["check-config", "/nowhere.json"])?,
        USAGE,
        "/nowhere.json",
    )?;
    ends_with(&lab.flannelctl(&["check-config"])?, USAGE, "FILE")?;
    lab.etcd().put(CONFIG_KEY, "junk")?;
    ends_with(
        &lab.flannelctl(&["check-config", "--etcd"])?,
        BAD_CONTENT,
        CONFIG_KEY,
    )?;
    lab.etcd().delete(CONFIG_KEY)?;
    ends_with(
        &lab.flannelctl(&["check-config", "--etcd"])?,
        NOT_FOUND,
        CONFIG_KEY,
    )
}

/// The doctor on a node with `backend`: sound first, then without its route, then without what `mischief` took.
fn doctor_with(backend: &str, mischief: &[(&str, &str, &str)]) -> Result<()> {
    let mut pair = Pair::start(backend)?;
    let said = await_sound(pair.lab.node(1)?)?;
    for part in [
        "ok       peer-routes",
        "ok       peers ",
        "ok       stranded-pods",
        "ok       peer-cache",
    ] {
        ensure!(said.contains(part), "no {part:?} in\n{said}");
    }
    pair.stop();
    for (script, check, part) in mischief {
        pair.lab.node(1)?.shell(script)?;
        finds(pair.lab.node(1)?, "error", check, part).with_context(|| format!("after {script}"))?;
    }
    Ok(())
}

/// The one route of ours that leads to other nodes' pods.
const OUR_ROUTE: &str = "$(ip route show proto 70 | grep '^10.5' | head -n 1 | cut -d ' ' -f 1)";

pub fn doctor_follows_the_routes_of_host_gw() -> Result<()> {
    let elsewhere = format!("ip route replace {OUR_ROUTE} via {OPERATOR_ADDRESS} proto 70");
    // As the bridge has it after another node took the subnet that this one had.
    let left = format!("own={OUR_ROUTE}; ip address add ${{own%.0/24}}.1/32 dev lo");
    let gone = format!("ip address flush dev lo; ip route del {OUR_ROUTE}");
    doctor_with(
        r#"{"Type":"host-gw"}"#,
        &[
            (&elsewhere, "peer-routes", "via 192.168.50.3 dev eth0"),
            (&left, "stranded-pods", "10.5."),
            (&gone, "peer-routes", "(no route)"),
        ],
    )
}

pub fn doctor_knows_the_device_of_udp() -> Result<()> {
    doctor_with(
        r#"{"Type":"udp"}"#,
        &[(
            "ip link del flannel0 2> /dev/null || true",
            "tunnel-device",
            "no device flannel0",
        )],
    )
}

pub fn doctor_knows_the_device_of_ipip() -> Result<()> {
    let gone = format!("ip route del {OUR_ROUTE}");
    doctor_with(
        r#"{"Type":"ipip"}"#,
        &[
            (&gone, "peer-routes", "(no route)"),
            (
                "ip link set flannel.ipip down",
                "tunnel-device",
                "flannel.ipip is down",
            ),
        ],
    )
}

pub fn doctor_knows_the_keys_of_wireguard() -> Result<()> {
    let empty = "ip link del flannel-wg; ip link add flannel-wg type wireguard; ip link set flannel-wg up";
    doctor_with(
        r#"{"Type":"wireguard"}"#,
        &[
            (
                "ip address flush dev flannel-wg",
                "tunnel-device",
                "does not have its address",
            ),
            (empty, "peer-keys", "its key is not there"),
        ],
    )
}
