//! flanneld: the node daemon. This file reads the command line and starts the runtime; `daemon` joins the parts.

mod backends;
mod cache;
mod cleanup;
mod config_wait;
mod config_watch;
mod daemon;
mod encap;
mod facts;
mod fights;
mod filter;
mod flags;
mod kernel;
mod node_id;
mod old_chains;
mod overlay;
mod peer_feed;
mod reaper;
mod reconciler;
mod rejects;
mod repair;
mod service_feed;
mod services;
mod settings;
mod signals;
mod stranded;
mod subnet_file;
mod table_changes;
mod tunnel_ports;
mod udp;
mod underlay;
mod wireguard;
mod wireguard_key;

use std::process::ExitCode;
use std::time::Duration;

use flannel_daemon::{clock, lease_driver, publish, said};

use flags::{Options, Parsed};

/// The command line cannot be used. flannel ends with 0 here, which makes a service manager take a typing error for success.
const EXIT_USAGE: u8 = 2;
/// The daemon cannot do its work.
const EXIT_FAILURE: u8 = 1;
/// A kernel call that is still under way when the daemon ends is given this long.
const LAST_CALLS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, path] = args.as_slice()
        && command == udp::HOLDER_COMMAND
    {
        return hold(path);
    }
    if let Some((command, rest)) = args.split_first()
        && command == cleanup::COMMAND
    {
        return cleanup::main(rest);
    }
    let typed = match flags::parse(&args, |name| std::env::var(name).ok()) {
        Ok(Parsed::Run(typed)) => typed,
        Ok(Parsed::Help) => {
            print!("{}", flags::help());
            return ExitCode::SUCCESS;
        }
        Err(problems) => return usage(&problems),
    };
    if typed.bool("version") {
        // flannel prints it to stderr, and scripts read it there.
        eprintln!("flanneld {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let options = match Options::resolve(&typed) {
        Ok(options) => options,
        Err(problems) => return usage(&problems),
    };
    flannel_telemetry::init_logs(typed.number("v"));
    for ignored in &typed.ignored {
        tracing::warn!("{ignored}");
    }
    run(options)
}

/// This process only keeps descriptors for the daemon.
fn hold(path: &str) -> ExitCode {
    match udp::hold(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flanneld: {path}: {error}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn usage(problems: &[String]) -> ExitCode {
    for problem in problems {
        eprintln!("flanneld: {problem}");
    }
    ExitCode::from(EXIT_USAGE)
}

fn run(options: Options) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("flanneld: the runtime cannot start: {error}");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let result = runtime.block_on(daemon::run(options));
    runtime.shutdown_timeout(LAST_CALLS);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}
