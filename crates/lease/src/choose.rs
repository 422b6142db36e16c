//! Which subnets a node takes, given everybody's records.

mod fresh;
mod others;
mod taken;
#[cfg(test)]
mod tests;

use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey, LeaseValue};

use crate::{Identity, Record, Revisions, UsedBefore};
use fresh::fresh;
use others::Others;

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
    Create {
        /// Its key.
        key: LeaseKey,
        /// Whether nobody can have a part of them but under this very key. Otherwise who created it has to look whether somebody
        /// did so a moment before.
        alone: bool,
    },
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
    /// An older record of another node has a part of it.
    Younger,
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
    /// then a reservation, then the first in key order. Keys that differ may share addresses all the same, one half of two or a
    /// subnet of another length: of two such records the older one counts, everywhere.
    pub fn choose(&self, records: &[Record], random: u64) -> Choice {
        let (mut mine, mut others) = (Vec::new(), Others::default());
        for record in records {
            match self.own(record) {
                Some(own) => mine.push(own),
                None => others.add(record, self.pools),
            }
        }
        mine.sort_by_key(|own| (!self.earlier.is(&own.key), own.lease != 0, own.key.to_string()));
        let elder = |own: &Own| others.elder(&own.key, own.revisions.created);
        if let Earlier::Holding(held) = &self.earlier
            && let Some(by) = mine.iter().find(|own| own.key == *held).and_then(elder)
        {
            return Choice::Taken { by };
        }
        if let Some(useless) = mine
            .iter()
            .find_map(|own| self.useless(own, elder(own).is_some()))
        {
            return useless;
        }
        // What has an elder and is left is what an operator reserved.
        mine.retain(|own| elder(own).is_none());
        if let Earlier::Holding(held) = &self.earlier
            && self.fits(held)
        {
            return match mine.into_iter().find(|own| own.key == *held) {
                Some(own) => own.adopt(),
                None => match others.holder(held) {
                    Some(by) => Choice::Taken { by },
                    None => claim(*held, &others),
                },
            };
        }
        match mine.into_iter().find(|own| self.fits(&own.key)) {
            Some(own) => own.adopt(),
            None => self.create(&others, random),
        }
    }

    fn own(&self, record: &Record) -> Option<Own> {
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

    fn useless(&self, own: &Own, has_elder: bool) -> Option<Choice> {
        let surplus = match self.earlier {
            Earlier::Holding(held) => own.surely && own.key != held && self.fits(&held),
            Earlier::Previous(_) | Earlier::None => false,
        };
        let why = match (self.fits(&own.key), surplus) {
            // What an operator reserved is the operator's to delete.
            _ if own.lease == 0 || own.value.reserved => return None,
            (false, _) => Useless::NotOffered,
            (true, true) => Useless::Surplus,
            (true, false) if has_elder => Useless::Younger,
            (true, false) => return None,
        };
        Some(Choice::Drop {
            key: own.key,
            modified: own.revisions.modified,
            why,
        })
    }

    /// New subnets for every family; the earlier ones as far as they can be had.
    fn create(&self, others: &Others<'_>, random: u64) -> Choice {
        let taken = others.taken(self.pools);
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
        Families::new(ipv4.flatten(), ipv6.flatten())
            .map_or(Choice::Exhausted, |subnets| claim(LeaseKey::new(subnets), others))
    }
}

fn claim(key: LeaseKey, others: &Others<'_>) -> Choice {
    Choice::Create {
        key,
        alone: others.leave_alone(&key),
    }
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
