//! How long to wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// First delay and longest one: those of client-go's reflector (tools/cache/reflector.go).
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// A server that asks for more patience than this is asked again all the same.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

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

    /// The next delay: between half of the ceiling and the whole, and not less than the server asked for. `random` is any
    /// number.
    pub(crate) fn next(&mut self, random: u64, retry_after: Option<Duration>) -> Duration {
        let half = self.ceiling / 2;
        let parts = u32::try_from(random % 1001).unwrap_or(0);
        self.ceiling = (self.ceiling * 2).min(LONGEST);
        let own = half + half * parts / 1000;
        own.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
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
    fn grows_to_thirty_seconds_and_heeds_the_server() {
        let mut backoff = Backoff::new();
        let delays: Vec<Duration> = (0..10).map(|i| backoff.next(i * 333, None)).collect();
        assert!(delays[0] <= FIRST && delays[9] >= LONGEST / 2, "{delays:?}");
        backoff.reset();
        assert_eq!(
            backoff.next(0, Some(Duration::from_secs(7))),
            Duration::from_secs(7)
        );
        assert_eq!(
            backoff.next(0, Some(Duration::from_secs(86_400))),
            LONGEST_RETRY_AFTER
        );
    }
}
