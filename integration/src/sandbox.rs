//! The sandbox: a process with PID, mount, network, IPC and host name namespaces of its own.
//!
//! The outer process starts the inner one through `setpriv` and `unshare` (util-linux). The inner one is PID 1 of its namespace, so its
//! end is the end of every process in it; each link of the chain has a parent-death signal, so the end of the outer one, by SIGKILL
//! too, is the end of the inner one. Its /run, /tmp and /var/lib are tmpfs that nobody else sees.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind};

use crate::binaries;
use crate::place::Place;

/// The programs under test, as everything in the sandbox sees them.
pub const BINARIES: &str = "/run/lab/bin";
/// The program that set the sandbox up, as everything in it sees it.
pub const SELF: &str = "/run/lab/self";
/// Logs, one a program.
pub const LOGS: &str = "/run/lab/logs";
/// State message sockets.
pub const NOTIFY: &str = "/run/lab/notify";
/// Scratch files.
pub const SCRATCH: &str = "/run/lab/scratch";

/// Lines of each log that are shown when a test fails.
const SHOWN_LOG_LINES: usize = 80;

/// A command that runs this program again, with `arguments`, in a new sandbox. There, [`enter`] must come first.
pub fn command(arguments: &[&str]) -> Result<Command> {
    check_root()?;
    let own = std::env::current_exe().context("cannot find the own program")?;
    Ok(wrap(&own, arguments))
}

/// As [`command`], for a sandbox within the sandbox.
pub fn nested_command(arguments: &[&str]) -> Command {
    wrap(Path::new(SELF), arguments)
}

fn wrap(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--net",
        "--ipc",
        "--uts",
        "--pid",
        "--fork",
    ]);
    command
        .args(["--kill-child=SIGKILL", "--mount-proc", "--"])
        .arg(program)
        .args(arguments);
    command
}

fn check_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab makes network namespaces and so needs root: run it as root (sudo)");
    }
    Ok(())
}

/// Furnishes the new sandbox from within.
pub fn enter() -> Result<()> {
    if std::process::id() != 1 {
        bail!("not in a PID namespace of its own; this entry is for sandbox::command only");
    }
    let binaries =
        File::open(binaries::folder()?).context("cannot open the folder of the programs under test")?;
    let own = File::open("/proc/self/exe").context("cannot open the own program")?;
    for folder in ["/run", "/tmp", "/var/lib"] {
        tmpfs(folder)?;
    }
    for folder in [
        BINARIES,
        LOGS,
        NOTIFY,
        SCRATCH,
        "/run/netns",
        "/run/lock",
        "/var/lib/cni",
        "/var/lib/flannel",
    ] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    // By descriptor: the folder may lie below one of those just covered.
    mount_bind(format!("/proc/self/fd/{}", binaries.as_raw_fd()), BINARIES)
        .context("cannot mount the programs under test")?;
    File::create(SELF)?;
    mount_bind(format!("/proc/self/fd/{}", own.as_raw_fd()), SELF).context("cannot mount the own program")?;
    std::env::set_current_dir("/")?;
    Place::sandbox().run(&["ip", "link", "set", "lo", "up"]).map(drop)
}

fn tmpfs(folder: &str) -> Result<()> {
    mount("tmpfs", folder, "tmpfs", MountFlags::NOSUID, c"mode=0755")
        .with_context(|| format!("cannot mount a tmpfs on {folder}"))
}

/// The end of every log in the sandbox, for the report of a failed test.
pub fn logs() -> String {
    let mut files: Vec<_> = std::fs::read_dir(LOGS)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    files.sort();
    files.iter().map(|path| tail(path)).collect()
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(SHOWN_LOG_LINES);
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    format!(
        "---- log of {name}{}\n{}\n",
        if from > 0 { " (its end)" } else { "" },
        lines[from..].join("\n")
    )
}
