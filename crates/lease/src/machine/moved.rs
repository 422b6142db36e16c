//! A node whose published addresses change while it runs.

use flannel_model::LeaseValue;

use super::{Expected, LeaseMachine, LeaseTerms, Op, State};
use crate::{Identity, Record};

/// What is left to do after the addresses changed.
#[derive(Debug, Clone, Copy, Default, Hash)]
pub(super) struct Moved {
    /// What etcd may still say of this node.
    from: Option<Identity>,
    /// A write with the addresses of before is under way.
    again: bool,
}

impl LeaseMachine {
    /// What is held is written again at once, fenced by what was seen last; every other state comes to a write by itself.
    pub(super) fn moved(&mut self, identity: Identity) -> Option<Op> {
        if identity == self.identity {
            return None;
        }
        self.moved.from.get_or_insert(self.identity);
        self.identity = identity;
        match self.state {
            State::Held { .. } => self.write_again(),
            State::Claiming { .. } => {
                self.moved.again = true;
                None
            }
            _ => None,
        }
    }

    /// The claim under way succeeded: another one, if it was for the addresses of before.
    pub(super) fn moved_meanwhile(&mut self) -> Option<Op> {
        if std::mem::take(&mut self.moved.again) {
            return self.write_again();
        }
        self.moved.from = None;
        None
    }

    fn write_again(&mut self) -> Option<Op> {
        let held = self.holding?;
        self.state = State::Claiming {
            key: held.key,
            contestable: false,
        };
        Some(Op::Claim {
            key: held.key,
            expected: Expected::Modified(held.modified),
            terms: LeaseTerms::Keep(held.lease),
            published: None,
        })
    }

    /// Who this node is in these records. Without an identity of its own it is known by its address alone, and what it holds may
    /// still say the one of before.
    pub(super) fn known_as(&self, records: &[Record]) -> Identity {
        let former = self.moved.from.filter(|_| self.identity.node.is_none());
        let Some((former, held)) = former.zip(self.holding) else {
            return self.identity;
        };
        let key = held.key.to_string();
        let is_former = |record: &Record| {
            let value = LeaseValue::parse(&record.value);
            record.key == key && value.is_ok_and(|value| former.is(&Identity::of(&value)))
        };
        match records.iter().any(is_former) {
            true => former,
            false => self.identity,
        }
    }
}
