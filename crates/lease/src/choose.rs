//! Which subnets a node takes, given everybody's records.

mod fresh;
mod taken;
#[cfg(test)]
mod tests;

use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey, LeaseValue, Subnet};

use crate::{Identity, Record, Revisions, UsedBefore};
use fresh::fresh;
use taken::Taken;

/// What to do about an own subnet.
#[derive(Debug, Clone)]
pub enum Choice {
    /// A lease of ours is there and fits: go on with it.
    Adopt {
        /// Its key.
        key: LeaseKey,
        /// What we published.
        value: Box<LeaseValue>,
        /// Its revisions, to fence the next write.
        revisions: Revisions,
        /// The etcd lease below it; 0 for a reservation.
        lease: i64,
    },
    /// A lease of ours is there that is of no use: delete it, then choose again.
    Drop {
        /// Its key.
        key: LeaseKey,
        /// Revision of its last write.
        modified: i64,
        /// Why.
        why: Useless,
    },
    /// What this node holds belongs to somebody else now.
    Taken {
        /// Who has it.
        by: Identity,
    },
    /// Create a lease for these free subnets.
    Create(LeaseKey),
    /// A fresh subnet is needed; say which were in use before, then choose again.
    ReadUsed,
    /// Every subnet of a pool is taken.
    Exhausted,
}

/// Why an own lease is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Useless {
    /// The network config does not offer it any more.
    NotOffered,
    /// This node holds another one: an operation that was given up had its effect after all, or an old backup brought it back.
    Surplus,
}

/// The subnet that a node would like to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Earlier {
    /// It holds it, or did so last: it goes on with it and with no other.
    Holding(LeaseKey),
    /// It had it in an earlier run, says subnet.env.
    Previous(LeaseKey),
    /// It had none.
    None,
}

impl Earlier {
    fn key(&self) -> Option<&LeaseKey> {
        match self {
            Self::Holding(key) | Self::Previous(key) => Some(key),
            Self::None => None,
        }
    }

    fn is(&self, key: &LeaseKey) -> bool {
        self.key() == Some(key)
    }
}

/// What a node knows when it chooses.
#[derive(Debug, Clone, Copy)]
pub struct Chooser<'a> {
    /// Of each family one subnet is taken.
    pub pools: &'a Families<Ipv4Pool, Ipv6Pool>,
    /// Who it is.
    pub identity: &'a Identity,
    /// What it had.
    pub earlier: Earlier,
    /// Which subnets were in use before; `None` when nobody asked yet.
    pub used: Option<&'a UsedBefore>,
}

impl Chooser<'_> {
    /// Chooses as flannel does: the lease of this node, else the previous subnet if it is free, else a free one near the
    /// beginning of the pool. `random` picks among the free ones. Of several leases of this node the earlier one counts,
    /// then a reservation, then the first in key order.
    pub fn choose(&self, records: &[Record], random: u64) -> Choice {
        let mut mine = self.own_leases(records);
        mine.sort_by_key(|own| (!self.earlier.is(&own.key), own.lease != 0, own.key.to_string()));
        if let Some(useless) = mine.iter().find_map(|own| self.useless(own)) {
            return useless;
        }
        let taken = Taken::new(records, self.pools);
        if let Earlier::Holding(held) = &self.earlier
            && self.fits(held)
        {
            return match mine.into_iter().find(|own| own.key == *held) {
                Some(own) => own.adopt(),
                None if taken.is_free(held) => Choice::Create(*held),
                None => match owner_of(records, held) {
                    Some(by) => Choice::Taken { by },
                    None => self.create(&taken, random),
                },
            };
        }
        match mine.into_iter().find(|own| self.fits(&own.key)) {
            Some(own) => own.adopt(),
            None => self.create(&taken, random),
        }
    }

    fn own_leases(&self, records: &[Record]) -> Vec<Own> {
        let own = |record: &Record| {
            let key = record.key.parse().ok()?;
            let value = LeaseValue::parse(&record.value).ok()?;
            let owner = Identity::of(&value);
            self.identity.is(&owner).then(|| Own {
                key,
                surely: self.identity.is_surely(&owner),
                value,
                revisions: record.revisions,
                lease: record.lease,
            })
        };
        records.iter().filter_map(own).collect()
    }

    /// Whether the config offers it, in exactly the families that are on.
    fn fits(&self, key: &LeaseKey) -> bool {
        key.subnets().same_families(self.pools)
            && key
                .ipv4()
                .is_none_or(|s| self.pools.ipv4().is_some_and(|pool| pool.offers(&s)))
            && key
                .ipv6()
                .is_none_or(|s| self.pools.ipv6().is_some_and(|pool| pool.offers(&s)))
    }

    fn useless(&self, own: &Own) -> Option<Choice> {
        let surplus = match self.earlier {
            Earlier::Holding(held) => own.surely && own.key != held && self.fits(&held),
            Earlier::Previous(_) | Earlier::None => false,
        };
        let why = match (self.fits(&own.key), surplus) {
            // What an operator reserved is the operator's to delete.
            _ if own.lease == 0 || own.value.reserved => return None,
            (false, _) => Useless::NotOffered,
            (true, true) => Useless::Surplus,
            (true, false) => return None,
        };
        Some(Choice::Drop {
            key: own.key,
            modified: own.revisions.modified,
            why,
        })
    }

    /// New subnets for every family; the earlier ones as far as they can be had.
    fn create(&self, taken: &Taken, random: u64) -> Choice {
        let earlier = self.earlier.key();
        let ipv4 = self.pools.ipv4().map(|pool| {
            let earlier = earlier.and_then(LeaseKey::ipv4);
            earlier.filter(|s| pool.offers(s) && taken.ipv4.is_free(s))
        });
        let ipv6 = self.pools.ipv6().map(|pool| {
            let earlier = earlier.and_then(LeaseKey::ipv6);
            earlier.filter(|s| pool.offers(s) && taken.ipv6.is_free(s))
        });
        let nothing = UsedBefore::default();
        let complete = ipv4 != Some(None) && ipv6 != Some(None);
        let used = match self.used {
            Some(used) => used,
            None if complete => &nothing,
            None => return Choice::ReadUsed,
        };
        let ipv4 = self.pools.ipv4().map(|pool| {
            let earlier = ipv4.flatten();
            earlier.or_else(|| fresh(pool, &taken.ipv4, used.ipv4(), random))
        });
        let ipv6 = self.pools.ipv6().map(|pool| {
            let earlier = ipv6.flatten();
            earlier.or_else(|| fresh(pool, &taken.ipv6, used.ipv6(), random >> 32))
        });
        if ipv4 == Some(None) || ipv6 == Some(None) {
            return Choice::Exhausted;
        }
        Families::new(ipv4.flatten(), ipv6.flatten()).map_or(Choice::Exhausted, |subnets| {
            Choice::Create(LeaseKey::new(subnets))
        })
    }
}

/// Who has a part of this key's subnets; somebody unknown when the value cannot be read.
fn owner_of(records: &[Record], held: &LeaseKey) -> Option<Identity> {
    let record = records.iter().find(|record| {
        let key: Option<LeaseKey> = record.key.parse().ok();
        key.is_some_and(|key| overlaps(key.ipv4(), held.ipv4()) || overlaps(key.ipv6(), held.ipv6()))
    })?;
    let unknown = Identity {
        public_ip: std::net::Ipv4Addr::UNSPECIFIED,
        public_ipv6: None,
        node: None,
    };
    Some(LeaseValue::parse(&record.value).map_or(unknown, |value| Identity::of(&value)))
}

struct Own {
    key: LeaseKey,
    surely: bool,
    value: LeaseValue,
    revisions: Revisions,
    lease: i64,
}

impl Own {
    fn adopt(self) -> Choice {
        Choice::Adopt {
            key: self.key,
            // A reservation stays one also where a node of flannel turned it into an ordinary lease.
            lease: if self.value.reserved { 0 } else { self.lease },
            value: Box::new(self.value),
            revisions: self.revisions,
        }
    }
}

fn overlaps<S: Subnet>(one: Option<S>, other: Option<S>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one.overlaps(&other))
}
