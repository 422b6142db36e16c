//! When to end, and when to read everything anew.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Completes with the name of the signal that asks the daemon to end.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_requested() -> anyhow::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// SIGHUP, which asks to read everything anew. Without a handler it would end the process.
///
/// # Errors
/// When the handler cannot be installed.
pub fn reload_requests() -> anyhow::Result<tokio::signal::unix::Signal> {
    signal(SignalKind::hangup()).context("cannot handle SIGHUP")
}
