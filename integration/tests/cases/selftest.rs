//! The lab itself: what every other test relies on.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flannel_lab::lab::{OUTSIDE_ADDRESS, OUTSIDE_PORT, node_address};
use flannel_lab::{Lab, LabOptions, Pinger, Place, eventually, limit, pod, sandbox};

pub fn underlay_is_reachable() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3))?;
    for node in lab.nodes() {
        for target in [
            "192.168.50.1",
            "192.168.50.2",
            "192.168.50.3",
            &node_address(1),
            &node_address(3),
            OUTSIDE_ADDRESS,
        ] {
            node.ping(target)?;
        }
    }
    let answers = pod::ask(
        lab.node(2)?,
        "tcp",
        &format!("{OUTSIDE_ADDRESS}:{OUTSIDE_PORT}"),
        1,
    )?;
    assert_eq!(answers, [Ok(format!("outside {}", node_address(2)))]);
    let refused = lab.node(1)?.ping("192.168.50.99");
    ensure!(refused.is_err(), "an address that nobody has answered");
    Ok(())
}

pub fn etcd_answers_and_obeys() -> Result<()> {
    let mut lab = Lab::new(&LabOptions::nodes(0))?;
    let lease = lab.etcd().put_leased("a/b", "one", 60)?;
    lab.etcd().put("a/c", "two")?;
    let entries = lab.etcd().list("a/")?;
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e.key.as_str(), e.value.as_str(), e.lease))
        .collect();
    assert_eq!(seen, [("a/b", "one", lease), ("a/c", "two", 0)]);
    ensure!(
        (50..=60).contains(&lab.etcd().lease_ttl(lease)?),
        "a lease of 60 s has another time to live"
    );
    lab.etcd_mut().stop()?;
    ensure!(lab.etcd().get("a/b").is_err(), "a stopped etcd answered");
    lab.etcd_mut().start()?;
    lab.etcd_mut().kill()?;
    lab.etcd_mut().start()?;
    assert_eq!(
        lab.etcd().get("a/b")?.context("the key did not survive")?.value,
        "one"
    );
    lab.etcd().freeze()?;
    ensure!(lab.etcd().get("a/b").is_err(), "a frozen etcd answered");
    lab.etcd().thaw()?;
    eventually(limit(5), "the thawed etcd", || lab.etcd().get("a/b"))?;
    lab.etcd().revoke(lease)?;
    assert_eq!(lab.etcd().get("a/b")?, None);
    Ok(())
}

pub fn nodes_have_their_own_files() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).without_etcd())?;
    let (one, two) = (lab.node(1)?, lab.node(2)?);
    for folder in ["/run/flannel", "/var/lib/cni", "/run/netns"] {
        one.shell(&format!("echo mine > {folder}/file"))?;
        ensure!(
            two.read_file(&format!("{folder}/file")).is_err(),
            "{folder} is shared between nodes"
        );
    }
    assert_eq!(one.read_file("/proc/sys/net/ipv4/ip_forward")?, "0\n");
    let pod = pod::make_netns(one, "a")?;
    let links = pod.ip_json(&["link", "show"])?;
    ensure!(
        links[0]["ifname"] == "lo",
        "the pod's namespace has no loopback: {links}"
    );
    ensure!(
        pod.read_file("/run/flannel/file")? == "mine\n",
        "the pod does not see its node's files"
    );
    assert_eq!(one.shell("ls /sys/class/net | tr '\\n' ' '")?, "eth0 lo ");
    Ok(())
}

/// The command line's `--hold`: a lab that says in `file` that it is up, and stays.
pub fn hold(file: &str, nodes: &str) -> ExitCode {
    match hold_lab(file, nodes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold_lab(file: &str, nodes: &str) -> Result<()> {
    // The file's folder is hidden in the new sandbox; what is open stays reachable.
    let sign = std::fs::OpenOptions::new()
        .append(true)
        .open(file)
        .context("no sign file")?;
    sandbox::enter()?;
    let lab = Lab::new(&LabOptions::nodes(nodes.parse()?))?;
    lab.etcd().put("who", file)?;
    std::io::Write::write_all(&mut &sign, b"up\n")?;
    std::thread::sleep(limit(60));
    let who = lab.etcd().get("who")?;
    bail!("held for long enough; who: {who:?}");
}

/// Starts a lab of its own in a sandbox within this one and waits until it is up.
fn start_held_lab(name: &str) -> Result<Child> {
    let file = format!("{}/{name}.sign", sandbox::SCRATCH);
    std::fs::write(&file, "")?;
    let log = std::fs::File::create(format!("{}/{name}.log", sandbox::LOGS))?;
    let mut command = sandbox::nested_command(&["--hold", &file, "2"]);
    command
        .env("FLANNEL_BIN_DIR", sandbox::BINARIES)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut child = command.spawn()?;
    eventually(limit(30), "the held lab", || {
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status})");
        }
        ensure!(std::fs::read_to_string(&file)?.contains("up"), "not up yet");
        Ok(())
    })?;
    Ok(child)
}

pub fn nothing_remains_after_sigkill() -> Result<()> {
    let before = Traces::take()?;
    let mut held = start_held_lab("held")?;
    let during = Traces::take()?;
    let kinds = [
        (during.processes.len(), before.processes.len(), "processes"),
        (
            during.network_namespaces.len(),
            before.network_namespaces.len(),
            "network namespaces",
        ),
    ];
    for (now, then, what) in kinds {
        ensure!(
            now > then + 3,
            "the held lab has too few {what} to be one: {now} after {then}"
        );
    }
    held.kill()?;
    held.wait()?;
    eventually(limit(10), "everything of the killed lab to be gone", || {
        let after = Traces::take()?;
        ensure!(after == before, "before: {before:?}, after: {after:?}");
        Ok(())
    })
}

/// What a lab could leave behind, as seen from the sandbox around it.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    processes: BTreeSet<String>,
    network_namespaces: BTreeSet<String>,
    mounts: String,
    links: String,
    files: String,
}

impl Traces {
    fn take() -> Result<Self> {
        let here = Place::sandbox();
        let mut processes = BTreeSet::new();
        let mut network_namespaces = BTreeSet::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<u32>().is_err() {
                continue;
            }
            // A process that ends while we look is none.
            if let Ok(namespace) = std::fs::read_link(entry.path().join("ns/net")) {
                network_namespaces.insert(namespace.to_string_lossy().into_owned());
                processes.insert(name);
            }
        }
        Ok(Self {
            processes,
            network_namespaces,
            mounts: std::fs::read_to_string("/proc/self/mountinfo")?,
            links: here.run(&["ip", "-br", "link"])?,
            files: list(Path::new("/run/netns"))? + &list(Path::new("/tmp"))? + &list(Path::new("/var/lib"))?,
        })
    }
}

fn list(folder: &Path) -> Result<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)?
        .flatten()
        .map(|e| e.path().display().to_string())
        .collect();
    names.sort();
    Ok(names.join("\n"))
}

pub fn two_labs_do_not_collide() -> Result<()> {
    let mut first = start_held_lab("first")?;
    let mut second = start_held_lab("second")?;
    for child in [&first, &second] {
        // unshare's only child is the inner process, whose namespaces are the lab's
        let list = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()))?;
        let inner: u32 = list
            .trim()
            .parse()
            .with_context(|| format!("one child expected: {list:?}"))?;
        let place = Place::of_process("held", inner);
        let who = place.run(&[
            "etcdctl",
            "--endpoints",
            flannel_lab::etcd::ENDPOINT,
            "get",
            "--print-value-only",
            "who",
        ])?;
        let name = if child.id() == first.id() {
            "first"
        } else {
            "second"
        };
        ensure!(
            who.contains(name),
            "the lab called {name} reads {who:?} from its etcd"
        );
        place.ping(&node_address(2))?;
    }
    for child in [&mut first, &mut second] {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// The stream that other tests rely on does notice a gap, and its size.
pub fn pinger_counts_what_is_lost() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).without_etcd())?;
    let (one, two) = (lab.node(1)?, lab.node(2)?);
    let whole = Pinger::between(one, two, two.address())?;
    std::thread::sleep(Duration::from_secs(1));
    let report = whole.stop()?;
    ensure!(
        report.lost.is_empty() && report.sent >= 50,
        "without a gap: {report:?}"
    );
    let broken = Pinger::between(one, two, two.address())?;
    std::thread::sleep(Duration::from_millis(500));
    Place::netns("underlay").shell("ip link set node2 down; sleep 0.5; ip link set node2 up")?;
    std::thread::sleep(Duration::from_millis(500));
    let report = broken.stop()?;
    ensure!(
        report.lost.len() >= 20 && report.longest_silence_ms >= 400,
        "with a gap: {report:?}"
    );
    Ok(())
}

pub fn ipvs_forwards() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).without_etcd())?;
    let (one, two) = (lab.node(1)?, lab.node(2)?);
    let _responder = pod::respond(two, "two", 8080)?;
    // With the virtual address as its source the client would never see an answer.
    one.shell(&format!(
        "ip route add local 10.96.0.0/12 dev lo src {}",
        one.address()
    ))?;
    one.shell(&format!(
        "ipvsadm -A -t 10.96.0.10:80 -s rr; ipvsadm -a -t 10.96.0.10:80 -r {}:8080 -m",
        two.address()
    ))?;
    let answer = pod::ask(one, "tcp", "10.96.0.10:80", 1)?;
    assert_eq!(answer, [Ok(format!("two {}", one.address()))]);
    Ok(())
}
