//! A TCP transfer between two pods, measured by iperf3.

use anyhow::{Context, Result, ensure};

use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::pod::Pod;

/// What a transfer came to.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// Bytes that arrived.
    pub bytes: f64,
    /// Bits a second that arrived.
    pub rate: f64,
}

/// Sends as much as goes from `from` to `to` for so many seconds.
pub fn transfer(from: &Pod, to: &Pod, seconds: u32) -> Result<Transfer> {
    let _server = to.spawn("iperf3-server", &["iperf3", "-s"], &Environment::default())?;
    let time = seconds.to_string();
    let argv = ["iperf3", "-J", "-t", &time, "-c", to.ip()];
    // The server may not listen yet. Some versions of iperf3 report an error with status 0.
    let sum = eventually(limit(10), "the transfer", || {
        let report = from.exec_within(&argv, 20 + u64::from(seconds))?.json()?;
        ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
        Ok(report["end"]["sum_received"].clone())
    })?;
    let number = |name: &str| {
        sum[name]
            .as_f64()
            .with_context(|| format!("iperf3 named no {name}"))
    };
    Ok(Transfer {
        bytes: number("bytes")?,
        rate: number("bits_per_second")?,
    })
}
