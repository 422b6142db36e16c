//! What a node's kernel tells of changes, with the moment at which it did.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flannel_lab::Node;
use flannel_netlink::monitor::{Change, watch_changes};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A node's changes. The thread that hears them ends with the suite.
pub struct Changes(Receiver<(Instant, Change)>);

impl Changes {
    /// From now on.
    pub fn watch(node: &Node) -> Result<Self> {
        let name = format!("/run/netns/{}", node.name());
        let namespace = std::fs::File::open(&name).context(name)?;
        let (tell, heard) = channel();
        let (ready, started) = channel();
        std::thread::spawn(move || -> Result<()> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (driver, mut changes) = watch_changes()?;
                tokio::spawn(driver);
                ready.send(()).ok();
                while let Some(change) = changes.recv().await {
                    if tell.send((Instant::now(), change)).is_err() {
                        break;
                    }
                }
                Ok(())
            })
        });
        started
            .recv()
            .context("the kernel's changes cannot be followed")?;
        Ok(Self(heard))
    }

    /// Passes over what came so far.
    pub fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }

    /// When the next change came that is wanted.
    pub fn next(&self, within: Duration, wanted: impl Fn(&Change) -> bool) -> Result<Instant> {
        let end = Instant::now() + within;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match self.0.recv_timeout(left) {
                Ok((when, change)) if wanted(&change) => return Ok(when),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        bail!("what was waited for did not come within {within:?}")
    }
}
