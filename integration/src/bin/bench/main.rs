//! `make bench`: how fast we are beside a named rival, as ratios measured in one run.
//!
//! A suite is one module here and one line in [`SUITES`]. Each runs in a sandbox of its own: network namespaces, tmpfs on /run,
//! /tmp and /var/lib. Nothing outside is touched. A suite measures ours and the rival's alternately, so that whatever else the
//! machine does falls on both, and prints through [`table`]; docs/benchmarks.md keeps what was printed where.

mod cni;
mod ipvs;
mod kernel_changes;
mod leases;
mod machine;
mod overlay;
mod repair;
mod services;
mod size;
mod stats;
mod table;
mod udp;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use flannel_lab::{binaries, command, kernel, limit, sandbox};

/// A set of measurements that belong together.
struct Suite {
    /// What `make bench SUITE=…` calls it.
    name: &'static str,
    /// What it measures against whom, in a line.
    about: &'static str,
    /// Programs of ours that it runs.
    programs: &'static [&'static str],
    /// Programs of others that it runs, by path.
    rivals: &'static [&'static str],
    /// Whether it needs IPVS: where this machine's kernel has none, it runs in a guest.
    ipvs: bool,
    /// Longest that it may take, in seconds.
    seconds: u64,
    /// Runs it, in its sandbox.
    run: fn() -> Result<()>,
}

/// Every suite.
const SUITES: &[Suite] = &[
    Suite {
        name: "cni",
        about: "the CNI plugin, against the bridge and host-local plugins of containernetworking-plugins",
        programs: &["flannel", "flanneld"],
        rivals: &["/usr/lib/cni/bridge", "/usr/lib/cni/host-local"],
        ipvs: false,
        seconds: 2400,
        run: cni::run,
    },
    Suite {
        name: "services",
        about: "Services through nftables, against nft -f with kube-proxy's layout of them",
        programs: &["flanneld", "flannelctl", "lab-tool"],
        rivals: &["/usr/sbin/nft"],
        ipvs: false,
        seconds: 1800,
        run: services::run,
    },
    Suite {
        name: "udp",
        about: "the udp backend's data path, against one of flannel's algorithm, the kernel's VXLAN and plain routing",
        programs: &["udp-forwarder", "net-load"],
        rivals: &["/usr/bin/iperf3", "/usr/sbin/ethtool"],
        ipvs: false,
        seconds: 1800,
        run: udp::run,
    },
    Suite {
        name: "vxlan",
        about: "the kernel's VXLAN with one setting changed at a time, against what flanneld makes by default",
        programs: &["net-load"],
        rivals: &["/usr/bin/iperf3", "/usr/sbin/ethtool"],
        ipvs: false,
        seconds: 1800,
        run: udp::run_vxlan,
    },
    Suite {
        name: "leases",
        about: "thousands of nodes on one etcd, and one flanneld with thousands of peers, beside what flannel asks of etcd",
        programs: &["flanneld"],
        rivals: &[],
        ipvs: false,
        seconds: 900,
        run: leases::run,
    },
    Suite {
        name: "overlay",
        about: "10,000 peers into the kernel, and pod to pod over vxlan and host-gw against the same devices set up by hand",
        programs: &["flannel", "flanneld", "net-load"],
        rivals: &["/usr/bin/iperf3", "/usr/sbin/ip"],
        ipvs: false,
        seconds: 1200,
        run: overlay::run,
    },
    Suite {
        name: "repair",
        about: "how long until what somebody deleted is back, beside 1,000 peers",
        programs: &["flanneld"],
        rivals: &[],
        ipvs: false,
        seconds: 600,
        run: repair::run,
    },
    Suite {
        name: "ipvs",
        about: "Services through IPVS, against the kernel's own work, one message a call, and ipvsadm --restore",
        programs: &["flanneld", "lab-tool"],
        rivals: &["/sbin/ipvsadm"],
        ipvs: true,
        seconds: 600,
        run: ipvs::run,
    },
];

/// Boots a guest kernel; see there.
const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/run.sh");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["--in-sandbox", name] => inside(name),
        ["--in-guest", name] => in_guest(name),
        ["--list"] => {
            list();
            Ok(())
        }
        [flag, ..] if flag.starts_with('-') => Err(anyhow::anyhow!("usage: bench [--list] [SUITE…]")),
        names => outside(names),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nbench: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    for suite in SUITES {
        println!("{:<10} {}", suite.name, suite.about);
    }
}

fn find(name: &str) -> Result<&'static Suite> {
    let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
    SUITES
        .iter()
        .find(|suite| suite.name == name)
        .with_context(|| format!("there is no suite {name:?}; the suites are {}", names.join(", ")))
}

/// On the machine itself: every suite that is asked for, all when none is named.
fn outside(names: &[&str]) -> Result<()> {
    let suites: Vec<&Suite> = match names {
        [] => SUITES.iter().collect(),
        names => names.iter().map(|name| find(name)).collect::<Result<_>>()?,
    };
    machine::show()?;
    for suite in suites {
        println!("\n== suite {}: {}", suite.name, suite.about);
        check_programs(suite)?;
        if suite.ipvs && !kernel::has_ipvs() {
            boot(suite)?;
        } else {
            in_sandbox(suite)?;
        }
    }
    machine::show_load()
}

/// Runs a suite in a guest kernel.
fn boot(suite: &Suite) -> Result<()> {
    println!("this kernel has no IPVS: it runs in a guest");
    let status = Command::new(GUEST)
        .args(["-t", &limit(3 * suite.seconds).as_secs().to_string(), "--"])
        .arg(std::env::current_exe()?)
        .args(["--in-guest", suite.name])
        .env(binaries::FOLDER_VARIABLE, binaries::folder()?)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {GUEST}"))?;
    ensure!(status.success(), "suite {} ended early (above)", suite.name);
    Ok(())
}

fn in_guest(name: &str) -> Result<()> {
    let suite = find(name)?;
    machine::show()?;
    ensure!(kernel::has_ipvs(), "the guest kernel has no IPVS either");
    in_sandbox(suite)
}

fn check_programs(suite: &Suite) -> Result<()> {
    let folder = binaries::folder()?;
    binaries::check(&folder, suite.programs)?;
    for program in suite.programs {
        machine::show_program(&folder.join(program))?;
    }
    for rival in suite.rivals {
        ensure!(
            Path::new(rival).is_file(),
            "{rival} is missing; integration/setup.sh installs what is needed"
        );
        machine::show_rival(rival)?;
    }
    Ok(())
}

fn in_sandbox(suite: &Suite) -> Result<()> {
    let mut child = sandbox::command(&["--in-sandbox", suite.name])?
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start a sandbox (setpriv and unshare of util-linux)")?;
    let status = command::wait(&mut child, limit(suite.seconds));
    if status.is_err() {
        child.kill().ok();
        child.wait().ok();
    }
    match status.with_context(|| format!("suite {}", suite.name))?.success() {
        true => Ok(()),
        false => bail!("suite {} ended early (above)", suite.name),
    }
}

fn inside(name: &str) -> Result<()> {
    let suite = find(name)?;
    sandbox::enter()?;
    (suite.run)()
}
