//! What other nodes have.

use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey, LeaseValue};

use super::taken::Taken;
use crate::overlap::{counted, only_as_one_key};
use crate::{Identity, Record};

/// The records of other nodes, as far as they can take something away. A record counts by its key, whatever its value: a lease that
/// we cannot read is still somebody's.
#[derive(Default)]
pub(super) struct Others<'a>(Vec<Other<'a>>);

struct Other<'a> {
    key: LeaseKey,
    /// What of it counts.
    counted: LeaseKey,
    record: &'a Record,
}

impl<'a> Others<'a> {
    pub(super) fn add(&mut self, record: &'a Record, pools: &Families<Ipv4Pool, Ipv6Pool>) {
        let other = |key: LeaseKey| {
            let counted = counted(&key, pools)?;
            Some(Other { key, counted, record })
        };
        self.0.extend(record.key.parse().ok().and_then(other));
    }

    /// What is not free.
    pub(super) fn taken(&self, pools: &Families<Ipv4Pool, Ipv6Pool>) -> Taken {
        Taken::new(self.0.iter().map(|other| &other.counted), pools)
    }

    /// Whether nobody can have a part of these subnets but under this very key.
    pub(super) fn leave_alone(&self, key: &LeaseKey) -> bool {
        only_as_one_key(key, self.0.iter().map(|other| &other.key))
    }

    /// Who has a part of these subnets.
    pub(super) fn holder(&self, key: &LeaseKey) -> Option<Identity> {
        self.who(key, |_| true)
    }

    /// Who had a part of this record's subnets before it.
    pub(super) fn elder(&self, key: &LeaseKey, created: i64) -> Option<Identity> {
        self.who(key, |record| record.revisions.created < created)
    }

    fn who(&self, key: &LeaseKey, which: impl Fn(&Record) -> bool) -> Option<Identity> {
        let who = |other: &&Other<'_>| which(other.record) && other.counted.overlaps(key);
        self.0.iter().find(who).map(|other| owner(other.record))
    }
}

/// Somebody unknown when the value cannot be read.
fn owner(record: &Record) -> Identity {
    let unknown = Identity {
        public_ip: std::net::Ipv4Addr::UNSPECIFIED,
        public_ipv6: None,
        node: None,
    };
    LeaseValue::parse(&record.value).map_or(unknown, |value| Identity::of(&value))
}
