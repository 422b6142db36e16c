//! What outlives this run: the verified state is kept on disk, and used when etcd is away at the start.

use std::collections::BTreeSet;
use std::sync::Arc;

use flannel_lease::{Holding, Peer, PeerView, Standing};
use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey, LeaseValue, NodeId};

use super::Node;
use crate::cache;
use crate::cache::{Cache, Remember};
use crate::config_wait::{Usable, check};
use crate::flags::Options;

/// What an earlier run left.
#[derive(Debug)]
pub struct Earlier {
    cache: Cache,
    /// The config that it ran with.
    pub usable: Usable,
}

impl Earlier {
    /// Reads it; `None` when there is none that this node can use.
    pub fn load(options: &Options, node: Option<NodeId>) -> Option<Self> {
        let cache = cache::load(&options.state_dir)?;
        if !cache.is_of(&options.prefix.to_string(), node) {
            tracing::info!(
                "the peers of an earlier run belong to another node or --etcd-prefix and are not used"
            );
            return None;
        }
        match check(cache.config.as_bytes(), options.ipv6_only) {
            Ok(usable) => Some(Self { cache, usable }),
            Err(errors) => {
                tracing::warn!(%errors, "the peers of an earlier run are not used: its network config cannot be");
                None
            }
        }
    }

    /// The state, for a node that runs with these pools; a network that was cut anew since makes it worthless.
    pub fn for_pools(self, pools: &Families<Ipv4Pool, Ipv6Pool>) -> Option<Cache> {
        (self.usable.pools == *pools).then_some(self.cache)
    }
}

/// The lease that an earlier run held, if the network still offers it, and what it published. It is no claim: whatever is
/// written for it is fenced by what etcd says then.
pub fn own_lease(cache: &Cache, options: &Options, usable: &Usable) -> Option<(Holding, LeaseValue)> {
    let (held, value) = cache.own(options.lease_ttl)?;
    let ipv4 = held
        .key
        .ipv4()
        .is_none_or(|subnet| usable.pools.ipv4().is_some_and(|pool| pool.offers(&subnet)));
    let ipv6 = held
        .key
        .ipv6()
        .is_none_or(|subnet| usable.pools.ipv6().is_some_and(|pool| pool.offers(&subnet)));
    (ipv4 && ipv6 && held.key.subnets().same_families(&usable.pools)).then_some((held, value))
}

impl Node<'_> {
    /// What makes the file of the state of this moment: with thousands of peers that takes longer than the loop may wait. Only peers that
    /// passed every check are kept, and nothing before etcd has listed them and confirmed the own lease.
    pub(super) fn cache(&self) -> Option<impl FnOnce() -> Cache + Send + use<>> {
        let position = self.feed.position().filter(|_| self.feed.is_synced())?;
        let status = self.lease.borrow().clone()?;
        // Until it is renewed for the first time, nobody knows how long a lease lives.
        let held = status.held.filter(|_| status.standing == Standing::Confirmed)?;
        let published = status.published.as_deref()?;
        let own = (held, LeaseValue::parse(published.as_bytes()).ok()?);
        let peers = match &self.known {
            Some(known) => used(&known.view, &known.useless),
            None => {
                let (view, worked) = self.view(&status, held.key)?;
                let keys = worked.useless.iter().filter_map(|(key, _)| key.parse().ok());
                used(&view, &keys.collect())
            }
        };
        let (prefix, config) = (self.options.prefix.to_string(), self.usable.text.clone());
        let node = self.identity.node;
        Some(move || {
            let state = Remember {
                prefix: &prefix,
                config: &config,
                node,
                own: Some(own),
                position,
            };
            Cache::new(&state, peers.iter().map(Arc::as_ref))
        })
    }
}

/// The peers without those that are of no use.
fn used(view: &PeerView, useless: &BTreeSet<LeaseKey>) -> Vec<Arc<Peer>> {
    let used = view.peers.values().filter(|peer| !useless.contains(&peer.key));
    used.cloned().collect()
}
