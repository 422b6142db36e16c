//! Logs go to stderr, one line a change, values as fields.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. `verbosity` is klog's number: below 4 changes that an operator cares about, from 4 every step, from 10
/// everything. `RUST_LOG` wins over it.
pub fn init_logs(verbosity: i64) {
    let level = match verbosity {
        ..4 => "info",
        4..10 => "debug",
        10.. => "trace",
    };
    // The transport below etcd speaks of every frame; that is never what -v asks for.
    let default = format!("{level},h2=warn,hyper=warn,tonic=warn,tower=warn,rustls=warn,netlink_proto=warn");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // journald stamps every line itself.
    let started = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => builder.without_time().try_init(),
        None => builder.try_init(),
    };
    if let Err(error) = started {
        eprintln!("logging was started before: {error}");
    }
}
