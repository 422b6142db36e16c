//! The receiving end of sd_notify(3).

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sandbox;

/// A socket for a service's state messages. Pathname sockets are reachable from every network namespace.
#[derive(Debug)]
pub struct NotifySocket {
    path: String,
    seen: Arc<Mutex<String>>,
}

impl NotifySocket {
    /// A new socket called `name`, read by a thread of its own; an old one of that name is replaced.
    pub fn bind(name: &str) -> Result<Self> {
        let (socket, path) = bind(name)?;
        let seen = Arc::new(Mutex::new(String::new()));
        let notes = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                notes.push_str(&String::from_utf8_lossy(&buffer[..length]));
                notes.push('\n');
            }
        });
        Ok(Self { path, seen })
    }

    /// What NOTIFY_SOCKET must be set to.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Everything received so far, one message a line.
    pub fn seen(&self) -> String {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether READY=1 has come.
    pub fn is_ready(&self) -> bool {
        self.seen().lines().any(|l| l == "READY=1")
    }

    /// Waits for READY=1, looking with `alive` whether the sender is still there.
    pub fn wait_ready(&self, within: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while !self.is_ready() {
            alive()?;
            if start.elapsed() >= within {
                bail!(
                    "no READY=1 within {:.1} s; received: {:?}",
                    within.as_secs_f64(),
                    self.seen()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// A socket that nobody reads from, and its path: a service manager that hangs.
pub fn bind(name: &str) -> Result<(UnixDatagram, String)> {
    let path = format!("{}/{name}.sock", sandbox::NOTIFY);
    std::fs::remove_file(&path).ok();
    let socket = UnixDatagram::bind(&path).with_context(|| format!("cannot bind {path}"))?;
    Ok((socket, path))
}
