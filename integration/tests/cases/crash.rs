//! The plugin ended at any point, and many at once: nothing may be left behind, and nobody else may be harmed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use flannel_lab::pod::{CNI_CONFIG, CniCall, container_id, make_netns};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, eventually, limit, sandbox};
use serde_json::{Value, json};

use super::common::{await_reaper, list, text};

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.7.1/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=false\\n";
const ADDRESSES: &str = "/var/lib/cni/networks/cbr0";
const SCRATCH: &str = "/var/lib/cni/flannel";
/// The pod that stands all the time and must not notice.
const KEEPER: &str = "keeper";
/// Fewer points than this would mean that the sweep has not seen the plugin's work.
const FEWEST_POINTS: u32 = 30;
/// More would mean that something loops.
const MOST_POINTS: u32 = 2_000;

/// A node with a pod that stands, and what is there because of it.
struct Bed {
    lab: Lab,
    leases: BTreeSet<String>,
    scratch: BTreeSet<String>,
    veths: usize,
    rules: String,
    _daemon: Option<Flanneld>,
}

impl Bed {
    /// Masquerading in the plugin is on, so that an ADD has most to make and to lose.
    fn new() -> Result<Self> {
        Self::with(false)
    }

    /// The same with a daemon to which the plugin leaves deletions. It waits for etcd, and does that much meanwhile.
    fn with(daemon: bool) -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(1).without_etcd())?;
        let node = lab.node(1)?;
        node.shell(&format!("printf '{SUBNET_ENV}' > /run/flannel/subnet.env"))?;
        let daemon = match daemon {
            true => Some(node.start_flanneld(&[])?),
            false => None,
        };
        if daemon.is_some() {
            await_reaper(node)?;
        }
        node.add_pod(KEEPER)?;
        make_netns(node, "p")?;
        let bed = Self {
            _daemon: daemon,
            leases: leases(node)?,
            scratch: names(node, SCRATCH)?,
            veths: veths(node)?,
            rules: rules(node)?,
            lab,
        };
        ensure!(
            bed.leases.len() == 1 && bed.veths == 1,
            "the standing pod has no lease or no veth"
        );
        Ok(bed)
    }

    fn node(&self) -> Result<&Node> {
        self.lab.node(1)
    }

    /// Only what the standing pod has is there. A deletion that the plugin handed on may take a moment.
    fn check_clean(&self, after: &str) -> Result<()> {
        let node = self.node()?;
        eventually(limit(10), &format!("nothing to be left after {after}"), || {
            let leases = leases(node)?;
            ensure!(
                leases == self.leases,
                "leases {leases:?}, expected {:?}",
                self.leases
            );
            let scratch = names(node, SCRATCH)?;
            ensure!(
                scratch == self.scratch,
                "files in {SCRATCH}: {scratch:?}, expected {:?}",
                self.scratch
            );
            let veths = veths(node)?;
            ensure!(veths == self.veths, "{veths} veths, expected {}", self.veths);
            Ok(())
        })?;
        let rules = rules(node)?;
        ensure!(
            rules == self.rules,
            "after {after} the rules are\n{rules}\nand were\n{}",
            self.rules
        );
        Ok(())
    }

    /// The pod that stood all the time has what it had.
    fn check_keeper(&self) -> Result<()> {
        let keeper = self.node()?.pod_place(KEEPER);
        keeper.ping("10.5.7.1")
    }
}

fn names(node: &Node, folder: &str) -> Result<BTreeSet<String>> {
    let Ok(items) = std::fs::read_dir(node.file(folder)) else {
        return Ok(BTreeSet::new());
    };
    items
        .map(|item| Ok(item?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn leases(node: &Node) -> Result<BTreeSet<String>> {
    let mut names = names(node, ADDRESSES)?;
    names.retain(|name| name.parse::<IpAddr>().is_ok());
    Ok(names)
}

fn veths(node: &Node) -> Result<usize> {
    Ok(node
        .link_names()?
        .iter()
        .filter(|name| name.starts_with("veth"))
        .count())
}

/// Every table, chain, rule and element, without counters.
fn rules(node: &Node) -> Result<String> {
    node.run(&["nft", "-s", "list", "ruleset"])
}

/// What a call of ours is for the sweep: pod `p`'s namespace, a container of its own each time.
fn call(verb: &str, number: u32) -> CniCall {
    CniCall {
        container: container_id(&format!("p{number}")),
        stdin: CNI_CONFIG.replace("0.3.1", "1.0.0").into(),
        ..CniCall::new(verb, "p")
    }
}

fn collect_garbage(node: &Node) -> Result<()> {
    let mut config: Value = serde_json::from_str(CNI_CONFIG)?;
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": container_id(KEEPER), "ifname": "eth0" }]);
    let call = CniCall {
        container: String::new(),
        interface: String::new(),
        ..CniCall::new("GC", "").without_netns().stdin(config.to_string())
    };
    node.cni(&call)?.ok().map(drop)
}

/// Kills `verb` as it begins its call `number` of the kernel; `false` when it has fewer.
fn killed(node: &Node, verb: &str, number: u32) -> Result<bool> {
    Ok(killed_as(node, &call(verb, number), number)?.starts_with("killed"))
}

/// Kills `call` as it begins its call `number` of the kernel; what was reported of that.
fn killed_as(node: &Node, call: &CniCall, number: u32) -> Result<String> {
    let report = "/run/kill-at.report";
    let tool = format!("{}/kill-at", sandbox::BINARIES);
    let output = node.cni(&call.clone().through(&[&tool, &number.to_string(), report]))?;
    let report = std::fs::read_to_string(node.file(report)).context("no report")?;
    ensure!(
        report.starts_with("killed") || output.success(),
        "{} was not killed and failed: {} {}",
        call.command,
        output.stdout,
        output.stderr
    );
    Ok(report)
}

/// `verb` killed at every call, each time followed by `mend`, after which nothing may be left.
fn sweep(verb: &str, mend: impl Fn(&Node, u32) -> Result<()>) -> Result<()> {
    sweep_in(&Bed::new()?, verb, mend)
}

fn sweep_in(bed: &Bed, verb: &str, mend: impl Fn(&Node, u32) -> Result<()>) -> Result<()> {
    let node = bed.node()?;
    let mut number = 1;
    loop {
        if verb == "DEL" {
            node.cni(&call("ADD", number))?
                .ok()
                .with_context(|| format!("after {} points", number - 1))?;
        }
        let hit = killed(node, verb, number)?;
        mend(node, number).with_context(|| format!("after {verb} was killed at its call {number}"))?;
        bed.check_clean(&format!("{verb} killed at its call {number}"))?;
        if !hit {
            break;
        }
        number += 1;
        ensure!(number < MOST_POINTS, "{verb} makes more than {MOST_POINTS} calls");
    }
    ensure!(number > FEWEST_POINTS, "only {number} points");
    bed.check_keeper()
}

fn delete(node: &Node, number: u32) -> Result<()> {
    let output = node.cni(&call("DEL", number))?.ok()?;
    ensure!(output.is_empty(), "DEL printed {output}");
    Ok(())
}

pub fn add_killed_anywhere_is_undone_by_del() -> Result<()> {
    sweep("ADD", delete)
}

pub fn del_killed_anywhere_is_finished_by_del() -> Result<()> {
    sweep("DEL", delete)
}

pub fn add_killed_anywhere_is_undone_by_gc() -> Result<()> {
    sweep("ADD", |node, _| collect_garbage(node))
}

pub fn del_killed_anywhere_is_finished_by_gc() -> Result<()> {
    sweep("DEL", |node, _| collect_garbage(node))
}

pub fn del_handed_over_and_killed_anywhere_is_finished_by_del() -> Result<()> {
    sweep_in(&Bed::with(true)?, "DEL", delete)
}

pub fn del_handed_over_and_killed_anywhere_is_finished_by_gc() -> Result<()> {
    sweep_in(&Bed::with(true)?, "DEL", |node, _| collect_garbage(node))
}

/// The same call with Debian's `ptp` as delegate, which is a program of its own.
fn delegated(verb: &str, number: u32) -> CniCall {
    let config = json!({ "name": "cbr0", "cniVersion": "1.0.0", "type": "flannel", "delegate": { "type": "ptp", "ipMasq": false } });
    CniCall {
        variables: vec![("CNI_PATH".into(), "/usr/lib/cni".into())],
        stdin: config.to_string().into(),
        ..call(verb, number)
    }
}

/// ADD ends in the delegate: it is killed at each of our own calls, up to the one that starts it. What is killed later is the
/// delegate itself. DEL waits for it, and is killed at each of its calls at first and then, in the middle of the delegate's work, at
/// every fiftieth; the delegate then runs on alone.
pub fn another_delegate_killed_anywhere_is_finished_by_del() -> Result<()> {
    const EXECVE: &str = "killed 59";
    let bed = Bed::new()?;
    let node = bed.node()?;
    let delete = |number| -> Result<()> {
        let output = node.cni(&delegated("DEL", number))?.ok()?;
        ensure!(output.is_empty(), "DEL printed {output}");
        bed.check_clean(&format!("a kill at call {number}, and DEL"))
    };
    let mut number = 1;
    loop {
        let report = killed_as(node, &delegated("ADD", number), number)?;
        delete(number).with_context(|| format!("ADD: {report}"))?;
        // The first one is our own start.
        if number > FEWEST_POINTS && report.starts_with(EXECVE) {
            break;
        }
        ensure!(
            report.starts_with("killed") && number < MOST_POINTS,
            "ADD never started the delegate: {report}"
        );
        number += 1;
    }
    let mut number = 1;
    loop {
        node.cni(&delegated("ADD", number))?.ok()?;
        let report = killed_as(node, &delegated("DEL", number), number)?;
        delete(number).with_context(|| format!("DEL: {report}"))?;
        if !report.starts_with("killed") {
            break;
        }
        number += if number < 2 * FEWEST_POINTS { 1 } else { 50 };
    }
    ensure!(number > 2 * FEWEST_POINTS, "DEL makes only {number} calls");
    bed.check_keeper()
}

pub fn a_thousand_pods_a_hundred_at_a_time() -> Result<()> {
    thousand(&Bed::new()?)
}

pub fn a_thousand_pods_beside_a_daemon() -> Result<()> {
    thousand(&Bed::with(true)?)
}

/// The node's subnet has 253 addresses, so a hundred pods at a time use each address several times.
fn thousand(bed: &Bed) -> Result<()> {
    const AT_ONCE: usize = 100;
    const PODS: usize = 1_000;
    let node = bed.node()?;
    let lines: Vec<String> = (0..AT_ONCE)
        .map(|worker| format!("netns add w{worker}"))
        .collect();
    node.ip_batch(&lines)?;
    let (next, held) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
    let work = |worker: usize| -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= PODS {
                return Ok(());
            }
            one_of_many(node, worker, number, &held)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    bed.check_clean("a thousand pods")?;
    bed.check_keeper()
}

fn one_of_many(node: &Node, worker: usize, number: usize, held: &Mutex<BTreeSet<String>>) -> Result<()> {
    let call = |verb: &str| CniCall {
        container: container_id(&format!("n{number}")),
        ..CniCall::new(verb, &format!("w{worker}"))
    };
    let held_now = || held.lock().map_err(|_| anyhow!("a worker panicked"));
    let result = node.cni(&call("ADD"))?.json()?;
    let address = text(&list(&result["ips"])[0]["address"]);
    ensure!(
        held_now()?.insert(address.clone()),
        "{address} was given to two pods at once"
    );
    // From here on the plugin may give the address to another pod at any time.
    held_now()?.remove(&address);
    node.cni(&call("DEL"))?.ok().map(drop)
}

/// The container ends while it is attached. Either ADD was done before, or it says what is wrong and takes all back.
pub fn vanishing_namespace_leaves_nothing() -> Result<()> {
    const ROUNDS: u32 = 60;
    let bed = Bed::new()?;
    let node = bed.node()?;
    let (mut attached, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        make_netns(node, "v")?;
        let add = CniCall {
            container: container_id(&format!("v{round}")),
            ..CniCall::add("v")
        };
        // Over the rounds the end comes before the call, at every stage of it, and after it.
        let (head_start, delay) = (15u32.saturating_sub(round), round.saturating_sub(15));
        let output = std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2) * head_start);
                node.cni(&add)
            });
            std::thread::sleep(Duration::from_micros(500) * delay);
            node.run(&["ip", "netns", "delete", "v"])?;
            running.join().map_err(|_| anyhow!("the caller panicked"))?
        })?;
        if output.success() {
            attached += 1;
            node.cni(&CniCall {
                command: "DEL".into(),
                ..add
            })?
            .ok()?;
        } else {
            refused += 1;
            let error: Value = serde_json::from_str(&output.stdout).context("no error in JSON")?;
            ensure!(error["code"] == 8 || error["code"] == 100, "{error}");
        }
        bed.check_clean(&format!("the namespace vanished in round {round}"))?;
    }
    ensure!(
        attached > 0 && refused > 0,
        "{attached} ADDs were in time and {refused} late: the rounds saw one side only"
    );
    bed.check_keeper()
}

/// A result that nobody can read was not given: the runtime does not know the pod's address.
pub fn unread_result_is_taken_back() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node()?;
    let ways = [
        ("a full device", "exec \"$0\" > /dev/full"),
        ("a closed stdout", "exec \"$0\" >&-"),
        (
            "a pipe without a reader",
            "(trap '' PIPE; sleep 0.2; exec \"$0\") | true; test ${PIPESTATUS[0]} = 0",
        ),
    ];
    for (number, (what, script)) in (0..).zip(ways) {
        let add = call("ADD", number).through(&["bash", "-c", script]);
        let output = node.cni(&add)?;
        ensure!(!output.success(), "ADD succeeded with {what}");
        bed.check_clean(what)?;
        let again = call("ADD", number);
        node.cni(&again)?
            .ok()
            .with_context(|| format!("ADD again after {what}"))?;
        delete(node, number)?;
    }
    bed.check_keeper()
}
