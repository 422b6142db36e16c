//! Who keeps the descriptors while the daemon is down: systemd where it offers to (FDSTORE), elsewhere a process of this program.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use flannel_telemetry::{forget_descriptors, store_descriptors, stored_descriptors};
use flannel_tun::keep::{self, Descriptors};

/// The first argument that makes this program a holder; the second is the path of its socket.
pub const HOLDER_COMMAND: &str = "hold-descriptors";

/// The holder's socket in the folder of subnet.env.
pub const HOLDER_SOCKET: &str = "udp-descriptors.sock";
/// Names in the service manager's store.
const DEVICE_NAME: &str = "flannel-udp-device";
const SOCKET_NAME: &str = "flannel-udp-socket";
const MEMORY_NAME: &str = "flannel-udp-memory";
/// A new holder listens within milliseconds.
const START: Duration = Duration::from_secs(3);

/// Keeps descriptors in `path`; the holder's whole work.
///
/// # Errors
/// When its socket cannot be made.
pub fn hold(path: &str) -> io::Result<()> {
    keep::hold(Path::new(path))
}

/// Where descriptors are kept.
#[derive(Debug)]
pub struct Keeper {
    holder: PathBuf,
}

impl Keeper {
    /// With a holder's socket in `folder`, which must not survive a reboot.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            holder: folder.join(HOLDER_SOCKET),
        }
    }

    /// What an earlier run had open.
    pub fn inherited(&self) -> Descriptors {
        let mut all = Descriptors::default();
        for (name, descriptor) in stored_descriptors() {
            match name.as_str() {
                DEVICE_NAME => all.devices.push(descriptor),
                SOCKET_NAME => all.sockets.push(descriptor),
                MEMORY_NAME => all.memory = Some(descriptor),
                _ => {}
            }
        }
        if all.is_empty() {
            // No holder is the usual case.
            all = keep::take(&self.holder).unwrap_or_default();
        }
        all
    }

    /// Has these kept in the place of what was kept before.
    ///
    /// # Errors
    /// When nobody keeps them.
    pub fn keep(
        &self,
        devices: &[BorrowedFd<'_>],
        sockets: &[BorrowedFd<'_>],
        memory: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<()> {
        // systemd says since 254 that it keeps descriptors for this unit (FileDescriptorStoreMax=).
        if std::env::var_os("FDSTORE").is_some() {
            store_descriptors(DEVICE_NAME, devices)?;
            store_descriptors(SOCKET_NAME, sockets)?;
            return store_descriptors(MEMORY_NAME, memory.as_slice())
                .context("the service manager takes no descriptors");
        }
        if keep::keep(&self.holder, devices, sockets, memory).is_ok() {
            return Ok(());
        }
        self.start_holder()
            .context("the descriptor holder cannot be started")?;
        let start = Instant::now();
        loop {
            match keep::keep(&self.holder, devices, sockets, memory) {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > START => {
                    return Err(error)
                        .with_context(|| format!("no descriptor holder at {}", self.holder.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Lets go of everything that is kept.
    pub fn forget(&self) {
        forget_descriptors(DEVICE_NAME);
        forget_descriptors(SOCKET_NAME);
        forget_descriptors(MEMORY_NAME);
        // No holder is the usual case.
        keep::forget(&self.holder).ok();
    }

    fn start_holder(&self) -> io::Result<()> {
        if let Some(folder) = self.holder.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Command::new("/proc/self/exe")
            .arg0("flanneld")
            .arg(HOLDER_COMMAND)
            .arg(&self.holder)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Signals to the daemon's group are not for it.
            .process_group(0)
            .spawn()
            .map(drop)
    }
}
