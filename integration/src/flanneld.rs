//! A flanneld on a node.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::etcd;
use crate::node::Node;
use crate::notify::NotifySocket;
use crate::process::Process;
use crate::sandbox;

/// Longest that a daemon may take to become ready, in seconds.
const READY_SECONDS: u64 = 20;

/// A running flanneld. It gets SIGKILL when this value goes away.
#[derive(Debug)]
pub struct Flanneld {
    process: Process,
    notify: NotifySocket,
}

impl Flanneld {
    pub(crate) fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        Self::start_with(node, arguments, &[])
    }

    /// Starts flanneld on `node` with further environment variables.
    pub fn start_with(node: &Node, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        Self::start_as(node, &[], arguments, variables)
    }

    /// Starts flanneld by a program that becomes it, such as `unshare --time`.
    pub fn start_under(node: &Node, wrapper: &[&str], arguments: &[&str]) -> Result<Self> {
        Self::start_as(node, wrapper, arguments, &[])
    }

    fn start_as(
        node: &Node,
        wrapper: &[&str],
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let notify = NotifySocket::bind(&format!("{}-flanneld", node.name()))?;
        let program = format!("{}/flanneld", sandbox::BINARIES);
        let endpoints = format!("--etcd-endpoints={}", etcd::ENDPOINT);
        let argv = [
            wrapper,
            &[program.as_str(), endpoints.as_str(), "--etcd-insecure"],
            arguments,
        ]
        .concat();
        let mut set = vec![("NOTIFY_SOCKET".to_owned(), notify.path().to_owned())];
        set.extend(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let log = format!("{}-flanneld", node.name());
        let process = node.spawn(&log, &argv, &Environment { set, clean: true })?;
        Ok(Self { process, notify })
    }

    /// Waits for READY=1.
    pub fn wait_ready(&mut self) -> Result<()> {
        let Self { process, notify } = self;
        let result = notify.wait_ready(limit(READY_SECONDS), || process.check_running());
        result.with_context(|| format!("flanneld; its log:\n{}", process.log_text().unwrap_or_default()))
    }

    /// Whether READY=1 has come.
    pub fn is_ready(&self) -> bool {
        self.notify.is_ready()
    }

    /// Every state message so far, one a line.
    pub fn notifications(&self) -> String {
        self.notify.seen()
    }

    /// Waits until the log of this run contains `text`.
    pub fn wait_log(&mut self, text: &str) -> Result<()> {
        eventually(
            limit(READY_SECONDS),
            &format!("{text:?} in flanneld's log"),
            || {
                let log = self.log()?;
                self.process.check_running()?;
                log.contains(text)
                    .then_some(())
                    .with_context(|| format!("its log:\n{log}"))
            },
        )
    }

    /// What this run has logged.
    pub fn log(&self) -> Result<String> {
        self.process.log_text()
    }

    /// Fails if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.check_running()
    }

    /// Its process id within the sandbox.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Processor time of all its threads so far, also of those that have ended; it moves by 10 ms.
    pub fn cpu_time(&self) -> Result<Duration> {
        /// The unit of these fields: USER_HZ, the same on every architecture that matters.
        const TICK: Duration = Duration::from_millis(10);
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // utime and stime are the fields 14 and 15 (proc(5)); the name before them is in brackets.
        let after_name = text.rsplit_once(')').context("no name in stat")?.1;
        let fields = after_name.split_whitespace().skip(11).take(2);
        let ticks: Vec<u32> = fields.map(str::parse).collect::<Result<_, _>>()?;
        Ok(TICK * ticks.iter().sum::<u32>())
    }

    /// SIGKILL, as a crash.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, as systemd does, and waits for the end.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(limit(10))
    }

    /// Waits for it to end by itself.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        self.process.wait(limit(READY_SECONDS))
    }

    /// Sends any signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }
}
