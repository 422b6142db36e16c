//! When a node's nf_tables were changed: the number of transactions that they have seen, asked again and again.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flannel_lab::Node;
use flannel_netlink::nftables::NftConn;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Time between two questions.
const GAP: Duration = Duration::from_micros(100);

/// Looks at a node until it is dropped.
pub struct Transactions {
    seen: Receiver<(Instant, u32)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Transactions {
    pub fn watch(node: &Node) -> Result<Self> {
        let name = format!("/run/netns/{}", node.name());
        let namespace = std::fs::File::open(&name).context(name)?;
        let (tell, seen) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            look(&tell, &stopped)
        });
        Ok(Self {
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// Forgets what happened so far.
    pub fn forget(&self) -> usize {
        self.seen.try_iter().count()
    }

    /// When the first transaction since the last look was seen.
    pub fn next(&self, within: Duration) -> Result<Instant> {
        match self.seen.recv_timeout(within) {
            Ok((when, _)) => Ok(when),
            Err(error) => bail!("no transaction within {within:?}: {error}"),
        }
    }

    /// When the last one was seen, once `quiet` passed without another; and how many changes of the number were seen.
    pub fn last(&self, within: Duration, quiet: Duration) -> Result<(Instant, usize)> {
        let mut last = self.next(within)?;
        let mut count = 1;
        while let Ok((when, _)) = self.seen.recv_timeout(quiet) {
            last = when;
            count += 1;
        }
        Ok((last, count))
    }
}

fn look(tell: &Sender<(Instant, u32)>, stop: &AtomicBool) -> Result<()> {
    let mut conn = NftConn::open()?;
    let mut known = conn.generation()?;
    while !stop.load(Ordering::Relaxed) {
        let now = conn.generation()?;
        if now != known {
            known = now;
            if tell.send((Instant::now(), now)).is_err() {
                break;
            }
        }
        std::thread::sleep(GAP);
    }
    Ok(())
}

impl Drop for Transactions {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
