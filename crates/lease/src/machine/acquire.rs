//! From a list of records to a subnet that is held.

use std::time::Duration;

use flannel_model::LeaseKey;

use super::{ClaimOutcome, Contest, Expected, Holding, LeaseMachine, LeaseTerms, Op, Published, State, Why};
use crate::{Choice, Chooser, Record, UsedBefore, timing};

impl LeaseMachine {
    pub(super) fn listed(
        &mut self,
        records: Vec<Record>,
        used: Option<&UsedBefore>,
        now: Duration,
        random: u64,
    ) -> Option<Op> {
        match self.choose(&records, used, random) {
            Choice::Taken { by } if now < self.settles_at => {
                self.contest = Contest::Open(by);
                self.wait(timing::CONTESTED, Why::Contested, now, random);
                return None;
            }
            Choice::Taken { by } => self.give_up(Contest::GivenUp(by)),
            other => return self.carry_out(other, records, now, random),
        }
        let choice = self.choose(&records, used, random);
        self.carry_out(choice, records, now, random)
    }

    fn choose(&self, records: &[Record], used: Option<&UsedBefore>, random: u64) -> Choice {
        let identity = self.known_as(records);
        let chooser = Chooser {
            pools: &self.pools,
            identity: &identity,
            earlier: self.earlier(),
            used,
        };
        chooser.choose(records, random)
    }

    fn carry_out(&mut self, choice: Choice, records: Vec<Record>, now: Duration, random: u64) -> Option<Op> {
        match choice {
            Choice::Adopt {
                key,
                value,
                revisions,
                lease,
            } => {
                self.state = State::Claiming {
                    key,
                    contestable: false,
                };
                let rewrite = records
                    .iter()
                    .any(|r| r.key == key.to_string() && r.lease != lease);
                let published = Published {
                    value: *value,
                    rewrite,
                    foreign: self.repairs.checking,
                };
                self.repairs.over = self.repairs.checking.then_some(revisions.modified);
                Some(Op::Claim {
                    key,
                    expected: Expected::Modified(revisions.modified),
                    terms: LeaseTerms::Keep(lease),
                    published: Some(Box::new(published)),
                })
            }
            Choice::Drop { key, modified, why } => {
                // What can be kept of it is: a node that turns to dual stack keeps its IPv4 subnet.
                self.previous = self.previous.or(Some(key));
                self.state = State::Dropping;
                Some(Op::Drop { key, modified, why })
            }
            Choice::Create { key, alone } => Some(self.create(key, !alone, random)),
            Choice::ReadUsed => {
                self.state = State::ReadingUsed(records);
                Some(Op::ReadUsed)
            }
            Choice::Exhausted | Choice::Taken { .. } => {
                self.wait(timing::EXHAUSTED, Why::Exhausted, now, random);
                None
            }
        }
    }

    fn create(&mut self, key: LeaseKey, contestable: bool, random: u64) -> Op {
        self.state = State::Claiming { key, contestable };
        let held = self.holding.map(|held| held.lease).filter(|lease| *lease != 0);
        let lease = *self.grant.get_or_insert(held.unwrap_or(lease_number(random)));
        Op::Claim {
            key,
            expected: Expected::Absent,
            terms: LeaseTerms::Grant {
                lease,
                ttl: self.settings.ttl,
            },
            published: None,
        }
    }

    pub(super) fn claimed(&mut self, outcome: ClaimOutcome, now: Duration, random: u64) -> Option<Op> {
        let State::Claiming { key, contestable } = self.state else {
            return None;
        };
        match outcome {
            // Whoever was first sees no older record, and takes it over as a node that starts does.
            ClaimOutcome::Won { .. } if contestable => Some(self.list()),
            ClaimOutcome::Won { lease, modified } => {
                self.won(key, lease, modified, now);
                self.moved_meanwhile()
            }
            ClaimOutcome::Lost => {
                self.wait(timing::FAILED, Why::Failed, now, random);
                None
            }
        }
    }

    fn won(&mut self, key: LeaseKey, lease: i64, modified: i64, now: Duration) {
        self.failures = 0;
        self.repairs.claimed(modified, now);
        self.grant = Some(lease).filter(|lease| *lease != 0);
        if std::mem::take(&mut self.recreating) {
            self.recreated = Some(now);
        }
        self.lost.retain(|lost| *lost != key);
        let known = self.holding.filter(|held| held.key == key && held.lease == lease);
        // Only a renewal says how long an adopted lease lives; until then what was known of it counts.
        let confirmed = known.and_then(|held| held.valid_until).unwrap_or(self.asked);
        self.holding = Some(Holding {
            key,
            lease,
            modified,
            valid_until: (lease != 0).then_some(confirmed),
        });
        self.contest = Contest::None;
        self.state = State::Held {
            renew_at: (lease != 0).then_some(now),
            renewing: false,
            fresh: true,
        };
    }

    pub(super) fn give_up(&mut self, contest: Contest) {
        if let Some(held) = self.holding
            && !self.lost.contains(&held.key)
        {
            self.lost.push(held.key);
        }
        self.contest = contest;
    }
}

/// A number for a new etcd lease. etcd takes any positive one, and 63 random bits meet nobody else's.
pub(super) fn lease_number(random: u64) -> i64 {
    i64::try_from(random >> 1).unwrap_or(i64::MAX).max(1)
}
