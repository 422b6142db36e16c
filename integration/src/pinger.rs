//! A steady stream of numbered packets between two places, and an exact count of what was lost.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::clock::limit;
use crate::command::Environment;
use crate::place::Place;
use crate::pod::Pod;
use crate::process::Process;
use crate::{pod, sandbox};

/// The port that echoes.
const PORT: u16 = 7007;
/// Packets a second.
const RATE: u32 = 100;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What became of the packets.
#[derive(Debug, Clone)]
pub struct PingerReport {
    /// Packets sent.
    pub sent: u64,
    /// The numbers, from 0, of those that never came back.
    pub lost: Vec<u64>,
    /// The longest time without an answer, in milliseconds.
    pub longest_silence_ms: u64,
    /// The first number after [`Pinger::mark`].
    pub mark: Option<u64>,
}

/// A running stream of packets, 100 a second unless told otherwise.
#[derive(Debug)]
pub struct Pinger {
    sender: Process,
    _echo: Option<Process>,
    files: String,
}

impl Pinger {
    /// Starts the stream between two pods and back.
    pub fn start(from: &Pod, to: &Pod) -> Result<Self> {
        Self::between(from, to, to.ip())
    }

    /// The same with `rate` packets a second.
    pub fn at_rate(from: &Pod, to: &Pod, rate: u32) -> Result<Self> {
        Self::with_rate(from, to, to.ip(), rate)
    }

    /// Starts the stream from one place to another, which has the address `ip`, and back.
    pub fn between(from: &Place, to: &Place, ip: &str) -> Result<Self> {
        Self::with_rate(from, to, ip, RATE)
    }

    fn with_rate(from: &Place, to: &Place, ip: &str, rate: u32) -> Result<Self> {
        let echo = pod::respond(to, to.name(), PORT)?;
        Self::spawn(from, &format!("{ip}:{PORT}"), rate, Some(echo))
    }

    /// Starts the stream to an address (`ip:port`) where a responder answers.
    pub fn to(from: &Place, address: &str) -> Result<Self> {
        Self::spawn(from, address, RATE, None)
    }

    fn spawn(from: &Place, address: &str, rate: u32, echo: Option<Process>) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let files = format!("{}/pinger{number}", sandbox::SCRATCH);
        let program = format!("{}/lab-tool", sandbox::BINARIES);
        let argv = [&program, "ping", address, &rate.to_string(), &files];
        let sender = from.spawn(&format!("pinger{number}"), &argv, &Environment::default())?;
        Ok(Self {
            sender,
            _echo: echo,
            files,
        })
    }

    /// Notes which packet is the next.
    pub fn mark(&self) -> Result<()> {
        std::fs::write(format!("{}.mark", self.files), "").context("cannot mark the stream")
    }

    /// Ends the stream, waits for what is still under way, and counts.
    pub fn stop(mut self) -> Result<PingerReport> {
        std::fs::write(format!("{}.stop", self.files), "")?;
        // It waits for late answers for up to 20 s.
        let status = self.sender.wait(limit(30))?;
        let path = format!("{}.report", self.files);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "no report ({status}); {}",
                self.sender.log_text().unwrap_or_default()
            )
        })?;
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let number = |name: &str| {
            report[name]
                .as_u64()
                .with_context(|| format!("no {name} in {report}"))
        };
        let lost = report["lost"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_u64)
            .collect();
        Ok(PingerReport {
            sent: number("sent")?,
            lost,
            longest_silence_ms: number("longest_silence_ms")?,
            mark: report["mark"].as_u64(),
        })
    }
}
