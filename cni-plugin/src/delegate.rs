//! A delegate that is not `bridge`: run as a program of its own, as flannel does, so that nodes with ipvlan or macvlan keep
//! working. What it is given is rendered and saved in flannel's form and place.
//!
//! ADD, CHECK and STATUS end in it: this process becomes the delegate, so that whoever kills us kills it. After DEL and GC there
//! is something left to do, so that they run it beside us.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::MemfdFlags;
use serde_json::{Map, Value, json};

use crate::config::{Network, render};
use crate::protocol::keys::Keys;
use crate::protocol::{Attachment, CniError, Code, excerpt, is_identifier};
use crate::scratch::{Saved, Scratch};
use crate::subnet_file;

/// What flannel calls itself; as its own delegate it would run for ever.
const OWN_TYPE: &str = "flannel";

/// A delegate to be run.
#[derive(Debug)]
pub struct Delegate<'a> {
    network: &'a Network,
    kind: String,
    search: &'a OsStr,
}

impl<'a> Delegate<'a> {
    /// The delegate of `network`, if it is another than `bridge`. `search` is `CNI_PATH`.
    ///
    /// # Errors
    /// Code 7 when its type is no name of a plugin.
    pub fn of(network: &'a Network, search: &'a OsStr) -> Result<Option<Self>, CniError> {
        let delegate = network.part("delegate")?;
        let kind = Keys::new("delegate", &delegate).text("type")?;
        kind.filter(|kind| *kind != "bridge")
            .map(|kind| Self::named(network, kind, search))
            .transpose()
    }

    /// The delegate by which a container was attached, if it was another than `bridge`.
    ///
    /// # Errors
    /// Code 7 when its type is no name of a plugin.
    pub fn of_saved(
        network: &'a Network,
        saved: &Map<String, Value>,
        search: &'a OsStr,
    ) -> Result<Option<Self>, CniError> {
        let kind = saved.get("type").and_then(Value::as_str);
        kind.filter(|kind| *kind != "bridge")
            .map(|kind| Self::named(network, kind, search))
            .transpose()
    }

    /// A type is looked up in directories, so that it must not be a path (CVE-2021-20206).
    fn named(network: &'a Network, kind: &str, search: &'a OsStr) -> Result<Self, CniError> {
        match is_identifier(kind) && kind != OWN_TYPE {
            true => Ok(Self {
                network,
                kind: kind.to_owned(),
                search,
            }),
            false => Err(
                CniError::new(Code::BadConfig, format!("delegate.type is {}", excerpt(kind))).with(
                    "expected the name of another CNI plugin: letters, digits, `_`, `.` or `-`, and no path",
                ),
            ),
        }
    }

    /// Attaches the container. Comes back only when that fails.
    ///
    /// # Errors
    /// Code 11 without subnet.env, 7 when the plugin is not there, 5 when it cannot be run.
    pub fn add(&self, attachment: &Attachment) -> Result<(), CniError> {
        let config = self.rendered()?;
        let program = self.program()?;
        let scratch = Scratch::new(&self.network.data_dir()?, &attachment.container);
        let previous = scratch.save(&config)?;
        let failed = self.become_it(&program, &config);
        scratch.restore(&previous)?;
        Err(failed)
    }

    /// Detaches the container, with the configuration that was saved when it was attached. Where that is lost, today's is tried.
    ///
    /// # Errors
    /// Code 7 when the plugin is not there, 5 when it cannot be run, 104 when it fails. The call can be repeated.
    pub fn del(&self, attachment: &Attachment, warn: &mut dyn FnMut(String)) -> Result<(), CniError> {
        let scratch = Scratch::new(&self.network.data_dir()?, &attachment.container);
        match scratch.load(&self.network.name) {
            Saved::Ours(config) => {
                self.run(&self.program()?, &config)?;
                scratch.remove()
            }
            Saved::Absent | Saved::Damaged | Saved::Foreign => {
                let tried = self
                    .rendered()
                    .and_then(|config| self.run(&self.program()?, &config));
                tried.unwrap_or_else(|e| warn(format!("DEL goes on: {e}")));
                scratch.remove_rest()
            }
        }
    }

    /// Has the delegate compare the container with `prevResult`. Comes back only when that fails.
    ///
    /// # Errors
    /// As [`Delegate::add`].
    pub fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        let scratch = Scratch::new(&self.network.data_dir()?, &attachment.container);
        let mut config = match scratch.load(&self.network.name) {
            Saved::Ours(config) => config,
            Saved::Absent | Saved::Damaged | Saved::Foreign => self.rendered()?,
        };
        if let Some(previous) = self.network.keys().value("prevResult")? {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        Err(self.become_it(&self.program()?, &config))
    }

    /// Asks the delegate whether an ADD would work. Comes back only when that fails.
    ///
    /// # Errors
    /// Code 50 without subnet.env or plugin, 5 when it cannot be run.
    pub fn status(&self) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError {
            code: Code::NotAvailable,
            ..e
        };
        let config = self.rendered().map_err(unavailable)?;
        let program = self.program().map_err(unavailable)?;
        Err(self.become_it(&program, &config))
    }

    /// Has the delegate remove what is not in the list of `cni.dev/valid-attachments`.
    ///
    /// # Errors
    /// As [`Delegate::del`].
    pub fn gc(&self) -> Result<(), CniError> {
        let mut config = self.rendered()?;
        for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            if let Some(list) = self.network.keys().value(name)? {
                config.insert(name.to_owned(), list.clone());
            }
        }
        self.run(&self.program()?, &config)
    }

    fn rendered(&self) -> Result<Map<String, Value>, CniError> {
        render::delegate(self.network, &subnet_file::read(&self.network.subnet_file()?)?)
    }

    /// The first program of that name in the directories of `CNI_PATH`.
    fn program(&self) -> Result<PathBuf, CniError> {
        let is_program = |path: &Path| {
            let seen = path.metadata();
            seen.is_ok_and(|seen| seen.is_file() && seen.permissions().mode() & 0o111 != 0)
        };
        // A relative one would be found in whatever directory the runtime happens to be.
        let mut found = std::env::split_paths(self.search)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(&self.kind));
        found.find(|path| is_program(path)).ok_or_else(|| {
            let msg = format!(
                "delegate.type is {:?}, and no such plugin is installed",
                self.kind
            );
            CniError::new(Code::BadConfig, msg).with(format!("looked in CNI_PATH {:?}", self.search))
        })
    }

    fn become_it(&self, program: &Path, config: &Map<String, Value>) -> CniError {
        match stdin(config) {
            Ok(stdin) => self.failed(&Command::new(program).stdin(stdin).exec()),
            Err(e) => self.failed(&e),
        }
    }

    fn run(&self, program: &Path, config: &Map<String, Value>) -> Result<(), CniError> {
        let output = stdin(config)
            .and_then(|stdin| Command::new(program).stdin(stdin).output())
            .map_err(|e| self.failed(&e))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(told(&self.kind, &output)),
        }
    }

    fn failed(&self, cause: &io::Error) -> CniError {
        CniError::caused(Code::Io, format!("the plugin {} cannot be run", self.kind), cause)
    }
}

/// A file that nobody else can see: the delegate may read it or not, as it likes.
fn stdin(config: &Map<String, Value>) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("config", MemfdFlags::CLOEXEC)?);
    file.write_all(render::text(config).as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// What a plugin that failed had to say.
fn told(kind: &str, output: &Output) -> CniError {
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| json!({}));
    let text = |key: &str| error[key].as_str().unwrap_or_default().trim().to_owned();
    let msg = match text("msg") {
        none if none.is_empty() => format!("the plugin {kind} failed with {}", output.status),
        msg => format!("the plugin {kind} failed: {msg}"),
    };
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let details = [text("details"), stderr]
        .into_iter()
        .filter(|text| !text.is_empty());
    CniError::new(Code::Delegate, msg).with(details.collect::<Vec<_>>().join("; "))
}
