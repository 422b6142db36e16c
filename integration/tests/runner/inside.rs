//! One test, in the sandbox that was made for it.

use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};

use anyhow::{Result, anyhow};
use flannel_lab::{limit, sandbox};

use super::{Case, find};

/// Runs the test called `name` in this, new, sandbox. If it fails it says why and shows the sandbox's logs.
pub fn run(name: &str) -> ExitCode {
    match find(name).and_then(|case| sandbox::enter().and_then(|()| within_limit(&case))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}\n{}", sandbox::logs());
            ExitCode::FAILURE
        }
    }
}

/// The end of this process is the end of the sandbox, so a test that hangs needs no other clean-up.
fn within_limit(case: &Case) -> Result<()> {
    let (done, result) = channel();
    let run = case.run;
    std::thread::spawn(move || done.send(run()));
    match result.recv_timeout(limit(case.seconds)) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(anyhow!(
            "the test did not end within {:.0} s",
            limit(case.seconds).as_secs_f64()
        )),
        Err(RecvTimeoutError::Disconnected) => Err(anyhow!("the test panicked (its message is above)")),
    }
}
