//! How the tests are run: outside (the list), inside (one test in its sandbox), guest (many tests in one guest kernel).

pub mod guest;
pub mod inside;
pub mod outside;

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result};
use flannel_lab::{kernel, limit, sandbox};

/// Longest that a test may take on an ordinary machine, in seconds, unless it says otherwise.
const CASE_SECONDS: u64 = 120;
/// A sandbox ends by itself at its limit, and says where it was; this much later it is killed.
const GRACE: Duration = Duration::from_secs(20);

/// What a test needs of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Namespaces, veth, bridge, vxlan, nftables.
    Plain,
    /// IPVS besides.
    Ipvs,
    /// IPIP tunnels besides.
    Ipip,
    /// WireGuard besides.
    Wireguard,
    /// Bridges that keep VLANs apart, and VLAN devices, besides.
    Vlans,
    /// A kernel without IPVS: what happens there cannot be shown on one that has it.
    NoIpvs,
    /// A kernel without WireGuard, likewise.
    NoWireguard,
    /// A kernel whose bridges know no VLANs, likewise.
    NoVlans,
}

impl Needs {
    /// Whether this kernel has it.
    pub fn are_met(self) -> bool {
        match self {
            Self::Plain => true,
            Self::Ipvs => kernel::has_ipvs(),
            Self::Ipip => kernel::has_ipip(),
            Self::Wireguard => kernel::has_wireguard(),
            Self::Vlans => kernel::has_vlans(),
            Self::NoIpvs => !kernel::has_ipvs(),
            Self::NoWireguard => !kernel::has_wireguard(),
            Self::NoVlans => !kernel::has_vlans(),
        }
    }
}

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, as in `topic::what_holds`.
    pub name: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Longest that it may take on an ordinary machine, in seconds.
    pub seconds: u64,
    /// The test. It runs alone in a fresh sandbox.
    pub run: fn() -> Result<()>,
}

impl Case {
    /// A test that runs on any kernel.
    pub const fn plain(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::Plain, run)
    }

    /// A test that needs IPVS.
    pub const fn ipvs(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::Ipvs, run)
    }

    /// A test that needs IPIP tunnels.
    pub const fn ipip(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::Ipip, run)
    }

    /// A test that needs WireGuard.
    pub const fn wireguard(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::Wireguard, run)
    }

    /// A test that needs VLANs.
    pub const fn vlans(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::Vlans, run)
    }

    /// A test of what happens where the kernel's bridges know no VLANs.
    pub const fn no_vlans(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::NoVlans, run)
    }

    /// A test of what happens where the kernel has no IPVS.
    pub const fn no_ipvs(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::NoIpvs, run)
    }

    /// A test of what happens where the kernel has no WireGuard.
    pub const fn no_wireguard(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, Needs::NoWireguard, run)
    }

    const fn new(name: &'static str, needs: Needs, run: fn() -> Result<()>) -> Self {
        Self {
            name,
            needs,
            seconds: CASE_SECONDS,
            run,
        }
    }

    /// With another time limit.
    pub const fn within(self, seconds: u64) -> Self {
        Self { seconds, ..self }
    }
}

/// The test called `name`.
fn find(name: &str) -> Result<Case> {
    crate::cases::all()
        .into_iter()
        .find(|c| c.name == name)
        .with_context(|| format!("there is no test called {name}"))
}

/// Runs a test in a sandbox; the error is all that it said.
fn run_in_sandbox(case: &Case) -> Result<(), String> {
    attempt(case).unwrap_or_else(|error| Err(format!("{error:#}")))
}

fn attempt(case: &Case) -> Result<Result<(), String>> {
    let (mut output, input) = std::io::pipe()?;
    let mut command = sandbox::command(&["--in-sandbox", case.name])?;
    command
        .stdin(std::process::Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    let mut child = command
        .spawn()
        .context("cannot start a sandbox (setpriv and unshare of util-linux)")?;
    drop(command); // it holds the pipe's writing end
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let status = flannel_lab::command::wait(&mut child, limit(case.seconds) + GRACE);
    if status.is_err() {
        child.kill().ok();
        child.wait().ok();
    }
    let said = reader.join().unwrap_or_default();
    Ok(match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(said),
        Err(error) => Err(format!("{said}\n{error:#}")),
    })
}
