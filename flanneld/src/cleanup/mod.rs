//! `flanneld cleanup`: takes away what flanneld made on this host, and nothing else.

mod cni_files;
mod files;
mod find;
mod item;
mod options;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use flannel_netlink::RouteConn;
use flannel_netlink::link::released;

use item::Item;
use options::{Asked, HELP, Options};

/// The first argument that asks for it.
pub const COMMAND: &str = "cleanup";
/// The command line cannot be used.
const EXIT_USAGE: u8 = 2;
/// Something is left.
const EXIT_FAILURE: u8 = 1;

/// Runs the command with the arguments behind it.
pub fn main(args: &[String]) -> ExitCode {
    let options = match options::parse(args, |name| std::env::var(name).ok()) {
        Ok(Asked::Run(options)) => options,
        Ok(Asked::Help) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("flanneld cleanup: {problem}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match clean_up(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        Err(error) => {
            eprintln!("flanneld cleanup: {error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Answers whether all of it is gone.
fn clean_up(options: &Options) -> anyhow::Result<bool> {
    if !options.dry_run && is_running(&options.subnet_file) {
        anyhow::bail!(
            "flanneld is running and would make everything anew: stop it first (systemctl stop flanneld)"
        );
    }
    let mut conn = RouteConn::open()?;
    let found = find::find(options, &mut conn)?;
    let mut complete = true;
    for problem in &found.problems {
        eprintln!("flanneld cleanup: {problem}");
        complete = false;
    }
    if found.items.is_empty() && complete {
        println!("there is nothing to remove");
    }
    for item in &found.items {
        if options.dry_run {
            println!("would {item}");
            continue;
        }
        match remove(item, &mut conn) {
            Ok(()) => println!("{item}"),
            Err(error) => {
                complete = false;
                eprintln!("flanneld cleanup: {error:#}");
            }
        }
    }
    Ok(complete)
}

fn remove(item: &Item, conn: &mut RouteConn) -> anyhow::Result<()> {
    item.remove(conn).with_context(|| format!("cannot {item}"))
}

/// A daemon listens beside its subnet file for the CNI plugin as long as it runs.
fn is_running(subnet_file: &Path) -> bool {
    UnixDatagram::unbound()
        .and_then(|socket| socket.connect(subnet_file.with_file_name(released::SOCKET)))
        .is_ok()
}
