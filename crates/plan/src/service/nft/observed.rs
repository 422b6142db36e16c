//! What a kernel has, made comparable.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::OUTSIDE_SLOTS;
use super::element::{NftData, NftElement, NftSet, read_endpoint};
use super::slots::MOST_SLOTS;
use super::translate::{Translated, frontend_key};
use crate::service::frontend::FrontendKey;

/// Slots by their number.
type Slots = BTreeMap<u32, SocketAddr>;

/// The elements of one family's table that nothing has asked for yet.
#[derive(Debug, Default)]
pub struct KernelElements {
    /// By set, key and which end of a range it is.
    elements: HashMap<(NftSet, Vec<u8>, bool), NftElement>,
    /// What stands in slots, by the set and the key without the slot.
    slots: HashMap<(NftSet, Vec<u8>), Slots>,
}

impl KernelElements {
    /// Adds an element that was listed.
    pub fn add(&mut self, element: NftElement) {
        if let Some((key, slot, endpoint)) = slot_of(&element) {
            let slots = self.slots.entry((element.set, key)).or_default();
            slots.insert(slot, endpoint);
        }
        let identity = (element.set, element.key.clone(), element.interval_end);
        self.elements.insert(identity, element);
    }

    /// What stands in the slots of a frontend, so that it can stay there.
    pub fn frontend(&self, key: &FrontendKey) -> Option<Translated> {
        let set = match key {
            FrontendKey::Address(_) => NftSet::Backends,
            FrontendKey::NodePort(_) => NftSet::NodePortBackends,
        };
        let slots = self.slots.get(&(set, frontend_key(key).0))?;
        let run = |first: u32| -> Vec<SocketAddr> {
            let numbers = (first..).take(MOST_SLOTS);
            numbers.map_while(|slot| slots.get(&slot).copied()).collect()
        };
        let outside = run(OUTSIDE_SLOTS);
        Some(Translated::with_slots(
            run(0),
            (!outside.is_empty()).then_some(outside),
        ))
    }

    /// What leads from what is there to `wanted`: elements to delete, then elements to add. What was asked for once is no
    /// longer among [`Self::rest`].
    pub fn settle(
        &mut self,
        wanted: impl IntoIterator<Item = NftElement>,
    ) -> (Vec<NftElement>, Vec<NftElement>) {
        let (mut delete, mut add) = (Vec::new(), Vec::new());
        for element in wanted {
            let identity = (element.set, element.key.clone(), element.interval_end);
            match self.elements.remove(&identity) {
                Some(found) if found == element => {}
                found => {
                    delete.extend(found);
                    add.push(element);
                }
            }
        }
        (delete, add)
    }

    /// What nothing asked for.
    pub fn rest(self) -> Vec<NftElement> {
        self.elements.into_values().collect()
    }
}

/// Key without slot, slot, and what stands there, of an element of a map of endpoints.
fn slot_of(element: &NftElement) -> Option<(Vec<u8>, u32, SocketAddr)> {
    if !matches!(element.set, NftSet::Backends | NftSet::NodePortBackends) {
        return None;
    }
    let Some(NftData::Value(bytes)) = &element.data else {
        return None;
    };
    let (key, slot) = element.key.split_at_checked(element.key.len().checked_sub(4)?)?;
    let slot = u32::from_ne_bytes(slot.try_into().ok()?);
    Some((key.to_vec(), slot, read_endpoint(bytes)?))
}
