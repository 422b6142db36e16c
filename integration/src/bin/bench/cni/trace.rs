//! How many programs a call runs and how many system calls they make, as strace(1) sees them.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use flannel_lab::sandbox;

use super::side::Side;

/// What strace counted.
pub struct Counted {
    programs: usize,
    calls: usize,
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>3} program(s), {:>5} system calls",
            self.programs, self.calls
        )
    }
}

/// Makes one call of `verb` (its first word) under strace, on a node with `standing` pods besides.
pub fn count(side: &Side, verb: &str, pod: &str, standing: usize) -> Result<Counted> {
    let log = format!("{}/strace.log", sandbox::SCRATCH);
    let (verb, again) = verb.split_once(',').unwrap_or((verb, ""));
    let launcher = ["strace", "-f", "-qq", "-s", "0", "-e", "signal=none", "-o", &log];
    if verb == "ADD" {
        side.call("DEL", pod, pod, None)?;
        side.settle(standing)?;
    }
    if again.contains("again") {
        side.settle(standing)?;
    }
    // What an ADD prints is of use to CHECK and DEL only.
    let kept = format!("{}/{pod}.result", sandbox::SCRATCH);
    let previous = fs::read_to_string(&kept)
        .ok()
        .filter(|_| ["CHECK", "DEL"].contains(&verb));
    let answer = side.call_through(&launcher, verb, pod, pod, previous.as_deref())?;
    if verb == "ADD" {
        fs::write(&kept, answer.stdout)?;
    }
    let text = fs::read_to_string(&log).context("strace wrote nothing")?;
    Ok(read(&text))
}

/// One line a call; one that was interrupted by another thread's ends in a line of its own, which says `resumed`.
fn read(log: &str) -> Counted {
    let calls = || {
        log.lines()
            .filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.trim_start()))
            .filter(|call| !call.starts_with("<... ") && !call.starts_with("+++") && !call.starts_with("---"))
    };
    Counted {
        programs: calls().filter(|call| call.starts_with("execve(")).count(),
        calls: calls().count(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn resumed_lines_are_counted_once() {
        let log = "12 execve(\"/a\", [\"a\"], 0x0) = 0\n12 read(0 <unfinished ...>\n13 futex(0x0) = 0\n12 <... read resumed>) = 4\n12 +++ exited with 0 +++\n";
        let counted = super::read(log);
        assert_eq!((counted.programs, counted.calls), (1, 3));
    }
}
