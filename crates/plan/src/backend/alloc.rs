//! A subnet for each node and nothing else: others carry the packets (flannel's `alloc`).

use flannel_lease::Peer as LeasePeer;

use super::{Backend, FamilyFacts, Useless};
use crate::overlay::DesiredOverlay;

/// Subnets only.
#[derive(Debug, Clone, Copy)]
pub struct Alloc;

impl Backend for Alloc {
    fn overlay(&self, facts: &FamilyFacts<'_>, _: &[&LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
        (facts.empty(facts.carrier.mtu), Vec::new())
    }
}
