//! How long to wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// First delay, and three seconds at the most: a node is back within 5 s of etcd's return, with the attempt itself and a
/// busy machine allowed for. Half of each delay is random, so that thousands of nodes do not return as one.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(3);

/// Doubling delays, each shortened by up to a half at random.
#[derive(Debug)]
pub(crate) struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { ceiling: FIRST }
    }

    pub(crate) fn reset(&mut self) {
        self.ceiling = FIRST;
    }

    /// The next delay: between half of the current ceiling and the whole. `random` is any number.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let half = self.ceiling / 2;
        let parts = u32::try_from(random % 1001).unwrap_or(0);
        self.ceiling = (self.ceiling * 2).min(LONGEST);
        half + half * parts / 1000
    }
}

/// A random number without a crate for it: the keys of the standard hasher are random.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_three_seconds_and_stays_within_half() {
        for random in [0, 1, 500, 1000, u64::MAX] {
            let mut backoff = Backoff::new();
            let delays: Vec<Duration> = (0..12).map(|_| backoff.next(random)).collect();
            assert!(delays[0] >= FIRST / 2 && delays[0] <= FIRST, "{delays:?}");
            assert!(delays[11] >= LONGEST / 2 && delays[11] <= LONGEST, "{delays:?}");
            backoff.reset();
            assert!(backoff.next(random) <= FIRST);
        }
    }
}
