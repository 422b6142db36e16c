//! Runs the `nft` binary, with a deadline.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::table::{Table, TableName, hash_in_listing};

/// Longest wait for one `nft`. A transaction takes milliseconds; the kernel's lock for them is shared by all namespaces.
const DEADLINE: Duration = Duration::from_secs(20);
/// Longest pause between two looks at a running `nft`.
const POLL: Duration = Duration::from_millis(2);

/// What became of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It stood there already.
    Unchanged,
    /// It was written.
    Written,
}

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no such binary.
    #[error(
        "{binary} is not installed: install the package nftables (Debian, Ubuntu, Fedora, Alpine: nftables)"
    )]
    Missing {
        /// What was looked for.
        binary: String,
    },
    /// It could not be started or talked to.
    #[error("cannot run {binary}")]
    Run {
        /// What was run.
        binary: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{what}: nft did not end within {} s", .deadline.as_secs_f64())]
    Deadline {
        /// What it was to do.
        what: String,
        /// How long it was given.
        deadline: Duration,
    },
    /// It refused.
    #[error("{what}: nft says: {stderr}")]
    Refused {
        /// What it was to do.
        what: String,
        /// Its words.
        stderr: String,
    },
}

/// The `nft` binary.
#[derive(Debug, Clone)]
pub struct Nft {
    binary: PathBuf,
    deadline: Duration,
}

impl Default for Nft {
    /// `nft` from PATH, with 20 s for each call.
    fn default() -> Self {
        Self::new("nft", DEADLINE)
    }
}

struct Ended {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Nft {
    /// A binary by its name or path, and the longest wait for one call.
    pub fn new(binary: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self {
            binary: binary.into(),
            deadline,
        }
    }

    /// Writes `table` in one transaction unless it stands there already with the same text.
    ///
    /// # Errors
    /// When `nft` is missing, refuses or does not end in time. The former table stands then.
    pub fn apply(&self, table: &Table) -> Result<Applied, NftError> {
        if self.current_hash(table.name())? == Some(table.hash()) {
            return Ok(Applied::Unchanged);
        }
        self.write(&format!("write table {}", table.name()), &table.transaction())?;
        Ok(Applied::Written)
    }

    /// Writes `table` in one transaction, whatever stands there.
    ///
    /// # Errors
    /// When `nft` is missing, refuses or does not end in time. The former table stands then.
    pub fn replace(&self, table: &Table) -> Result<(), NftError> {
        self.write(&format!("write table {}", table.name()), &table.transaction())
    }

    /// The elements of a set as nft prints them; none when there is no such set or table.
    ///
    /// # Errors
    /// When `nft` is missing or does not end in time.
    pub fn elements(&self, table: TableName, set: &str) -> Result<Vec<String>, NftError> {
        let what = format!("list set {set} of table {table}");
        let family = table.family.to_string();
        let ended = self.run(&what, &["-nn", "list", "set", &family, table.name, set], "")?;
        Ok(elements_in_listing(&ended.stdout))
    }

    /// The tables of the network namespace, by family and name, whoever made them.
    ///
    /// # Errors
    /// When `nft` is missing, refuses or does not end in time.
    pub fn tables(&self) -> Result<Vec<(String, String)>, NftError> {
        let what = "list tables";
        let ended = self.run(what, &["list", "tables"], "")?;
        if !ended.success {
            return Err(NftError::Refused {
                what: what.to_owned(),
                stderr: ended.stderr,
            });
        }
        let lines = ended.stdout.lines();
        let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        Ok(words
            .filter_map(|words| match words[..] {
                ["table", family, name, ..] => Some((family.to_owned(), name.to_owned())),
                _ => None,
            })
            .collect())
    }

    /// Deletes a table by its family and name, whoever made it.
    ///
    /// # Errors
    /// When there is none, or `nft` is missing, refuses or does not end in time.
    pub fn delete(&self, family: &str, name: &str) -> Result<(), NftError> {
        self.write(
            &format!("delete table {family} {name}"),
            &format!("delete table {family} {name}\n"),
        )
    }

    /// Removes the table; one that is not there is removed already. Tables that do not carry our hash are left alone.
    ///
    /// # Errors
    /// When `nft` is missing, refuses or does not end in time.
    pub fn remove(&self, table: TableName) -> Result<Applied, NftError> {
        if self.current_hash(table)?.is_none() {
            return Ok(Applied::Unchanged);
        }
        self.write(
            &format!("remove table {table}"),
            &format!("add table {table}\ndelete table {table}\n"),
        )?;
        Ok(Applied::Written)
    }

    /// How nft lists the table, without counts; `None` when there is none. Two listings are equal when nobody changed the table in
    /// between.
    ///
    /// # Errors
    /// When `nft` is missing, refuses or does not end in time.
    pub fn listing(&self, table: TableName) -> Result<Option<String>, NftError> {
        self.list(table, &["--stateless"])
    }

    /// The same without the elements of its sets.
    ///
    /// # Errors
    /// As [`Nft::listing`].
    pub fn rules_listing(&self, table: TableName) -> Result<Option<String>, NftError> {
        self.list(table, &["--stateless", "--terse"])
    }

    fn list(&self, table: TableName, options: &[&str]) -> Result<Option<String>, NftError> {
        let what = format!("list table {table}");
        let family = table.family.to_string();
        let arguments = [options, &["list", "table", &family, table.name]].concat();
        let ended = self.run(&what, &arguments, "")?;
        match ended.success {
            true => Ok(Some(ended.stdout)),
            false if ended.stderr.contains("No such file or directory") => Ok(None),
            false => Err(NftError::Refused {
                what,
                stderr: ended.stderr,
            }),
        }
    }

    /// How [`Nft::listing`] shows the table right after it was written. For that it is written into a network namespace of its own, which
    /// nothing else is in and which goes at once; that needs root and `unshare` (util-linux).
    ///
    /// # Errors
    /// When `nft` or `unshare` is missing, refuses or does not end in time.
    pub fn shown(&self, table: &Table) -> Result<String, NftError> {
        let name = table.name();
        let what = format!("write table {name} where nobody sees it");
        let script = format!("\"$0\" -f - && exec \"$0\" --stateless list table {name}");
        let apart = Self::new("unshare", self.deadline);
        let own = self.binary.to_string_lossy();
        let arguments = ["--net", "--", "sh", "-c", &script, &own];
        let ended = match apart.run(&what, &arguments, &table.declaration()) {
            Err(NftError::Missing { binary }) => {
                let cause = io::ErrorKind::NotFound.into();
                return Err(NftError::Run { binary, cause });
            }
            other => other?,
        };
        match ended.success {
            true => Ok(ended.stdout),
            false => Err(NftError::Refused {
                what,
                stderr: ended.stderr,
            }),
        }
    }

    /// The hash that the comment of the table in the kernel carries; `None` when there is no table or no hash.
    ///
    /// Only this mark is looked for in the listing: JSON would be sounder, but leaves the comment out in nftables 1.0.6.
    ///
    /// # Errors
    /// When `nft` is missing, refuses or does not end in time.
    pub fn current_hash(&self, table: TableName) -> Result<Option<String>, NftError> {
        let what = format!("read table {table}");
        let family = table.family.to_string();
        let ended = self.run(&what, &["--terse", "list", "table", &family, table.name], "")?;
        if ended.success {
            return Ok(hash_in_listing(&ended.stdout));
        }
        if ended.stderr.contains("No such file or directory") {
            return Ok(None);
        }
        Err(NftError::Refused {
            what,
            stderr: ended.stderr,
        })
    }

    /// Carries out commands as one transaction. `what` says in words what they are for.
    ///
    /// # Errors
    /// When `nft` is missing, refuses or does not end in time. Nothing is changed then.
    pub fn run_script(&self, what: &str, commands: &str) -> Result<(), NftError> {
        self.write(what, commands)
    }

    fn write(&self, what: &str, commands: &str) -> Result<(), NftError> {
        let ended = self.run(what, &["-f", "-"], commands)?;
        if ended.success {
            Ok(())
        } else {
            Err(NftError::Refused {
                what: what.to_owned(),
                stderr: ended.stderr,
            })
        }
    }

    fn run(&self, what: &str, arguments: &[&str], input: &str) -> Result<Ended, NftError> {
        let mut child = self.spawn(arguments)?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(self.run_error(io::Error::other("a pipe is missing")));
        };
        let (end, ended) = mpsc::channel();
        let (stdout, stderr) = (read_aside(stdout, Some(end)), read_aside(stderr, None));
        let input = input.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        // It closes its output when it ends, or somewhat before.
        let _ = ended.recv_timeout(self.deadline);
        let success = self.wait(what, &mut child)?;
        // A failed write shows in what nft says about it.
        let _ = writer.join();
        Ok(Ended {
            success,
            stdout: collect(stdout),
            stderr: collect(stderr),
        })
    }

    fn spawn(&self, arguments: &[&str]) -> Result<Child, NftError> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("LC_ALL", "C");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => NftError::Missing {
                binary: self.binary.display().to_string(),
            },
            _ => self.run_error(cause),
        })
    }

    fn wait(&self, what: &str, child: &mut Child) -> Result<bool, NftError> {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status.success()),
                Ok(None) if begin.elapsed() < self.deadline => {
                    std::thread::sleep(pause);
                    pause = POLL.min(2 * pause);
                }
                Ok(None) => {
                    kill(child);
                    return Err(NftError::Deadline {
                        what: what.to_owned(),
                        deadline: self.deadline,
                    });
                }
                Err(cause) => {
                    kill(child);
                    return Err(self.run_error(cause));
                }
            }
        }
    }

    fn run_error(&self, cause: io::Error) -> NftError {
        NftError::Run {
            binary: self.binary.display().to_string(),
            cause,
        }
    }
}

/// What stands between the braces behind `elements =`.
fn elements_in_listing(listing: &str) -> Vec<String> {
    let inner = listing
        .split_once("elements = {")
        .and_then(|(_, rest)| rest.split_once('}'));
    let items = inner.map(|(inner, _)| inner.split(',').map(|item| item.trim().to_owned()));
    items.into_iter().flatten().collect()
}

/// Ends the child and takes its status, so that it does not stay as a zombie.
fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads a pipe on a thread of its own, so that a child with much to say is not blocked by us.
fn read_aside(mut pipe: impl Read + Send + 'static, end: Option<Sender<()>>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        if let Some(end) = end {
            let _ = end.send(());
        }
        String::from_utf8_lossy(&bytes).trim().to_owned()
    })
}

fn collect(reader: JoinHandle<String>) -> String {
    reader.join().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_in_a_listing() {
        let listing = "table ip t {\n\tset s {\n\t\ttype inet_proto . inet_service\n\t\telements = { 6 . 30080,\n\t\t\t     17 . 30053 }\n\t}\n}\n";
        assert_eq!(elements_in_listing(listing), ["6 . 30080", "17 . 30053"]);
        assert_eq!(elements_in_listing("table ip t {\n\tset s {\n\t}\n}\n"), [""; 0]);
    }

    #[test]
    fn a_missing_binary_says_what_to_install() {
        let error = Nft::new("/nonexistent/nft", DEADLINE)
            .current_hash(TableName::SERVICES)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "/nonexistent/nft is not installed: install the package nftables (Debian, Ubuntu, Fedora, Alpine: nftables)"
        );
    }

    /// A child that does what `script` says, whatever its arguments are. Another process writes the file: a thread of this
    /// one that forks meanwhile would hold it open, and what is open for writing cannot be run (ETXTBSY).
    fn fake(name: &str, script: &str) -> Nft {
        let path = std::env::temp_dir().join(format!("flannel-nft-{}-{name}", std::process::id()));
        let write = "printf '#!/bin/sh\n%s\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let status = Command::new("sh")
            .args(["-c", write, "sh", script])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        Nft::new(path, Duration::from_millis(300))
    }

    #[test]
    fn a_hanging_child_is_killed() {
        let nft = fake("hang", "exec sleep 30");
        let begin = Instant::now();
        let error = nft.current_hash(TableName::SERVICES).unwrap_err();
        assert!(matches!(error, NftError::Deadline { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::fs::remove_file(nft.binary).unwrap();
    }

    #[test]
    fn the_words_of_a_refusal_are_kept() {
        let nft = fake("refuse", "echo 'Operation not permitted' >&2; exit 1");
        let error = nft.current_hash(TableName::MASQUERADE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "read table ip flannel-ipv4: nft says: Operation not permitted"
        );
        std::fs::remove_file(nft.binary).unwrap();
    }
}
