//! One contender: a node of its own (a network namespace), its pods, its files, and calls of its plugin.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Place, eventually, limit, sandbox};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

/// The node's subnet, wide enough for 60,000 leases.
pub const SUBNET: &str = "10.77.0.0/16";
/// Its gateway.
pub const GATEWAY: &str = "10.77.0.1";
/// Debian's plugins.
const RIVAL_FOLDER: &str = "/usr/lib/cni";

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The plugin `flannel`.
    Ours,
    /// `bridge` with `host-local`, configured as flannel would configure them.
    Rival,
}

/// A contender with its node.
pub struct Side {
    who: Who,
    node: File,
    files: PathBuf,
    config: Value,
    calls: AtomicU64,
}

/// A finished call.
pub struct Answer {
    /// From before the start of the program to after its end was seen.
    pub took: Duration,
    /// What it printed.
    pub stdout: String,
}

impl Side {
    /// A node called `name` without pods, its leases and other files under `folder`.
    pub fn new(who: Who, name: &str, folder: &Path) -> Result<Self> {
        Place::sandbox().shell(&format!("ip netns add {name}; ip -n {name} link set lo up"))?;
        let files = folder.join(name);
        fs::create_dir_all(&files)?;
        let side = Self {
            who,
            node: File::open(format!("/run/netns/{name}"))?,
            config: config(who, &files),
            files,
            calls: AtomicU64::new(0),
        };
        let env = format!(
            "FLANNEL_NETWORK=10.64.0.0/10\nFLANNEL_SUBNET={GATEWAY}/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        fs::write(side.files.join("subnet.env"), env)?;
        Ok(side)
    }

    /// The folder of all its files.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// The folder of its lease files, which may not exist yet.
    pub fn leases(&self) -> PathBuf {
        self.files.join("networks/cbr0")
    }

    /// The command line of its plugin.
    pub fn program(&self) -> String {
        match self.who {
            Who::Ours => format!("{}/flannel", sandbox::BINARIES),
            Who::Rival => format!("{RIVAL_FOLDER}/bridge"),
        }
    }

    /// Calls the plugin on the node; it must succeed.
    pub fn call(&self, verb: &str, id: &str, pod: &str, previous: Option<&str>) -> Result<Answer> {
        self.call_through(&[], verb, id, pod, previous)
    }

    /// The same, started by another program (`strace …`).
    pub fn call_through(
        &self,
        launcher: &[&str],
        verb: &str,
        id: &str,
        pod: &str,
        previous: Option<&str>,
    ) -> Result<Answer> {
        self.enter()?;
        let mut command = self.command(launcher, verb, id, pod);
        command.stdin(self.stdin(previous)?);
        let start = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut stdout = String::new();
        child
            .stdout
            .take()
            .context("no stdout")?
            .read_to_string(&mut stdout)?;
        let status = child.wait()?;
        let took = start.elapsed();
        ensure!(
            status.success(),
            "{:?}: {verb} {id}: {status}: {}",
            self.who,
            stdout.trim()
        );
        Ok(Answer { took, stdout })
    }

    /// The calling thread becomes one of the node's: what it starts runs there.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.node.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter the node's namespace")
    }

    fn command(&self, launcher: &[&str], verb: &str, id: &str, pod: &str) -> Command {
        let program = self.program();
        let mut words = launcher.iter().copied().chain([program.as_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", format!("/run/netns/{pod}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", RIVAL_FOLDER)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    /// A file, as a pipe would add the time of whoever fills it.
    fn stdin(&self, previous: Option<&str>) -> Result<File> {
        let mut config = self.config.clone();
        if let Some(previous) = previous {
            config["prevResult"] = serde_json::from_str(previous).context("the result of ADD is no JSON")?;
        }
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let path = self.files.join(format!("stdin-{number}"));
        fs::write(&path, config.to_string())?;
        let file = File::open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }

    /// Waits until the node has `count` veths: a plugin may leave the end of a deletion to somebody else, and that work must not
    /// fall on the next measurement.
    pub fn settle(&self, count: usize) -> Result<()> {
        self.enter()?;
        eventually(limit(60), "the deleted devices to be gone", || {
            let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
            let veths = devices
                .lines()
                .filter(|line| line.trim_start().starts_with("veth"))
                .count();
            ensure!(veths == count, "{veths} veths where {count} are expected");
            Ok(())
        })
    }
}

fn config(who: Who, files: &Path) -> Value {
    let path = |name: &str| files.join(name).to_string_lossy().into_owned();
    match who {
        Who::Ours => json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": path("subnet.env"), "dataDir": path("flannel"),
            "ipam": { "dataDir": path("networks") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        }),
        // The gateway of the route is written out: without it the CHECK of version 1.1.1 fails on a sound pod.
        Who::Rival => json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0",
            "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": path("networks"), "ranges": [[{ "subnet": SUBNET }]],
                "routes": [{ "dst": "10.64.0.0/10", "gw": GATEWAY }],
            },
        }),
    }
}
