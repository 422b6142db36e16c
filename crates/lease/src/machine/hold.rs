//! Keeping what is held: renewal, news of our own key, and a store that went back.

use std::time::Duration;

use super::acquire::lease_number;
use super::{Contest, Expected, Holding, LeaseMachine, LeaseTerms, Op, OwnPut, State, Why};
use crate::timing;

/// A second deletion by hand this soon after our re-creation is meant: the operator takes the subnet away.
const REVOKED_WITHIN: Duration = Duration::from_secs(60);
/// A subnet that became free is asked for within this; those who wait for it do not ask as one.
const FREED_WITHIN: Duration = Duration::from_millis(500);

impl LeaseMachine {
    pub(super) fn renew(&mut self, fresh: bool) -> Option<Op> {
        let lease = self.holding?.lease;
        self.state = State::Held {
            renew_at: None,
            renewing: true,
            fresh,
        };
        Some(Op::KeepAlive(lease))
    }

    pub(super) fn kept_alive(&mut self, ttl: Duration, now: Duration, random: u64) -> Option<Op> {
        let State::Held { fresh, .. } = self.state else {
            return None;
        };
        self.failures = 0;
        let held = self.holding.as_mut()?;
        let ran_out = held.valid_until.is_some_and(|until| until <= now);
        if ran_out && !fresh {
            // The lease lives, but whether the key still hangs on it only a list can tell.
            return Some(self.list());
        }
        held.valid_until = Some(self.asked + ttl);
        let held = *held;
        if ttl != self.settings.ttl && !self.exchanged {
            return Some(self.exchange(&held, random));
        }
        self.state = State::Held {
            renew_at: Some(now + timing::renewal(ttl, self.settings.renew_margin, random)),
            renewing: false,
            fresh: false,
        };
        None
    }

    /// An earlier run, or flannel, granted the lease with another lifetime. Once only: etcd rounds very short ones up.
    fn exchange(&mut self, held: &Holding, random: u64) -> Op {
        self.exchanged = true;
        let lease = lease_number(random);
        self.grant = Some(lease);
        self.state = State::Claiming {
            key: held.key,
            contestable: false,
        };
        Op::Claim {
            key: held.key,
            expected: Expected::Modified(held.modified),
            terms: LeaseTerms::Grant {
                lease,
                ttl: self.settings.ttl,
            },
            published: None,
        }
    }

    /// Level-triggered: what stands under our key is compared with what we know, however we learn of it.
    pub(super) fn own_put(&mut self, put: &OwnPut, now: Duration) -> Option<Op> {
        let ours = put.owner.is_some_and(|owner| self.identity.is(&owner));
        match self.state {
            State::Revoked if ours => return Some(self.list()),
            State::Held { .. } => {}
            _ => return None,
        }
        let held = self.holding?;
        if put.modified <= held.modified {
            return None;
        }
        if !ours || self.is_to_be_checked(put, now) {
            return Some(self.list());
        }
        let held = self.holding.as_mut()?;
        held.modified = put.modified;
        if put.lease != held.lease {
            // A node of flannel renews by a new lease each time.
            held.lease = put.lease;
            held.valid_until = (put.lease != 0).then_some(now);
            self.state = State::Held {
                renew_at: (put.lease != 0).then_some(now),
                renewing: false,
                fresh: true,
            };
        }
        None
    }

    /// Our own identity stands in a record that we did not write: by a mistaken hand, or by a node with a copy of our state
    /// folder. What we publish is put back, and less and less often where that is undone.
    fn is_to_be_checked(&mut self, put: &OwnPut, now: Duration) -> bool {
        let Some(owner) = put.owner.filter(|owner| owner.is_surely(&self.identity)) else {
            return false;
        };
        let wait = self.repairs.wait(now);
        if wait.is_zero() {
            self.repairs.checking = true;
            return true;
        }
        // Until then the subnet is reached where the record says.
        self.contest = match owner == self.identity {
            true => Contest::None,
            false => Contest::Open(owner),
        };
        self.repairs.check_at = Some(now + wait);
        false
    }

    /// The time to look at our record again has come.
    pub(super) fn check_again(&mut self) -> Option<Op> {
        self.repairs.check_at = None;
        self.repairs.checking = true;
        Some(self.list())
    }

    pub(super) fn own_deleted(&mut self, revision: i64, now: Duration) -> Option<Op> {
        let held = self.holding?;
        if revision <= held.modified {
            return None;
        }
        if held.lease == 0 {
            return self.deleted_by_hand(now);
        }
        self.state = State::Deleted;
        Some(Op::KeepAlive(held.lease))
    }

    pub(super) fn deleted_by_hand(&mut self, now: Duration) -> Option<Op> {
        let again = self.recreated.is_some_and(|at| now < at + REVOKED_WITHIN);
        if again {
            self.state = State::Revoked;
            return None;
        }
        self.recreating = true;
        Some(self.list())
    }

    /// What we knew of the store does not hold any more: our key is asserted again, and whoever has it by the store's word
    /// is given time to correct that.
    pub(super) fn store_reset(&mut self, now: Duration) -> Option<Op> {
        self.settles_at = now + self.settings.grace;
        if let Some(held) = &mut self.holding {
            held.modified = 0;
        }
        match self.state {
            State::Idle | State::Revoked => None,
            _ => Some(self.list()),
        }
    }

    pub(super) fn freed(&mut self, now: Duration, random: u64) {
        if let State::Waiting {
            until,
            why: Why::Exhausted | Why::Contested,
        } = &mut self.state
        {
            *until = (*until).min(now + timing::jitter(FREED_WITHIN, random));
        }
    }

    pub(super) fn resume(&mut self) -> Option<Op> {
        if !matches!(self.state, State::Revoked) {
            return None;
        }
        self.recreated = None;
        self.contest = Contest::None;
        Some(self.list())
    }
}
