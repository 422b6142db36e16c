//! How long to wait before etcd is asked again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use flannel_model::Backoff;

/// First delay, and three seconds at the most: a node is back within 5 s of etcd's return, with the attempt itself and a
/// busy machine allowed for.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(3);

pub(crate) fn backoff() -> Backoff {
    Backoff::new(FIRST, LONGEST)
}

/// A random number without a crate for it: the keys of the standard hasher are random.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
