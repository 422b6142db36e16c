//! The receiving end of sd_notify(3).

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sandbox;

/// A socket for a service's state messages. Pathname sockets are reachable from every network namespace.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: String,
    seen: String,
}

impl NotifySocket {
    /// A new socket called `name`; an old one of that name is replaced.
    pub fn bind(name: &str) -> Result<Self> {
        let path = format!("{}/{name}.sock", sandbox::NOTIFY);
        std::fs::remove_file(&path).ok();
        let socket = UnixDatagram::bind(&path).with_context(|| format!("cannot bind {path}"))?;
        Ok(Self {
            socket,
            path,
            seen: String::new(),
        })
    }

    /// What NOTIFY_SOCKET must be set to.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Everything received so far, one message a line.
    pub fn seen(&mut self) -> Result<&str> {
        self.receive(Duration::from_millis(1))?;
        Ok(&self.seen)
    }

    /// Waits for READY=1, looking with `alive` whether the sender is still there.
    pub fn wait_ready(&mut self, within: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while !self.seen.lines().any(|l| l == "READY=1") {
            alive()?;
            if start.elapsed() >= within {
                bail!(
                    "no READY=1 within {:.1} s; received: {:?}",
                    within.as_secs_f64(),
                    self.seen
                );
            }
            self.receive(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Takes what is there, waiting for at most `wait` for the first message.
    fn receive(&mut self, wait: Duration) -> Result<()> {
        let mut buffer = [0; 4096];
        self.socket.set_read_timeout(Some(wait))?;
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            self.seen.push('\n');
            self.socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        }
        Ok(())
    }
}
