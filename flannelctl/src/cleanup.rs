//! `flannelctl cleanup`: hands over to `flanneld cleanup`, which knows what flanneld makes.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::anyhow;

use crate::cli::CleanupArguments;
use crate::failure::Failure;

const DAEMON: &str = "flanneld";

/// Becomes `flanneld cleanup`; comes back only when that cannot be started.
pub fn run(arguments: &CleanupArguments) -> Result<(), Failure> {
    let program = daemon();
    let error = Command::new(&program).args(command_line(arguments)).exec();
    let shown = program.display();
    Err(Failure::Usage(match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "{shown} is not installed on this host; it is what cleans up: put it beside flannelctl or into PATH"
        ),
        _ => anyhow!("cannot run {shown}: {error}"),
    }))
}

/// The daemon beside this program, which is of its version, else the one in PATH.
fn daemon() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(DAEMON));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| DAEMON.into())
}

fn command_line(arguments: &CleanupArguments) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["cleanup".into()];
    for (given, flag) in [
        (arguments.dry_run, "--dry-run"),
        (arguments.all, "--all"),
        (arguments.cni, "--cni"),
        (arguments.state, "--state"),
        (arguments.keep_sysctls, "--keep-sysctls"),
        (arguments.services, "--services"),
    ] {
        line.extend(given.then(|| flag.into()));
    }
    line.extend(["--bridge".into(), arguments.bridge.clone().into()]);
    line.extend(["--subnet-file".into(), arguments.subnet_file.clone().into()]);
    line.extend(["--state-dir".into(), arguments.state_dir.clone().into()]);
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Command};
    use clap::Parser;

    #[test]
    fn every_flag_is_handed_over() {
        let line = "flannelctl cleanup --dry-run --all --cni --bridge br7 --state --keep-sysctls --subnet-file /s --state-dir /d";
        let Command::Cleanup(arguments) = Arguments::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("another command");
        };
        let expected = "cleanup --dry-run --all --cni --state --keep-sysctls --bridge br7 --subnet-file /s --state-dir /d";
        assert_eq!(command_line(&arguments), expected.split(' ').collect::<Vec<_>>());
    }
}
