//! Waiting for packets: a short while awake when the last waits were short and little was moved between them, asleep otherwise.
//!
//! Who waits awake yields its processor meanwhile, and pays for that: since Linux 6.18 a yield gives away what is left of the time slice
//! (kernel/sched/fair.c yield_task_fair). Where requests and answers travel nobody else wants the slice. Under bulk traffic the ends
//! want the processor in every gap, and have it for milliseconds while packets queue up here.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

/// A wait shorter than this would have been better spent awake: going to sleep and being woken costs about as much.
const SHORT: Duration = Duration::from_micros(50);
/// Bytes between two waits at the most for the second to be awake: about five full packets, or a batch of small ones.
const LIGHT: usize = 8 << 10;
/// Short waits in a row, with so little between them, before the first one awake. Asleep, an exchange of small packets takes longer than
/// [`SHORT`] more often than not, so that with many more it would hardly ever be awaited awake.
const ENOUGH: u32 = 4;

/// Decides how to wait, from how long it took the last times, and what came of it.
#[derive(Debug, Default)]
pub struct Spin {
    short_waits: u32,
}

impl Spin {
    /// Waits until one of `sources` is ready, after so many bytes were passed on since the last wait.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, sources: &mut [PollFd<'_>], moved: usize) -> io::Result<()> {
        self.begin(moved);
        let start = Instant::now();
        if self.is_awake() {
            while start.elapsed() < SHORT {
                if ready(sources, Some(&Timespec::default()))? {
                    return Ok(());
                }
                // Whoever is to send the next packet may need this processor.
                rustix::thread::sched_yield();
            }
        }
        while !ready(sources, None)? {}
        self.note(start.elapsed());
        Ok(())
    }

    fn begin(&mut self, moved: usize) {
        if moved > LIGHT {
            self.short_waits = 0;
        }
    }

    /// A wait asleep took that long.
    fn note(&mut self, took: Duration) {
        self.short_waits = if took < SHORT {
            self.short_waits.saturating_add(1).min(ENOUGH)
        } else {
            0
        };
    }

    fn is_awake(&self) -> bool {
        self.short_waits >= ENOUGH
    }
}

fn ready(sources: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> io::Result<bool> {
    match poll(sources, timeout) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it waits awake after as many short waits as it takes, the last one behind `moved` bytes.
    fn awake_behind(moved: usize) -> bool {
        let mut spin = Spin::default();
        for _ in 0..ENOUGH {
            assert!(!spin.is_awake());
            spin.begin(64);
            spin.note(Duration::from_micros(20));
        }
        spin.begin(moved);
        spin.is_awake()
    }

    #[test]
    fn requests_and_answers_are_awaited_awake_and_bulk_asleep() {
        assert!(awake_behind(84));
        assert!(awake_behind(2 * 32 * 92));
        assert!(!awake_behind(32 * 1472));
        assert!(!awake_behind(65_507));
    }

    #[test]
    fn a_long_wait_is_the_end_of_it() {
        let mut spin = Spin::default();
        for _ in 0..ENOUGH {
            spin.note(Duration::ZERO);
        }
        assert!(spin.is_awake());
        spin.note(SHORT);
        assert!(!spin.is_awake());
    }
}
