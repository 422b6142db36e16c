//! A place is somewhere a program can run: the sandbox itself, a host of the lab, a pod.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::clock::limit;
use crate::command::{self, Environment, Output};
use crate::process::Process;

/// Longest that an ordinary command may take, in seconds.
const COMMAND_SECONDS: u64 = 20;

/// The network namespace, and for a node or a pod also the mount namespace, that programs run in.
#[derive(Debug, Clone)]
pub struct Place {
    name: String,
    enter: Vec<String>,
}

impl Place {
    /// The sandbox's own network namespace: the operator's machine, with a leg on the underlay.
    pub fn sandbox() -> Self {
        Self {
            name: "operator".into(),
            enter: Vec::new(),
        }
    }

    /// A host that has only a network namespace, known to `ip netns`.
    pub fn netns(name: &str) -> Self {
        Self {
            name: name.into(),
            enter: vec!["nsenter".into(), format!("--net=/run/netns/{name}"), "--".into()],
        }
    }

    /// The namespaces of process `pid`.
    pub fn of_process(name: &str, pid: u32) -> Self {
        Self {
            name: name.into(),
            enter: vec![
                "nsenter".into(),
                format!("--net=/proc/{pid}/ns/net"),
                format!("--mount=/proc/{pid}/ns/mnt"),
                "--".into(),
            ],
        }
    }

    /// The network namespace that process `pid` sees at `netns`, with that process's mounts.
    pub fn of_path_in(name: &str, pid: u32, netns: &str) -> Self {
        Self {
            name: name.into(),
            enter: vec![
                "nsenter".into(),
                // nsenter opens both before it enters either
                format!("--net=/proc/{pid}/root{netns}"),
                format!("--mount=/proc/{pid}/ns/mnt"),
                "--".into(),
            ],
        }
    }

    /// What the place is called in logs and errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a program to its end, whatever its status.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.exec_with(argv, b"", &Environment::default())
    }

    /// Runs a program that must succeed; its standard output.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        self.exec(argv)?.ok().with_context(|| format!("on {}", self.name))
    }

    /// Runs a shell script that must succeed.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script])
    }

    /// Runs a program with an input and an environment.
    pub fn exec_with(&self, argv: &[&str], stdin: &[u8], env: &Environment) -> Result<Output> {
        command::run(&self.argv(argv), stdin, limit(COMMAND_SECONDS), env)
            .with_context(|| format!("on {}", self.name))
    }

    /// Runs a program that may take up to `seconds` (on an ordinary machine).
    pub fn exec_within(&self, argv: &[&str], seconds: u64) -> Result<Output> {
        command::run(&self.argv(argv), b"", limit(seconds), &Environment::default())
            .with_context(|| format!("on {}", self.name))
    }

    /// Starts a program that goes on; what it says goes to the log called `log`.
    pub fn spawn(&self, log: &str, argv: &[&str], env: &Environment) -> Result<Process> {
        Process::start(log, &self.argv(argv), env).with_context(|| format!("on {}", self.name))
    }

    /// Runs `ip` on many lines at once.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        let input = lines.join("\n") + "\n";
        let output = self.exec_with(&["ip", "-batch", "-"], input.as_bytes(), &Environment::default())?;
        output
            .ok()
            .with_context(|| format!("on {}, lines:\n{input}", self.name))
            .map(drop)
    }

    /// `ip -d -j …` as JSON.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<Value> {
        self.json(&["ip", "-d", "-j"], arguments)
    }

    /// `bridge -j …` as JSON.
    pub fn bridge_json(&self, arguments: &[&str]) -> Result<Value> {
        self.json(&["bridge", "-j"], arguments)
    }

    /// `nft -j …` as JSON.
    pub fn nft_json(&self, arguments: &[&str]) -> Result<Value> {
        self.json(&["nft", "-j"], arguments)
    }

    /// Whether one ICMP echo request to `address` is answered within a second or so.
    pub fn ping(&self, address: &str) -> Result<()> {
        let wait = limit(2).as_secs().max(1).to_string();
        self.run(&["ping", "-n", "-q", "-c", "1", "-W", &wait, address])
            .map(drop)
    }

    /// A file as this place sees it.
    pub fn read_file(&self, path: &str) -> Result<String> {
        self.run(&["cat", path])
    }

    /// A file's permission bits in octal, such as `644`.
    pub fn file_mode(&self, path: &str) -> Result<String> {
        Ok(self.run(&["stat", "-c", "%a", path])?.trim().to_owned())
    }

    /// The command line that runs `argv` here.
    pub fn argv(&self, argv: &[&str]) -> Vec<String> {
        self.enter
            .iter()
            .cloned()
            .chain(argv.iter().map(|a| (*a).to_owned()))
            .collect()
    }

    fn json(&self, program: &[&str], arguments: &[&str]) -> Result<Value> {
        self.exec(&[program, arguments].concat())?
            .json()
            .with_context(|| format!("on {}", self.name))
    }
}

/// Where the sandbox keeps what is written about `name`.
pub(crate) fn log_path(name: &str) -> PathBuf {
    PathBuf::from(crate::sandbox::LOGS).join(format!("{name}.log"))
}
