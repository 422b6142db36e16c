//! `make demo`: three nodes, pods and a Service on this machine, shown step by step.
//!
//! The nodes live in a sandbox of network namespaces. Where this machine's kernel has no IPVS, the Service is shown in a guest kernel.

mod overlay;
mod service;
mod show;

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use flannel_lab::{binaries, clock, command, kernel, limit, sandbox};

/// Boots the guest.
const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/run.sh");
/// Longest that one part may take on an ordinary machine, in seconds. In a guest it may take longer by [`clock::SLOW_VARIABLE`].
const PART_SECONDS: u64 = 180;
/// Longest that the guest may run, in seconds; it may have to be emulated.
const GUEST_SECONDS: &str = "900";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [] => whole(),
        ["--in-sandbox", "overlay"] => part(|| overlay::show(false)),
        ["--in-sandbox", "overlay-and-service"] => part(|| overlay::show(true)),
        ["--in-sandbox", "service"] => part(|| service::show_alone(overlay::STEPS)),
        ["--in-guest"] => in_sandbox("service"),
        _ => Err(anyhow::anyhow!("usage: demo (no arguments)")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\ndemo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// On the machine itself: every part in order.
fn whole() -> Result<()> {
    binaries::check(
        &binaries::folder()?,
        &["flanneld", "flannel", "flannelctl", "lab-tool"],
    )?;
    show::title("A container network on this machine: three nodes, six pods, one Service.");
    show::say(
        "Each node is a network namespace. Nothing outside of this demo is touched, and nothing stays when it ends.",
    );
    if kernel::has_ipvs() {
        in_sandbox("overlay-and-service")?;
    } else {
        in_sandbox("overlay")?;
        in_guest()?;
    }
    println!("\ndemo: ok");
    Ok(())
}

/// Runs one part in a sandbox of its own.
fn in_sandbox(part: &str) -> Result<()> {
    let mut child = sandbox::command(&["--in-sandbox", part])?
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start a sandbox (setpriv and unshare of util-linux)")?;
    let status = command::wait(&mut child, limit(PART_SECONDS));
    if status.is_err() {
        child.kill().ok();
        child.wait().ok();
    }
    if !status.context("a part of the demo hangs")?.success() {
        bail!("a step failed; it is explained above");
    }
    Ok(())
}

/// One part, in the sandbox that was made for it.
fn part(steps: impl FnOnce() -> Result<()>) -> Result<()> {
    sandbox::enter()?;
    steps().inspect_err(|_| println!("\n{}", sandbox::logs()))
}

fn in_guest() -> Result<()> {
    show::title("The Service needs IPVS, which this machine's kernel has not.");
    show::say(
        "So this part runs in a guest kernel that has it: the same programs, two nodes, booted for this purpose.",
    );
    if std::env::var_os("GUEST_KERNEL").is_none_or(|k| k.is_empty()) {
        show::say("The guest's processor is emulated: this takes a minute or two.");
    }
    let status = Command::new(RUNNER)
        .args(["-t", GUEST_SECONDS, "--"])
        .arg(std::env::current_exe()?)
        .arg("--in-guest")
        .env(binaries::FOLDER_VARIABLE, binaries::folder()?)
        .env_remove(clock::SLOW_VARIABLE)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {RUNNER}"))?;
    if !status.success() {
        bail!("the part in the guest kernel failed ({status}); it is explained above");
    }
    Ok(())
}
