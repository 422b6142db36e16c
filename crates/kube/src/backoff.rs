//! How long to wait before the API server is asked again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use flannel_model::Backoff;

/// First delay and longest one: those of client-go's reflector (tools/cache/reflector.go).
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// A server that asks for more patience than this is asked again all the same.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

pub(crate) fn backoff() -> Backoff {
    Backoff::new(FIRST, LONGEST)
}

/// The delay `own`, but not less than the server asked for.
pub(crate) fn heeding(own: Duration, retry_after: Option<Duration>) -> Duration {
    own.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
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
        let mut backoff = backoff();
        let delays: Vec<Duration> = (0..10).map(|i| heeding(backoff.next(i * 333), None)).collect();
        assert!(delays[0] <= FIRST && delays[9] >= LONGEST / 2, "{delays:?}");
        backoff.reset();
        assert_eq!(
            heeding(backoff.next(0), Some(Duration::from_secs(7))),
            Duration::from_secs(7)
        );
        assert_eq!(
            heeding(backoff.next(0), Some(Duration::from_secs(86_400))),
            LONGEST_RETRY_AFTER
        );
    }
}
