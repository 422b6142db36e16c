//! The life of a node's own lease as a state machine: events and the time go in, at most one operation comes out.
//!
//! The machine never waits. Its driver runs the operation and hands the answer back as an event; a new operation replaces
//! one that is still under way, which is safe because every write is fenced and every detour ends in a fresh list.
//!
//! Who owns a subnet: whoever holds its key at the highest revision. A node acts as owner while the store confirmed its
//! lease less than a TTL ago. After that it forwards on but adds no pods until the store has confirmed it again, and it
//! never overwrites a record that it did not see last.

mod acquire;
mod hold;
mod moved;
mod repairs;
#[cfg(test)]
mod tests;
mod types;

use std::time::Duration;

use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey};

use crate::{Earlier, Identity, Record, UsedBefore, timing};
use moved::Moved;
use repairs::Repairs;
pub use types::{
    ClaimOutcome, Event, Expected, Holding, LeaseTerms, Op, OwnPut, Published, Settings, Situation, Standing,
};

/// A lease that was adopted is renewed at once: two calls with their deadlines of 5 s.
const ADOPTING: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Hash)]
enum State {
    Idle,
    Listing,
    /// The list is there; which subnets were in use before is being read.
    ReadingUsed(Vec<Record>),
    Dropping,
    Claiming {
        key: LeaseKey,
        /// Others may have a part of it under another key: only a list after the claim tells who was first.
        contestable: bool,
    },
    Waiting {
        until: Duration,
        why: Why,
    },
    Held {
        renew_at: Option<Duration>,
        renewing: bool,
        /// The key was seen in etcd since the lease was last renewed.
        fresh: bool,
    },
    /// Our key was deleted. Whether its etcd lease lives on tells an operator's hand from an expiry.
    Deleted,
    /// The operator took the subnet away.
    Revoked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Why {
    Failed,
    Exhausted,
    Contested,
}

/// Somebody else's record stands for what this node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Contest {
    None,
    /// A restored store says so; its owner may take it back.
    Open(Identity),
    /// This node looks for another subnet.
    GivenUp(Identity),
}

/// See the module's text.
#[derive(Debug, Clone, Hash)]
pub struct LeaseMachine {
    settings: Settings,
    pools: Families<Ipv4Pool, Ipv6Pool>,
    identity: Identity,
    previous: Option<LeaseKey>,
    state: State,
    holding: Option<Holding>,
    contest: Contest,
    lost: Vec<LeaseKey>,
    /// Until then, what a wiped or restored store says of our subnet is not the last word.
    settles_at: Duration,
    /// Our key was deleted by hand and is being created again; and when that was done last.
    recreating: bool,
    recreated: Option<Duration>,
    /// One etcd lease a node: a claim whose answer was lost is repeated under the same one.
    grant: Option<i64>,
    /// A lease of an earlier run with another TTL was exchanged once.
    exchanged: bool,
    failures: u32,
    repairs: Repairs,
    moved: Moved,
    /// When the operation under way began: what it confirms was true then.
    asked: Duration,
}

impl LeaseMachine {
    /// A machine that has not started. `previous` is the subnet of an earlier run, which it takes again if it can.
    pub fn new(
        settings: Settings,
        pools: Families<Ipv4Pool, Ipv6Pool>,
        identity: Identity,
        previous: Option<LeaseKey>,
    ) -> Self {
        Self {
            settings,
            pools,
            identity,
            previous,
            state: State::Idle,
            holding: None,
            contest: Contest::None,
            lost: Vec::new(),
            settles_at: Duration::ZERO,
            recreating: false,
            recreated: None,
            grant: None,
            exchanged: false,
            failures: 0,
            repairs: Repairs::default(),
            moved: Moved::default(),
            asked: Duration::ZERO,
        }
    }

    /// Goes on with what an earlier run held; the store has to confirm it as after an outage.
    #[must_use]
    pub fn resuming(mut self, holding: Holding) -> Self {
        self.holding = Some(holding);
        self
    }

    /// Takes one event at time `now` since boot. `random` breaks ties between nodes that start together.
    pub fn handle(&mut self, event: Event, now: Duration, random: u64) -> Option<Op> {
        let op = self.step(event, now, random);
        if op.is_some() {
            self.asked = now;
        }
        op
    }

    /// An answer to an operation that was replaced, news that are none and an early timer change nothing.
    fn step(&mut self, event: Event, now: Duration, random: u64) -> Option<Op> {
        let held = matches!(self.state, State::Held { .. });
        match event {
            Event::Start => matches!(self.state, State::Idle).then(|| self.list()),
            Event::Listed(records) if matches!(self.state, State::Listing) => {
                self.listed(records, None, now, random)
            }
            Event::UsedRead(used) => self.used_read(used, now, random),
            Event::Dropped => matches!(self.state, State::Dropping).then(|| self.list()),
            Event::Claimed(outcome) => self.claimed(outcome, now, random),
            Event::KeptAlive(ttl) if held => self.kept_alive(ttl, now, random),
            Event::KeptAlive(_) if matches!(self.state, State::Deleted) => self.deleted_by_hand(now),
            Event::Expired if held || matches!(self.state, State::Deleted) => Some(self.list()),
            Event::Failed => {
                self.failed(now, random);
                None
            }
            Event::OwnPut(put) => self.own_put(&put, now),
            Event::OwnDeleted(revision) if held => self.own_deleted(revision, now),
            Event::Clash if held => Some(self.list()),
            Event::Moved(identity) => self.moved(identity),
            Event::StoreReset => self.store_reset(now),
            Event::Freed => {
                self.freed(now, random);
                None
            }
            Event::Resume => self.resume(),
            Event::Timer => self.timer(now),
            Event::Listed(_) | Event::KeptAlive(_) | Event::Expired | Event::OwnDeleted(_) | Event::Clash => {
                None
            }
        }
    }

    /// When [`Event::Timer`] is due, as time since boot. A lease that runs out is news as well, because pods are not added
    /// any more then.
    pub fn wake_at(&self, now: Duration) -> Option<Duration> {
        let due = match self.state {
            State::Waiting { until, .. } => Some(until),
            State::Held {
                renew_at,
                renewing: false,
                ..
            } => [renew_at, self.repairs.check_at].into_iter().flatten().min(),
            State::Held { renewing: true, .. }
            | State::Idle
            | State::Listing
            | State::ReadingUsed(_)
            | State::Dropping
            | State::Claiming { .. }
            | State::Deleted
            | State::Revoked => None,
        };
        let runs_out = self.holding.and_then(|held| held.valid_until);
        [due, runs_out.filter(|at| *at > now)].into_iter().flatten().min()
    }

    /// What it is about.
    pub fn situation(&self) -> Situation {
        match self.state {
            State::Held { .. } => Situation::Held,
            State::Revoked => Situation::Revoked,
            State::Waiting {
                why: Why::Exhausted, ..
            } => Situation::Exhausted,
            State::Idle
            | State::Listing
            | State::ReadingUsed(_)
            | State::Dropping
            | State::Claiming { .. }
            | State::Deleted
            | State::Waiting { .. } => Situation::Acquiring,
        }
    }

    /// Whether pods may be added to the subnet that this node has.
    pub fn standing(&self, now: Duration) -> Standing {
        let Some(held) = &self.holding else {
            return Standing::None;
        };
        match (&self.state, self.contest) {
            (State::Revoked, _) => Standing::Revoked,
            (_, Contest::Open(by) | Contest::GivenUp(by)) => Standing::Taken(by),
            (_, Contest::None) if held.valid_until.is_none_or(|until| now < until) => Standing::Confirmed,
            (State::Held { fresh: true, .. }, Contest::None)
                if held.valid_until.is_some_and(|until| now < until + ADOPTING) =>
            {
                Standing::Adopted
            }
            (_, Contest::None) => Standing::Unconfirmed,
        }
    }

    /// The subnet that this node has, or had last: it stays in use until another one is held.
    pub fn holding(&self) -> Option<&Holding> {
        self.holding.as_ref()
    }

    /// Subnets that went to other nodes while this one had them: pods may still live in them.
    pub fn lost(&self) -> &[LeaseKey] {
        &self.lost
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    fn list(&mut self) -> Op {
        self.state = State::Listing;
        Op::List
    }

    fn earlier(&self) -> Earlier {
        match (self.holding, self.contest, self.previous) {
            (Some(held), Contest::None | Contest::Open(_), _) => Earlier::Holding(held.key),
            (Some(_), Contest::GivenUp(_), _) => Earlier::None,
            (None, _, Some(previous)) => Earlier::Previous(previous),
            (None, _, None) => Earlier::None,
        }
    }

    fn wait(&mut self, range: (Duration, Duration), why: Why, now: Duration, random: u64) {
        let until = now + self.pause(range, random);
        self.state = State::Waiting { until, why };
    }

    fn pause(&mut self, range: (Duration, Duration), random: u64) -> Duration {
        let pause = timing::pause(range, self.failures, random);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    fn failed(&mut self, now: Duration, random: u64) {
        match self.state {
            State::Held { fresh, .. } => {
                self.state = State::Held {
                    renew_at: Some(now + self.pause(timing::FAILED, random)),
                    renewing: false,
                    fresh,
                };
            }
            State::Listing
            | State::ReadingUsed(_)
            | State::Dropping
            | State::Claiming { .. }
            | State::Deleted => self.wait(timing::FAILED, Why::Failed, now, random),
            State::Idle | State::Waiting { .. } | State::Revoked => {}
        }
    }

    fn timer(&mut self, now: Duration) -> Option<Op> {
        match self.state {
            State::Waiting { until, .. } if until <= now => Some(self.list()),
            State::Held { renewing: false, .. } if self.repairs.check_at.is_some_and(|at| at <= now) => {
                self.check_again()
            }
            State::Held {
                renew_at: Some(at),
                renewing: false,
                fresh,
            } if at <= now => self.renew(fresh),
            _ => None,
        }
    }

    fn used_read(&mut self, used: Vec<crate::LastUse>, now: Duration, random: u64) -> Option<Op> {
        let State::ReadingUsed(records) = &mut self.state else {
            return None;
        };
        let records = std::mem::take(records);
        self.listed(records, Some(&UsedBefore::new(used)), now, random)
    }
}
