//! When a lease is renewed and when something that failed is tried again.

use std::time::Duration;

/// Longest time between two renewals. A node that is cut off then still owns its subnet for all but this of the TTL:
/// 23 h 55 min of flannel's 24 h, where flannel itself has 60 minutes in the worst case.
const LONGEST_RENEWAL: Duration = Duration::from_secs(300);

/// First and longest wait before an operation that failed is tried again: the lease is looked after within 5 s of the
/// store's return.
pub(crate) const FAILED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// First and longest wait while the pool is exhausted; a subnet that becomes free is news and ends it earlier.
pub(crate) const EXHAUSTED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// First and longest wait for the owner of a record that a restored store brought back.
pub(crate) const CONTESTED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Time from one renewal to the next: a few minutes, a third of a short TTL, and never later than `margin` before the end.
/// A tenth of it is random, so that nodes that started together do not renew together.
pub(crate) fn renewal(ttl: Duration, margin: Duration, random: u64) -> Duration {
    // A margin as long as the whole TTL says nothing; the third does.
    let before_end = ttl.checked_sub(margin).filter(|rest| !rest.is_zero());
    let interval = LONGEST_RENEWAL
        .min(ttl / 3)
        .min(before_end.unwrap_or(ttl))
        .max(Duration::from_secs(1));
    interval - jitter(interval / 10, random)
}

/// The wait after `failures` failures in a row: it doubles, and half of it is random, so that nodes that failed together
/// do not return together.
pub(crate) fn pause((first, longest): (Duration, Duration), failures: u32, random: u64) -> Duration {
    let full = first.saturating_mul(1 << failures.min(16)).min(longest);
    full / 2 + jitter(full / 2, random)
}

/// A part of `span`.
pub(crate) fn jitter(span: Duration, random: u64) -> Duration {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(random % millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_cut_off_node_owns_its_subnet_for_more_than_23_h_50_min() {
        for random in [0, 1, 29_999, u64::MAX] {
            let interval = renewal(DAY, HOUR, random);
            assert!(interval <= secs(300) && interval >= secs(270), "{interval:?}");
            assert!(DAY - interval >= 23 * HOUR + 50 * secs(60));
        }
    }

    #[test]
    fn a_short_ttl_or_a_wide_margin_renews_earlier() {
        assert_eq!(renewal(secs(9), secs(3), 0), secs(3));
        assert_eq!(renewal(HOUR + secs(60), HOUR, 0), secs(60));
        assert_eq!(renewal(secs(1), HOUR, 0), secs(1));
        assert_eq!(renewal(secs(600), HOUR, 0), secs(200));
    }

    #[test]
    fn pauses_double_up_to_their_longest() {
        for random in [0, 7, u64::MAX] {
            for failures in 0..40 {
                let pause = pause(FAILED, failures, random);
                assert!(
                    pause >= FAILED.0 / 2 && pause <= FAILED.1,
                    "{failures}: {pause:?}"
                );
            }
            assert!(pause(FAILED, 0, random) <= FAILED.0);
        }
    }
}
