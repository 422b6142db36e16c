//! The last verified state on disk, so that a host that boots while etcd is away has connectivity.
//!
//! One file, replaced in one step: a line with the format's number and a checksum, then JSON. A file of another format, of
//! another node or network prefix, or with one bit changed, is no cache at all.

mod file;
mod writer;

use std::time::Duration;

use flannel_lease::{Holding, Peer};
use flannel_model::{LeaseKey, LeaseValue, NodeId};
use flannel_store::Position;
use serde::{Deserialize, Serialize};

use crate::clock::{boot_id, since_boot, wall_seconds};
pub use file::{FILE, load};
pub use writer::CacheWriter;

/// What the file holds. Everything in it is checked again when it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// `--etcd-prefix`.
    pub prefix: String,
    /// The network config as it stood in etcd.
    pub config: String,
    node: Option<String>,
    own: Option<OwnLease>,
    cluster: u64,
    term: u64,
    revision: i64,
    peers: Vec<CachedPeer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OwnLease {
    key: String,
    value: String,
    lease: i64,
    modified: i64,
    validity: Validity,
}

/// Until when etcd has confirmed the lease, by both clocks: within one boot the boot-time clock counts, across boots there is
/// only the wall clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Validity {
    Reservation,
    Until {
        boot: String,
        since_boot_millis: u64,
        written: u64,
        wall: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CachedPeer {
    key: String,
    value: String,
    created: i64,
    modified: i64,
}

/// What there is to remember.
#[derive(Debug, Clone)]
pub struct Remember<'a> {
    /// `--etcd-prefix`.
    pub prefix: &'a str,
    /// The network config's text.
    pub config: &'a str,
    /// This node.
    pub node: Option<NodeId>,
    /// Its lease, and what it published there.
    pub own: Option<(Holding, LeaseValue)>,
    /// Where etcd stood.
    pub position: Position,
}

impl Cache {
    /// From the state of this moment.
    pub fn new<'a>(state: &Remember<'_>, peers: impl Iterator<Item = &'a Peer>) -> Self {
        let own = state.own.as_ref().map(|(held, value)| OwnLease {
            key: held.key.to_string(),
            value: value.to_json(),
            lease: held.lease,
            modified: held.modified,
            validity: validity(held),
        });
        let cached = |peer: &Peer| CachedPeer {
            key: peer.key.to_string(),
            value: peer.value.to_json(),
            created: peer.revisions.created,
            modified: peer.revisions.modified,
        };
        Self {
            prefix: state.prefix.to_owned(),
            config: state.config.to_owned(),
            node: state.node.map(|id| id.to_string()),
            own,
            cluster: state.position.cluster,
            term: state.position.term,
            revision: state.position.revision,
            peers: peers.map(cached).collect(),
        }
    }

    /// Whether this node wrote it, for this prefix.
    pub fn is_of(&self, prefix: &str, node: Option<NodeId>) -> bool {
        self.prefix == prefix && self.node == node.map(|id| id.to_string())
    }

    /// Where etcd stood.
    pub fn position(&self) -> Position {
        Position {
            cluster: self.cluster,
            term: self.term,
            revision: self.revision,
        }
    }

    /// The lease that this node held, with what it published. Its validity never exceeds `ttl` from now on.
    pub fn own(&self, ttl: Duration) -> Option<(Holding, LeaseValue)> {
        let own = self.own.as_ref()?;
        let key: LeaseKey = own.key.parse().ok()?;
        let value = LeaseValue::parse(own.value.as_bytes()).ok()?;
        let valid_until = match &own.validity {
            Validity::Reservation => None,
            Validity::Until {
                boot,
                since_boot_millis,
                written,
                wall,
            } => {
                let now = since_boot();
                let until = match boot_id().as_deref() == Some(boot) {
                    true => Duration::from_millis(*since_boot_millis),
                    false => now + across_boots(*written, *wall, wall_seconds()),
                };
                Some(until.min(now + ttl))
            }
        };
        let holding = Holding {
            key,
            lease: own.lease,
            modified: own.modified,
            valid_until,
        };
        Some((holding, value))
    }

    /// The peers.
    pub fn peers(&self) -> impl Iterator<Item = Peer> {
        self.peers.iter().filter_map(|cached| {
            Some(Peer {
                key: cached.key.parse().ok()?,
                value: LeaseValue::parse(cached.value.as_bytes()).ok()?,
                revisions: flannel_lease::Revisions {
                    created: cached.created,
                    modified: cached.modified,
                },
            })
        })
    }
}

fn validity(held: &Holding) -> Validity {
    let Some(until) = held.valid_until else {
        return Validity::Reservation;
    };
    let left = until.saturating_sub(since_boot());
    let written = wall_seconds();
    Validity::Until {
        boot: boot_id().unwrap_or_default(),
        since_boot_millis: u64::try_from(until.as_millis()).unwrap_or(u64::MAX),
        written,
        wall: written.saturating_add(left.as_secs()),
    }
}

/// What is left of a validity by the wall clock. A clock that shows an earlier time than when the file was written is not
/// set yet, and says nothing: then nothing is left.
fn across_boots(written: u64, wall: u64, now: u64) -> Duration {
    match now >= written {
        true => Duration::from_secs(wall.saturating_sub(now)),
        false => Duration::ZERO,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use flannel_lease::Revisions;

    const TTL: Duration = Duration::from_secs(86_400);

    fn value(text: &str) -> LeaseValue {
        LeaseValue::parse(text.as_bytes()).unwrap()
    }

    pub(crate) fn sample() -> Cache {
        let holding = Holding {
            key: "10.5.1.0-24".parse().unwrap(),
            lease: 77,
            modified: 10,
            valid_until: Some(since_boot() + Duration::from_secs(1000)),
        };
        let peer = Peer {
            key: "10.5.2.0-24&fd00:5:0:2::-64".parse().unwrap(),
            value: value(
                r#"{"PublicIP":"192.168.50.12","PublicIPv6":"fd00:50::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#,
            ),
            revisions: Revisions {
                created: 5,
                modified: 6,
            },
        };
        let own = value(r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan"}"#);
        let state = Remember {
            prefix: "/net",
            config: r#"{"Network":"10.5.0.0/16"}"#,
            node: Some(NodeId::new(7)),
            own: Some((holding, own)),
            position: Position {
                cluster: 1,
                term: 2,
                revision: 30,
            },
        };
        Cache::new(&state, [peer].iter())
    }

    #[test]
    fn what_goes_in_comes_out() {
        let cache = sample();
        assert!(cache.is_of("/net", Some(NodeId::new(7))));
        assert!(!cache.is_of("/other", Some(NodeId::new(7))) && !cache.is_of("/net", Some(NodeId::new(8))));
        let (held, own) = cache.own(TTL).unwrap();
        assert_eq!(
            (held.key.to_string(), held.lease, held.modified),
            ("10.5.1.0-24".into(), 77, 10)
        );
        let left = held.valid_until.unwrap() - since_boot();
        assert!(
            left > Duration::from_secs(990) && left <= Duration::from_secs(1000),
            "{left:?}"
        );
        assert_eq!(own.public_ip.octets()[3], 11);
        let peers: Vec<Peer> = cache.peers().collect();
        assert_eq!(peers[0].key.to_string(), "10.5.2.0-24&fd00:5:0:2::-64");
        assert!(peers[0].value.to_json().contains("8a:55:6f:01:02:03"));
    }

    #[test]
    fn the_configured_lifetime_bounds_what_is_left() {
        let (held, _) = sample().own(Duration::from_secs(10)).unwrap();
        assert!(held.valid_until.unwrap() <= since_boot() + Duration::from_secs(10));
    }

    #[test]
    fn across_boots_the_wall_clock_counts_unless_it_cannot_be_right() {
        assert_eq!(across_boots(1_000, 5_000, 3_000).as_secs(), 2_000);
        assert_eq!(across_boots(1_000, 5_000, 9_000), Duration::ZERO, "over");
        assert_eq!(
            across_boots(1_000, 5_000, 999),
            Duration::ZERO,
            "the clock is not set"
        );
    }
}
