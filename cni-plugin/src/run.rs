//! A call from beginning to end: environment and stdin in, stdout and exit status out.

use std::io::{self, Write};
use std::process::ExitCode;

use rustix::fs::OFlags;

use crate::config::{Network, unread_keys};
use crate::delegate::Delegate;
use crate::protocol::{Attachment, Call, CniArgs, CniError, Code, SpecVersion, version};
use crate::{add, check, del, gc, protocol, status, wiring};

/// A failure together with the version in which it is to be told.
struct Failed {
    version: SpecVersion,
    error: CniError,
}

/// Does what the environment asks, and tells the runtime on stdout what became of it.
pub fn main() -> ExitCode {
    let call = match protocol::from_environment(|name| std::env::var_os(name)) {
        Ok(Some(call)) => call,
        Ok(None) => return about(),
        Err(error) => {
            return fail(&Failed {
                version: SpecVersion::NEWEST,
                error,
            });
        }
    };
    match run(&call) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => fail(&failed),
    }
}

fn run(call: &Call) -> Result<(), Failed> {
    if *call == Call::Version {
        return print(&version::answer()).map_err(|error| Failed {
            version: SpecVersion::NEWEST,
            error,
        });
    }
    let network = protocol::read_object(io::stdin().lock())
        .and_then(Network::new)
        .map_err(|error| Failed {
            version: SpecVersion::NEWEST,
            error,
        })?;
    obey(call, &network).map_err(|error| Failed {
        version: network.version,
        error,
    })
}

fn obey(call: &Call, network: &Network) -> Result<(), CniError> {
    let search = std::env::var_os("CNI_PATH").unwrap_or_default();
    let delegate = || Delegate::of(network, &search);
    if matches!(call, Call::Add { .. } | Call::Status) {
        unread_keys(network)?.into_iter().for_each(warn);
    }
    match call {
        Call::Add {
            attachment,
            netns,
            args,
        } => match delegate()? {
            Some(delegate) => {
                wiring::target(netns)?;
                delegate.add(attachment)
            }
            None => attach(network, attachment, netns, args),
        },
        Call::Del { attachment, netns } => {
            del::del(network, attachment, netns.as_deref(), &search, &mut warn)
        }
        Call::Check {
            attachment,
            netns,
            args,
        } => {
            since(network, "CHECK", SpecVersion::V0_4_0)?;
            match delegate()? {
                Some(delegate) => delegate.check(attachment),
                None => check::check(network, attachment, netns, args),
            }
        }
        Call::Gc => {
            since(network, "GC", SpecVersion::V1_1_0)?;
            gc::gc(network, delegate()?.as_ref(), &mut warn)
        }
        Call::Status => {
            since(network, "STATUS", SpecVersion::V1_1_0)?;
            match delegate()? {
                Some(delegate) => delegate.status(),
                None => status::status(network, &mut warn),
            }
        }
        Call::Version => print(&version::answer()),
    }
}

/// An ADD whose result nobody reads did not happen.
fn attach(network: &Network, attachment: &Attachment, netns: &str, args: &CniArgs) -> Result<(), CniError> {
    let attached = add::add(network, attachment, netns, args, &mut warn)?;
    let printed = print(&attached.result.to_json(network.version));
    if printed.is_err() {
        attached.take_back(&mut warn);
    }
    printed
}

/// The specification's floor for a command.
fn since(network: &Network, command: &str, floor: SpecVersion) -> Result<(), CniError> {
    match network.version >= floor {
        true => Ok(()),
        false => Err(CniError::new(
            Code::IncompatibleVersion,
            format!("cniVersion {} does not allow {command}", network.version.text()),
        )
        .with(format!("{command} exists since {}", floor.text()))),
    }
}

fn print(text: &str) -> Result<(), CniError> {
    let mut out = io::stdout().lock();
    let written = refuse_stand_in().and_then(|()| writeln!(out, "{text}").and_then(|()| out.flush()));
    written.map_err(|e| CniError::caused(Code::Io, "the result cannot be written to stdout", &e))
}

/// Where stdout is closed, Rust's start-up puts /dev/null there, open for reading and writing, and every write succeeds. Nobody who
/// throws output away on purpose opens it for reading too.
fn refuse_stand_in() -> io::Result<()> {
    let stdout = io::stdout();
    let null = rustix::fs::fstat(&stdout)?.st_rdev == rustix::fs::makedev(1, 3);
    let access = rustix::fs::fcntl_getfl(&stdout)? & OFlags::RWMODE;
    match null && access == OFlags::RDWR {
        true => Err(io::Error::other("it is closed")),
        false => Ok(()),
    }
}

fn fail(failed: &Failed) -> ExitCode {
    // Where stdout is closed, the runtime shows stderr instead.
    if print(&failed.error.to_json(failed.version.text())).is_err() {
        warn(failed.error.to_string());
    }
    ExitCode::FAILURE
}

/// The runtime copies stderr into its log.
#[expect(
    clippy::needless_pass_by_value,
    reason = "serves as the callback that takes finished texts"
)]
fn warn(text: String) {
    // There is nowhere left to tell that stderr is closed.
    let _ = writeln!(io::stderr().lock(), "flannel: {text}");
}

fn about() -> ExitCode {
    let text = format!(
        "flannel {}: CNI plugin that attaches containers to the node's overlay subnet.\nCNI versions: {}\nA container runtime calls it with CNI_COMMAND set and the network configuration on stdin.",
        env!("CARGO_PKG_VERSION"),
        version::supported().join(", ")
    );
    match writeln!(io::stderr().lock(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
