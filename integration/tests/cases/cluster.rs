//! An etcd of three members that lose their leader, and then their majority.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::{CONFIG_KEY, DEFAULT_CONFIG, SUBNETS_PREFIX};
use flannel_lab::{Environment, Flanneld, Lab, LabOptions, Pinger, Process, Stillness, eventually, limit};
use serde_json::Value;

use super::common::{await_ping, programmed, start_together};

const MEMBERS: usize = 3;
/// How often the leader is killed, unless [`KILLS_VARIABLE`] says another number, of 1 to 50.
const KILLS: usize = 5;
const KILLS_VARIABLE: &str = "LAB_LEADER_KILLS";

fn kills() -> Result<usize> {
    let Ok(text) = std::env::var(KILLS_VARIABLE) else {
        return Ok(KILLS);
    };
    let number = text.parse().ok().filter(|number| (1..=50).contains(number));
    number.with_context(|| format!("{KILLS_VARIABLE} is {text:?}; expected a number of 1 to 50"))
}

/// Each leader is killed while records come and go: every record reaches every node, and no packet is lost.
pub fn leaders_die_and_then_the_majority() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).without_etcd())?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.put(CONFIG_KEY, DEFAULT_CONFIG)?;
    let flag = format!("--etcd-endpoints={}", endpoints());
    let mut daemons = start_together(&lab, &[&flag, "--peer-delete-hold=1s"])?;
    let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let stream = Pinger::start(&near, &far)?;
    let kills = kills()?;
    for number in 0..kills {
        let leader = cluster.leader()?;
        cluster.kill(leader)?;
        cluster
            .churn(&lab, number)
            .with_context(|| format!("after leader {leader} was killed"))?;
        cluster.restart(leader)?;
    }
    majority_dies(&lab, &mut cluster, &daemons[0])?;
    cluster
        .churn(&lab, kills)
        .context("after the majority was back")?;
    let report = stream.stop()?;
    ensure!(report.sent >= 500 && report.lost.is_empty(), "lost: {report:?}");
    daemons.iter_mut().try_for_each(Flanneld::check_running)
}

fn majority_dies(lab: &Lab, cluster: &mut Cluster, daemon: &Flanneld) -> Result<()> {
    let still = Stillness::watch(lab.node(1)?, daemon)?;
    for member in [0, 1] {
        cluster.kill(member)?;
    }
    std::thread::sleep(Duration::from_secs(7));
    still.end().context("without a leader")?;
    for member in [0, 1] {
        cluster.restart(member)?;
    }
    Ok(())
}

struct Cluster {
    lab: flannel_lab::Place,
    members: Vec<Option<Process>>,
}

fn client(member: usize) -> String {
    format!("http://192.168.50.2:{}379", member + 3)
}

fn peer(member: usize) -> String {
    format!("http://127.0.0.1:{}380", member + 3)
}

fn endpoints() -> String {
    (0..MEMBERS).map(client).collect::<Vec<_>>().join(",")
}

impl Cluster {
    fn start(lab: &Lab) -> Result<Self> {
        let mut cluster = Self {
            lab: lab.etcd().place().clone(),
            members: (0..MEMBERS).map(|_| None).collect(),
        };
        (0..MEMBERS).try_for_each(|member| cluster.restart(member))?;
        Ok(cluster)
    }

    fn restart(&mut self, member: usize) -> Result<()> {
        let all: Vec<String> = (0..MEMBERS).map(|n| format!("m{n}={}", peer(n))).collect();
        let argv = [
            "etcd".to_owned(),
            format!("--name=m{member}"),
            format!("--data-dir=/run/lab/scratch/etcd-m{member}"),
            "--log-level=error".to_owned(),
            format!("--listen-client-urls={}", client(member)),
            format!("--advertise-client-urls={}", client(member)),
            format!("--listen-peer-urls={}", peer(member)),
            format!("--initial-advertise-peer-urls={}", peer(member)),
            format!("--initial-cluster={}", all.join(",")),
        ];
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let env = Environment {
            clean: true,
            ..Environment::default()
        };
        self.members[member] = Some(self.lab.spawn(&format!("etcd-m{member}"), &argv, &env)?);
        Ok(())
    }

    fn kill(&mut self, member: usize) -> Result<()> {
        self.members[member].take().context("it does not run")?.kill()
    }

    /// The member that leads, once all three are there.
    fn leader(&self) -> Result<usize> {
        eventually(limit(40), "three members with one leader", || {
            let argv = [
                "etcdctl",
                "--endpoints",
                &endpoints(),
                "endpoint",
                "status",
                "-w",
                "json",
            ];
            let all: Value = serde_json::from_str(&self.lab.run(&argv)?)?;
            let all = all.as_array().context("no list")?;
            ensure!(all.len() == MEMBERS, "{} answer", all.len());
            let leads = |status: &Value| {
                let id = &status["Status"]["header"]["member_id"];
                !id.is_null() && *id == status["Status"]["leader"]
            };
            let leader = all.iter().find(|status| leads(status)).context("nobody leads")?;
            let endpoint = leader["Endpoint"].as_str().context("no endpoint")?;
            (0..MEMBERS)
                .find(|n| client(*n) == endpoint)
                .context("an unknown endpoint")
        })
    }

    fn put(&self, key: &str, value: &str) -> Result<()> {
        eventually(limit(40), &format!("etcd to take {key}"), || {
            let argv = ["etcdctl", "--endpoints", &endpoints(), "put", key, value];
            self.lab.run(&argv).map(drop)
        })
    }

    /// One record comes, one changes and one goes, and every node follows.
    fn churn(&self, lab: &Lab, number: usize) -> Result<()> {
        let key = |third: usize| format!("{SUBNETS_PREFIX}10.5.{third}.0-24");
        let value = |third: usize, last: usize| {
            format!(
                r#"{{"PublicIP":"192.168.50.{third}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{last:02x}:{third:02x}"}}}}"#
            )
        };
        let (new, old) = (200 + number, 199 + number);
        self.put(&key(new), &value(new, 1))?;
        self.put(&key(199), &value(199, number))?;
        if number > 1 {
            let argv = ["etcdctl", "--endpoints", &endpoints(), "del", &key(old)];
            eventually(limit(40), "etcd to delete", || self.lab.run(&argv).map(drop))?;
        }
        eventually(limit(60), "every node to follow", || {
            for node in lab.nodes() {
                let seen = programmed(node)?;
                let has = |third: usize, last: usize| {
                    seen.contains(&format!(
                        "fdb 02:00:00:00:{last:02x}:{third:02x} 192.168.50.{third} permanent"
                    ))
                };
                ensure!(has(new, 1) && has(199, number), "{}: {seen:?}", node.name());
                ensure!(number < 2 || !has(old, 1), "{} has one that is gone", node.name());
            }
            Ok(())
        })
    }
}
