//! Many tests in one boot of a guest kernel. Both ends of the line protocol between the guest and the machine are here:
//! `@lab start NAME`, what the test says, `@lab ok NAME` or `@lab failed NAME`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use flannel_lab::binaries;

use super::{find, run_in_sandbox};

/// Boots the guest; see there.
const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/run.sh");
/// Longest that the guest may run at all, in seconds: the guest's tests have limits of their own.
const GUEST_SECONDS: &str = "1800";

type Outcome = Result<(), String>;

/// In the guest: runs the tests named, one after the other.
pub fn run_all(names: &[&str]) -> ExitCode {
    for name in names {
        println!("@lab start {name}");
        let start = Instant::now();
        let outcome = find(name)
            .map_err(|e| format!("{e:#}"))
            .and_then(|case| match case.needs.are_met() {
                true => run_in_sandbox(&case),
                false => Err(format!(
                    "the guest kernel does not have it either: {:?}",
                    case.needs
                )),
            });
        println!(
            "{}({:.1} s)",
            outcome.as_ref().err().map_or("", |e| e),
            start.elapsed().as_secs_f64()
        );
        println!("@lab {} {name}", if outcome.is_ok() { "ok" } else { "failed" });
    }
    ExitCode::SUCCESS
}

/// On the machine: one boot of the guest, and who waits for which result.
#[derive(Debug, Clone)]
pub struct Guest(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    names: Vec<&'static str>,
    waiting: Mutex<HashMap<String, Sender<Outcome>>>,
    started: Once,
    end: Mutex<String>,
}

impl Guest {
    /// A guest, not booted yet, for the tests named; and where each one's result will arrive.
    pub fn new(names: Vec<&'static str>) -> (Self, Vec<(String, Receiver<Outcome>)>) {
        let mut waiting = HashMap::new();
        let mut results = Vec::new();
        for name in &names {
            let (sender, receiver) = channel();
            waiting.insert((*name).to_owned(), sender);
            results.push(((*name).to_owned(), receiver));
        }
        let inner = Inner {
            names,
            waiting: Mutex::new(waiting),
            started: Once::new(),
            end: Mutex::new(String::new()),
        };
        (Self(Arc::new(inner)), results)
    }

    /// Boots the guest, if nobody has yet.
    pub fn start_once(&self) {
        let guest = self.clone();
        self.0.started.call_once(|| {
            std::thread::spawn(move || {
                let end = match guest.boot() {
                    Ok(end) => format!("the guest ended without a result of this test ({end})"),
                    Err(error) => format!("{error:#}"),
                };
                *guest.0.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
                // Without their senders, those that still wait learn that nothing will come.
                guest
                    .0
                    .waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clear();
            });
        });
    }

    /// Why a result never came.
    pub fn end(&self) -> String {
        self.0.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs the guest to its end, passing results on as they come.
    fn boot(&self) -> Result<String> {
        let own = std::env::current_exe()?;
        let mut child = Command::new(RUNNER)
            .args(["-t", GUEST_SECONDS, "--"])
            .arg(own)
            .arg("--in-guest")
            .args(&self.0.names)
            .env(binaries::FOLDER_VARIABLE, binaries::folder()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {RUNNER}"))?;
        let output = child.stdout.take().context("no output of the guest")?;
        let tail = self.follow(output);
        let status = child.wait()?;
        Ok(format!("{status}; its last lines:\n{tail}"))
    }

    /// Shows what the guest says, and takes the results out of it.
    fn follow(&self, output: impl Read) -> String {
        let mut said = String::new();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            eprintln!("guest | {line}");
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["@lab", "start", _] => said.clear(),
                ["@lab", "ok", name] => self.pass_on(name, Ok(())),
                ["@lab", "failed", name] => self.pass_on(name, Err(std::mem::take(&mut said))),
                _ => said.extend([line.as_str(), "\n"]),
            }
        }
        said
    }

    fn pass_on(&self, name: &str, outcome: Outcome) {
        let sender = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        if let Some(sender) = sender {
            sender.send(outcome).ok();
        }
    }
}
