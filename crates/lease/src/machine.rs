//! The life of a node's own lease as a state machine: events and the time go in, at most one operation comes out.
//!
//! The machine never waits. Its driver runs the operation and hands the answer back as an event; a new operation replaces
//! one that is still under way, which is safe because every write is fenced and every detour ends in a fresh list.

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_model::{Ipv4Pool, Ipv4Subnet, LeaseKey, LeaseValue};

use crate::{Choice, Record, choose};

/// Longest time between two renewals. A node that is cut off then still owns its subnet for all but this of the TTL.
const LONGEST_RENEWAL: Duration = Duration::from_secs(300);
/// First and longest wait before an operation that failed is tried again: the lease is looked after within 5 s of the
/// store's return.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// First and longest wait while the pool is exhausted.
const EXHAUSTED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// What the operator set.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Lifetime of the etcd lease; flannel's is 24 hours.
    pub ttl: Duration,
    /// The lease is renewed at the latest this long before it ends.
    pub renew_margin: Duration,
}

/// What a claim is fenced with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nobody has the key.
    Absent,
    /// Its last write is this revision.
    Modified(i64),
}

/// What the claimed key shall hang on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseTerms {
    /// A new etcd lease.
    Grant(Duration),
    /// The etcd lease that is there; 0 keeps a reservation permanent.
    Keep(i64),
}

/// What the driver shall do.
#[derive(Debug, Clone)]
pub enum Op {
    /// Read every record below `<prefix>/subnets/`.
    List,
    /// Write our value under the key if nobody wrote since. When it would write what `published` says already, it answers
    /// `Won` without a write.
    Claim {
        /// The key.
        key: LeaseKey,
        /// The fence.
        expected: Expected,
        /// Below which etcd lease.
        terms: LeaseTerms,
        /// What stands there from us.
        published: Option<LeaseValue>,
    },
    /// Delete a lease of ours if nobody wrote since.
    Drop {
        /// The key.
        key: LeaseKey,
        /// Revision of its last write.
        modified: i64,
    },
    /// Refresh the etcd lease.
    KeepAlive(i64),
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The key is ours.
    Won {
        /// The etcd lease below it; 0 for a reservation.
        lease: i64,
        /// Revision of its last write.
        modified: i64,
    },
    /// Somebody was faster.
    Lost,
}

/// A write to the key that we hold, as the watch saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPut {
    /// Address in the new value, if it can be read.
    pub public_ip: Option<Ipv4Addr>,
    /// The etcd lease below it.
    pub lease: i64,
    /// Its revision.
    pub modified: i64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Begin.
    Start,
    /// Answer to [`Op::List`].
    Listed(Vec<Record>),
    /// Answer to [`Op::Claim`].
    Claimed(ClaimOutcome),
    /// Answer to [`Op::Drop`], whether or not it was still there.
    Dropped,
    /// Answer to [`Op::KeepAlive`]: it lives for this long from now.
    KeptAlive(Duration),
    /// Answer to [`Op::KeepAlive`]: the etcd lease is gone.
    Expired,
    /// The operation under way failed; nothing is known of its effect.
    Failed,
    /// Our key was written.
    OwnPut(OwnPut),
    /// Our key was deleted, at this revision.
    OwnDeleted(i64),
    /// The time of [`LeaseMachine::wake_at`] has come.
    Timer,
}

/// A subnet that we hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Its key.
    pub key: LeaseKey,
    /// The etcd lease below it; 0 for a reservation.
    pub lease: i64,
    /// Revision of the last write that we know.
    pub modified: i64,
    /// When the store last confirmed it, as time since boot.
    pub confirmed: Duration,
}

/// What the machine is about, for status and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Situation {
    /// Looking for a subnet.
    Acquiring,
    /// Every subnet of the pool is taken; it keeps trying.
    Exhausted,
    /// It holds one.
    Held,
}

#[derive(Debug, Clone)]
enum State {
    Idle,
    Listing,
    Dropping,
    Claiming {
        key: LeaseKey,
    },
    Waiting {
        until: Duration,
        exhausted: bool,
    },
    Held {
        renew_at: Option<Duration>,
        renewing: bool,
    },
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct LeaseMachine {
    settings: Settings,
    pool: Ipv4Pool,
    public_ip: Ipv4Addr,
    previous: Option<Ipv4Subnet>,
    state: State,
    holding: Option<Holding>,
    failures: u32,
}

impl LeaseMachine {
    /// A machine that has not started. `previous` is the subnet of an earlier run, which it takes again if it can.
    pub fn new(
        settings: Settings,
        pool: Ipv4Pool,
        public_ip: Ipv4Addr,
        previous: Option<Ipv4Subnet>,
    ) -> Self {
        Self {
            settings,
            pool,
            public_ip,
            previous,
            state: State::Idle,
            holding: None,
            failures: 0,
        }
    }

    /// Takes one event at time `now` since boot. `random` breaks ties between nodes that start together.
    pub fn handle(&mut self, event: Event, now: Duration, random: u64) -> Option<Op> {
        match (event, &self.state) {
            (Event::Start, State::Idle) => self.list(),
            (Event::Listed(records), State::Listing) => self.listed(&records, now, random),
            (Event::Dropped, State::Dropping) => self.list(),
            (Event::Claimed(outcome), State::Claiming { key }) => {
                let key = *key;
                self.claimed(key, outcome, now, random)
            }
            (Event::KeptAlive(ttl), State::Held { .. }) => self.kept_alive(ttl, now),
            (Event::Expired, State::Held { .. }) => self.list(),
            (Event::OwnPut(put), State::Held { .. }) => self.own_put(put),
            (Event::OwnDeleted(revision), State::Held { .. }) => self.own_deleted(revision),
            (Event::Failed, state) => {
                let held = matches!(state, State::Held { .. });
                self.failed(held, now, random);
                None
            }
            (Event::Timer, State::Waiting { until, .. }) if *until <= now => self.list(),
            (
                Event::Timer,
                State::Held {
                    renew_at: Some(at),
                    renewing: false,
                },
            ) if *at <= now => self.renew(),
            // An answer to an operation that was replaced, or an early timer: what counts now is under way.
            (_, _) => None,
        }
    }

    /// When [`Event::Timer`] is due, as time since boot.
    pub fn wake_at(&self) -> Option<Duration> {
        match self.state {
            State::Waiting { until, .. } => Some(until),
            State::Held {
                renew_at,
                renewing: false,
            } => renew_at,
            State::Idle | State::Listing | State::Dropping | State::Claiming { .. } | State::Held { .. } => {
                None
            }
        }
    }

    /// What it is about.
    pub fn situation(&self) -> Situation {
        match self.state {
            State::Held { .. } => Situation::Held,
            State::Waiting { exhausted: true, .. } => Situation::Exhausted,
            State::Idle
            | State::Listing
            | State::Dropping
            | State::Claiming { .. }
            | State::Waiting { .. } => Situation::Acquiring,
        }
    }

    /// The subnet that this node has, or had last: it stays in use until another one is held.
    pub fn holding(&self) -> Option<&Holding> {
        self.holding.as_ref()
    }

    fn list(&mut self) -> Option<Op> {
        self.state = State::Listing;
        Some(Op::List)
    }

    fn listed(&mut self, records: &[Record], now: Duration, random: u64) -> Option<Op> {
        let previous = self.holding.and_then(|held| held.key.ipv4()).or(self.previous);
        match choose(records, &self.pool, self.public_ip, previous, random) {
            Choice::Adopt {
                key,
                value,
                revisions,
                lease,
            } => {
                self.state = State::Claiming { key };
                let expected = Expected::Modified(revisions.modified);
                Some(Op::Claim {
                    key,
                    expected,
                    terms: LeaseTerms::Keep(lease),
                    published: Some(value),
                })
            }
            Choice::Drop { key, modified } => {
                self.state = State::Dropping;
                Some(Op::Drop { key, modified })
            }
            Choice::Create(subnet) => {
                let key = LeaseKey::ipv4_only(subnet);
                self.state = State::Claiming { key };
                let terms = LeaseTerms::Grant(self.settings.ttl);
                Some(Op::Claim {
                    key,
                    expected: Expected::Absent,
                    terms,
                    published: None,
                })
            }
            Choice::Exhausted => {
                self.wait(EXHAUSTED, true, now, random);
                None
            }
        }
    }

    fn claimed(&mut self, key: LeaseKey, outcome: ClaimOutcome, now: Duration, random: u64) -> Option<Op> {
        match outcome {
            ClaimOutcome::Won { lease, modified } => {
                self.failures = 0;
                self.holding = Some(Holding {
                    key,
                    lease,
                    modified,
                    confirmed: now,
                });
                // An adopted lease may be about to end: it is refreshed at once.
                let renew_at = (lease != 0).then_some(now);
                self.state = State::Held {
                    renew_at,
                    renewing: false,
                };
                None
            }
            ClaimOutcome::Lost => {
                self.wait(BACKOFF, false, now, random);
                None
            }
        }
    }

    fn renew(&mut self) -> Option<Op> {
        let lease = self.holding.map(|held| held.lease)?;
        self.state = State::Held {
            renew_at: None,
            renewing: true,
        };
        Some(Op::KeepAlive(lease))
    }

    fn kept_alive(&mut self, ttl: Duration, now: Duration) -> Option<Op> {
        self.failures = 0;
        if let Some(held) = &mut self.holding {
            held.confirmed = now;
        }
        let before_end = ttl.saturating_sub(self.settings.renew_margin);
        let interval = LONGEST_RENEWAL
            .min(ttl / 3)
            .min(before_end)
            .max(Duration::from_secs(1));
        self.state = State::Held {
            renew_at: Some(now + interval),
            renewing: false,
        };
        None
    }

    fn own_put(&mut self, put: OwnPut) -> Option<Op> {
        let held = self.holding.as_mut()?;
        if put.modified <= held.modified {
            return None;
        }
        if put.public_ip != Some(self.public_ip) {
            return self.list();
        }
        held.modified = put.modified;
        held.lease = put.lease;
        None
    }

    fn own_deleted(&mut self, revision: i64) -> Option<Op> {
        let known = self.holding.map_or(i64::MAX, |held| held.modified);
        if revision > known { self.list() } else { None }
    }

    fn failed(&mut self, held: bool, now: Duration, random: u64) {
        if held {
            let renew_at = Some(now + self.pause(BACKOFF, random));
            self.state = State::Held {
                renew_at,
                renewing: false,
            };
        } else {
            self.wait(BACKOFF, false, now, random);
        }
    }

    fn wait(&mut self, range: (Duration, Duration), exhausted: bool, now: Duration, random: u64) {
        let until = now + self.pause(range, random);
        self.state = State::Waiting { until, exhausted };
    }

    /// Doubles with each failure in a row; half of it is jitter, so that nodes that failed together do not return together.
    fn pause(&mut self, (first, longest): (Duration, Duration), random: u64) -> Duration {
        let full = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        let jitter_ms = u64::try_from(full.as_millis() / 2).unwrap_or(0).max(1);
        full / 2 + Duration::from_millis(random % jitter_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Revisions;
    use flannel_model::NetworkConfig;

    const ME: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 11);
    const DAY: Duration = Duration::from_secs(86_400);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn machine(config: &str) -> LeaseMachine {
        let pool = *NetworkConfig::parse(config.as_bytes())
            .unwrap()
            .pools
            .ipv4()
            .unwrap();
        LeaseMachine::new(
            Settings {
                ttl: DAY,
                renew_margin: HOUR,
            },
            pool,
            ME,
            None,
        )
    }

    fn roomy() -> LeaseMachine {
        machine(r#"{"Network":"10.5.0.0/16"}"#)
    }

    fn record(key: &str, ip: &str, lease: i64) -> Record {
        let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#).into_bytes();
        Record {
            key: key.into(),
            value,
            revisions: Revisions {
                created: 3,
                modified: 4,
            },
            lease,
        }
    }

    /// A machine that holds 10.5.1.0/24 by etcd lease 77 at revision 10.
    fn held() -> LeaseMachine {
        let mut m = roomy();
        assert!(matches!(m.handle(Event::Start, secs(0), 0), Some(Op::List)));
        let op = m.handle(Event::Listed(vec![]), secs(0), 0);
        assert!(matches!(
            op,
            Some(Op::Claim {
                expected: Expected::Absent,
                terms: LeaseTerms::Grant(DAY),
                ..
            })
        ));
        let won = ClaimOutcome::Won {
            lease: 77,
            modified: 10,
        };
        assert!(m.handle(Event::Claimed(won), secs(1), 0).is_none());
        assert_eq!(m.situation(), Situation::Held);
        m
    }

    #[test]
    fn a_new_lease_is_renewed_at_once_and_then_every_five_minutes() {
        let mut m = held();
        assert_eq!(m.wake_at(), Some(secs(1)));
        assert!(matches!(
            m.handle(Event::Timer, secs(1), 0),
            Some(Op::KeepAlive(77))
        ));
        assert_eq!(m.wake_at(), None);
        m.handle(Event::KeptAlive(DAY), secs(2), 0);
        assert_eq!(m.wake_at(), Some(secs(302)));
        assert!(m.handle(Event::Timer, secs(301), 0).is_none());
    }

    #[test]
    fn a_short_ttl_or_a_wide_margin_renews_earlier() {
        let mut m = held();
        m.handle(Event::Timer, secs(1), 0);
        m.handle(Event::KeptAlive(secs(9)), secs(10), 0);
        assert_eq!(m.wake_at(), Some(secs(11)));
        m.handle(Event::Timer, secs(11), 0);
        m.handle(Event::KeptAlive(HOUR + secs(60)), secs(20), 0);
        assert_eq!(m.wake_at(), Some(secs(80)));
    }

    #[test]
    fn the_loser_of_a_race_lists_again() {
        let mut m = roomy();
        m.handle(Event::Start, secs(0), 0);
        m.handle(Event::Listed(vec![]), secs(0), 0);
        assert!(m.handle(Event::Claimed(ClaimOutcome::Lost), secs(0), 0).is_none());
        let at = m.wake_at().unwrap();
        assert!(at <= secs(1));
        assert!(matches!(m.handle(Event::Timer, at, 0), Some(Op::List)));
        let op = m.handle(
            Event::Listed(vec![record("10.5.1.0-24", "192.168.50.12", 9)]),
            at,
            0,
        );
        assert!(matches!(op, Some(Op::Claim { key, .. }) if key.to_string() == "10.5.2.0-24"));
    }

    #[test]
    fn an_exhausted_pool_is_tried_for_ever() {
        let mut m = machine(r#"{"Network":"10.5.0.0/28"}"#);
        m.handle(Event::Start, secs(0), 0);
        let full: Vec<Record> = ["10.5.0.4-30", "10.5.0.8-30", "10.5.0.12-30"]
            .iter()
            .map(|k| record(k, "192.168.50.99", 9))
            .collect();
        let mut now = secs(0);
        for _ in 0..50 {
            assert!(m.handle(Event::Listed(full.clone()), now, 0).is_none());
            assert_eq!(m.situation(), Situation::Exhausted);
            let next = m.wake_at().unwrap();
            assert!(next > now && next - now <= EXHAUSTED.1);
            now = next;
            assert!(matches!(m.handle(Event::Timer, now, 0), Some(Op::List)));
        }
        let op = m.handle(Event::Listed(full[..2].to_vec()), now, 0);
        assert!(matches!(op, Some(Op::Claim { key, .. }) if key.to_string() == "10.5.0.12-30"));
    }

    #[test]
    fn an_existing_lease_is_adopted_with_its_etcd_lease() {
        let mut m = roomy();
        m.handle(Event::Start, secs(0), 0);
        let op = m.handle(
            Event::Listed(vec![record("10.5.7.0-24", "192.168.50.11", 42)]),
            secs(0),
            0,
        );
        let Some(Op::Claim {
            key,
            expected,
            terms,
            published,
        }) = op
        else {
            panic!("{op:?}")
        };
        assert_eq!(key.to_string(), "10.5.7.0-24");
        assert_eq!((expected, terms), (Expected::Modified(4), LeaseTerms::Keep(42)));
        assert_eq!(published.unwrap().public_ip, ME);
    }

    #[test]
    fn a_reservation_stays_one() {
        let mut m = roomy();
        m.handle(Event::Start, secs(0), 0);
        let op = m.handle(
            Event::Listed(vec![record("10.5.7.0-24", "192.168.50.11", 0)]),
            secs(0),
            0,
        );
        assert!(matches!(
            op,
            Some(Op::Claim {
                terms: LeaseTerms::Keep(0),
                ..
            })
        ));
        m.handle(
            Event::Claimed(ClaimOutcome::Won {
                lease: 0,
                modified: 4,
            }),
            secs(0),
            0,
        );
        assert_eq!(m.wake_at(), None);
    }

    #[test]
    fn an_outage_keeps_the_holding_and_backs_off() {
        let mut m = held();
        let mut now = secs(1);
        for _ in 0..20 {
            assert!(matches!(m.handle(Event::Timer, now, 7), Some(Op::KeepAlive(77))));
            m.handle(Event::Failed, now, 7);
            assert_eq!(m.situation(), Situation::Held);
            let next = m.wake_at().unwrap();
            assert!(next > now && next - now <= BACKOFF.1);
            now = next;
        }
        assert_eq!(m.holding().unwrap().confirmed, secs(1));
    }

    #[test]
    fn an_expired_and_free_subnet_is_created_again() {
        let mut m = held();
        m.handle(Event::Timer, secs(1), 0);
        assert!(matches!(m.handle(Event::Expired, secs(2), 0), Some(Op::List)));
        let others = vec![record("10.5.2.0-24", "192.168.50.12", 9)];
        let op = m.handle(Event::Listed(others), secs(2), 5);
        assert!(
            matches!(op, Some(Op::Claim { key, expected: Expected::Absent, .. }) if key.to_string() == "10.5.1.0-24")
        );
        assert!(m.holding().is_some());
    }

    #[test]
    fn an_expired_and_taken_subnet_belongs_to_its_new_holder() {
        let mut m = held();
        let put = OwnPut {
            public_ip: Some(Ipv4Addr::new(192, 168, 50, 12)),
            lease: 9,
            modified: 11,
        };
        assert!(matches!(m.handle(Event::OwnPut(put), secs(2), 0), Some(Op::List)));
        let op = m.handle(
            Event::Listed(vec![record("10.5.1.0-24", "192.168.50.12", 9)]),
            secs(2),
            0,
        );
        assert!(
            matches!(op, Some(Op::Claim { key, expected: Expected::Absent, .. }) if key.to_string() == "10.5.2.0-24")
        );
    }

    #[test]
    fn echoes_and_old_events_change_nothing() {
        let mut m = held();
        let other = Some(Ipv4Addr::new(192, 168, 50, 12));
        for put in [
            OwnPut {
                public_ip: other,
                lease: 9,
                modified: 9,
            },
            OwnPut {
                public_ip: Some(ME),
                lease: 77,
                modified: 10,
            },
        ] {
            assert!(m.handle(Event::OwnPut(put), secs(2), 0).is_none());
        }
        assert!(m.handle(Event::OwnDeleted(9), secs(2), 0).is_none());
        assert!(m.handle(Event::Claimed(ClaimOutcome::Lost), secs(2), 0).is_none());
        assert_eq!(m.situation(), Situation::Held);
        assert!(matches!(
            m.handle(Event::OwnDeleted(12), secs(2), 0),
            Some(Op::List)
        ));
    }
}
