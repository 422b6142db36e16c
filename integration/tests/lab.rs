//! The end-to-end tests.
//!
//! Outside, this program is an ordinary test program (`cargo test -p flannel-lab --test lab -- NAME`). Each test then runs as this
//! program again, within a sandbox of its own; tests that need IPVS run in a guest kernel where this machine's has none.
//! The tests are in `cases`; `cases::all` lists them.

mod cases;
mod runner;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--in-sandbox", name] => runner::inside::run(name),
        ["--in-guest", names @ ..] => runner::guest::run_all(names),
        ["--hold", file, nodes] => cases::selftest::hold(file, nodes),
        _ => runner::outside::run(),
    }
}
