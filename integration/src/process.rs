//! Programs that go on: etcd, flanneld, responders.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{self, Environment};
use crate::place::log_path;

/// A running program. It is killed when this value goes away, and in any case with the sandbox.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    log: PathBuf,
    log_start: u64,
}

impl Process {
    /// Starts `argv` and appends what it says to the log called `log`.
    pub fn start(log: &str, argv: &[String], env: &Environment) -> Result<Self> {
        let path = log_path(log);
        let file = open_log(&path)?;
        let log_start = file.metadata()?.len();
        let command = argv.join(" ");
        let child = env
            .apply(argv)?
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{command}`"))?;
        Ok(Self {
            child,
            command,
            log: path,
            log_start,
        })
    }

    /// Its process id within the sandbox.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the status, if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`{}` ended ({status})", self.command),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal `{}`", self.command))
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let result = command::wait(&mut self.child, within);
        result.with_context(|| {
            format!(
                "`{}`; its log:\n{}",
                self.command,
                self.log_text().unwrap_or_default()
            )
        })
    }

    /// SIGKILL, and waits until the kernel has taken the process down.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().ok();
        self.child
            .wait()
            .map(drop)
            .with_context(|| format!("cannot reap `{}`", self.command))
    }

    /// What this run of the program has said so far.
    pub fn log_text(&self) -> Result<String> {
        let mut file =
            File::open(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        file.seek(SeekFrom::Start(self.log_start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn open_log(path: &PathBuf) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}: is this process in a sandbox?", path.display()))
}
