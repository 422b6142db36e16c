//! Waiting for packets: a short while awake when the last waits were short, asleep otherwise.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

/// A wait shorter than this would have been better spent awake: going to sleep and being woken costs about as much.
const SHORT: Duration = Duration::from_micros(50);
/// Short waits in a row before the first one awake.
const ENOUGH: u32 = 4;

/// Decides how to wait, from how long it took the last times.
#[derive(Debug, Default)]
pub struct Spin {
    short_waits: u32,
}

impl Spin {
    /// Waits until one of `sources` is ready.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, sources: &mut [PollFd<'_>]) -> io::Result<()> {
        let start = Instant::now();
        if self.short_waits >= ENOUGH {
            while start.elapsed() < SHORT {
                if ready(sources, Some(&Timespec::default()))? {
                    return Ok(());
                }
                // Whoever is to send the next packet may need this processor.
                rustix::thread::sched_yield();
            }
        }
        while !ready(sources, None)? {}
        self.short_waits = if start.elapsed() < SHORT {
            self.short_waits.saturating_add(1).min(ENOUGH)
        } else {
            0
        };
        Ok(())
    }
}

fn ready(sources: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> io::Result<bool> {
    match poll(sources, timeout) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
