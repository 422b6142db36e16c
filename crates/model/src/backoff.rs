//! How long to wait before the next attempt at a server.

use std::time::Duration;

/// Doubling delays, each shortened by up to a half at random, so that thousands of nodes do not return as one.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Delays from `first` on, of `longest` at the most.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            ceiling: first,
        }
    }

    /// The next delay is one of the first again.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }

    /// The next delay: between half of the current ceiling and the whole. `random` is any number.
    pub fn next(&mut self, random: u64) -> Duration {
        let half = self.ceiling / 2;
        let parts = u32::try_from(random % 1001).unwrap_or(0);
        self.ceiling = (self.ceiling * 2).min(self.longest);
        half + half * parts / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(3);

    #[test]
    fn grows_to_three_seconds_and_stays_within_half() {
        for random in [0, 1, 500, 1000, u64::MAX] {
            let mut backoff = Backoff::new(FIRST, LONGEST);
            let delays: Vec<Duration> = (0..12).map(|_| backoff.next(random)).collect();
            assert!(delays[0] >= FIRST / 2 && delays[0] <= FIRST, "{delays:?}");
            assert!(delays[11] >= LONGEST / 2 && delays[11] <= LONGEST, "{delays:?}");
            backoff.reset();
            assert!(backoff.next(random) <= FIRST);
        }
    }
}
