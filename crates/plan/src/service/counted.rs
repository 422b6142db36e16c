//! A set whose members are held by several owners.

use std::collections::BTreeMap;

/// A set that counts how often each member was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted<T: Ord>(BTreeMap<T, usize>);

impl<T: Ord> Default for Counted<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord> Counted<T> {
    /// Adds one count.
    pub(crate) fn add(&mut self, member: T) {
        *self.0.entry(member).or_default() += 1;
    }

    /// Takes one count away; with the last the member goes.
    pub(crate) fn remove(&mut self, member: &T) {
        if let Some(count) = self.0.get_mut(member) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(member);
            }
        }
    }

    /// Whether it is a member.
    pub fn contains(&self, member: &T) -> bool {
        self.0.contains_key(member)
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
