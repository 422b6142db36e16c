//! Which subnets were in use before, so that a fresh one is preferred to one whose pods others may still know.

use std::collections::HashMap;
use std::time::Duration;

use flannel_model::{Ipv4Subnet, Ipv6Subnet, LeaseKey, Subnet};

/// A subnet that somebody held for the last time this long ago is not given out while there is another.
pub const HOLD_DOWN: Duration = Duration::from_secs(86_400);

/// How long ago a subnet was known to be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastUse {
    /// The lease that it belonged to.
    pub key: LeaseKey,
    /// Time since then.
    pub idle: Duration,
}

/// The subnets of both families that were ever in use, as far as that was written down.
#[derive(Debug, Clone, Default)]
pub struct UsedBefore {
    ipv4: HashMap<Ipv4Subnet, Duration>,
    ipv6: HashMap<Ipv6Subnet, Duration>,
}

impl UsedBefore {
    /// From what the store has; of several notes about one subnet the latest counts.
    pub fn new(notes: impl IntoIterator<Item = LastUse>) -> Self {
        let mut used = Self::default();
        for LastUse { key, idle } in notes {
            key.ipv4().into_iter().for_each(|s| note(&mut used.ipv4, s, idle));
            key.ipv6().into_iter().for_each(|s| note(&mut used.ipv6, s, idle));
        }
        used
    }

    pub(crate) fn ipv4(&self) -> &HashMap<Ipv4Subnet, Duration> {
        &self.ipv4
    }

    pub(crate) fn ipv6(&self) -> &HashMap<Ipv6Subnet, Duration> {
        &self.ipv6
    }
}

fn note<S: Subnet>(used: &mut HashMap<S, Duration>, subnet: S, idle: Duration) {
    let known = used.entry(subnet).or_insert(idle);
    *known = idle.min(*known);
}
