//! What went wrong, and the exit code that tells it to scripts.

use std::process::ExitCode;

use flannel_store::{ErrorKind, StoreError};

use crate::services::Unfinished;

const USAGE: u8 = 1;
const ETCD: u8 = 2;
const CONTENT: u8 = 3;
const NOT_FOUND: u8 = 4;
const TAKEN: u8 = 5;
const FINDINGS: u8 = 6;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage, or a local file that cannot be used.
    Usage(anyhow::Error),
    /// etcd cannot be used.
    Etcd(StoreError),
    /// etcd could not be used any more after some of it was done.
    Partly(String),
    /// The flanneld of this node cannot be asked.
    Daemon(String),
    /// Bad content in etcd or in a file; one problem a line.
    Content(String),
    /// What was asked for is not there.
    NotFound(String),
    /// It is in use, or was changed by somebody else meanwhile.
    Taken(String),
    /// A check found something that has to be mended.
    Findings(String),
}

impl Failure {
    /// Prints it and returns its exit code.
    pub fn report(&self) -> ExitCode {
        let (code, text) = match self {
            Self::Usage(error) => (USAGE, format!("{error:#}")),
            Self::Etcd(error) => (ETCD, error.to_string()),
            Self::Partly(text) | Self::Daemon(text) => (ETCD, text.clone()),
            Self::Content(text) => (CONTENT, text.clone()),
            Self::NotFound(text) => (NOT_FOUND, text.clone()),
            Self::Taken(text) => (TAKEN, text.clone()),
            Self::Findings(text) => (FINDINGS, text.clone()),
        };
        eprintln!("flannelctl: {text}");
        ExitCode::from(code)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            ErrorKind::Config => Self::Usage(error.into()),
            ErrorKind::Unreachable
            | ErrorKind::Timeout
            | ErrorKind::Auth
            | ErrorKind::NoLeader
            | ErrorKind::Other => Self::Etcd(error),
        }
    }
}

impl From<Unfinished> for Failure {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished.done {
            0 => unfinished.error.into(),
            done => Self::Partly(format!(
                "{}; {done} of {} keys were written before: repeat the command",
                unfinished.error, unfinished.of
            )),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Usage(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Usage(error.into())
    }
}

/// clap's own errors: help and version are no failure, and clap's code 2 means something else here.
pub fn of_arguments(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    match error.use_stderr() || printed.is_err() {
        true => ExitCode::from(USAGE),
        false => ExitCode::SUCCESS,
    }
}
