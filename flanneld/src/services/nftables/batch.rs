//! Changes of elements, gathered into transactions.

use std::collections::{BTreeMap, BTreeSet};

use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{Data, Element, Family, NftConn, add_elements, delete_elements};
use flannel_plan::nft::{NftData, NftElement, NftSet, TABLE};

use super::super::programmer::Status;

/// Elements in one transaction: their notifications have to fit the buffer of whoever watches the table, us among them.
const AT_ONCE: usize = 4000;

/// Changes that wait for their transaction.
#[derive(Debug)]
pub(super) struct Batch {
    family: Family,
    delete: BTreeMap<NftSet, Vec<Element>>,
    add: BTreeMap<NftSet, Vec<Element>>,
    count: usize,
}

impl Batch {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            delete: BTreeMap::new(),
            add: BTreeMap::new(),
            count: 0,
        }
    }

    /// Adds changes that belong together: they come in one transaction. Answers whether it is time for that.
    pub(super) fn push(
        &mut self,
        (delete, add): (Vec<NftElement>, Vec<NftElement>),
        status: &mut Status,
    ) -> bool {
        self.count += delete.len() + add.len();
        let added: BTreeSet<(NftSet, &[u8])> = add.iter().map(|e| (e.set, e.key.as_slice())).collect();
        status.removed += delete
            .iter()
            .filter(|e| !added.contains(&(e.set, e.key.as_slice())))
            .count();
        status.added += add.len();
        for element in delete {
            self.delete.entry(element.set).or_default().push(convert(element));
        }
        for element in add {
            self.add.entry(element.set).or_default().push(convert(element));
        }
        self.count >= AT_ONCE
    }

    /// Carries out what waits, in one transaction.
    pub(super) fn commit(&mut self, conn: &mut NftConn) -> Result<(), NetlinkError> {
        let delete = std::mem::take(&mut self.delete);
        let add = std::mem::take(&mut self.add);
        let mut messages = Vec::new();
        for (set, elements) in &delete {
            messages.extend(delete_elements(TABLE, set.name(), elements));
        }
        for (set, elements) in &add {
            messages.extend(add_elements(TABLE, set.name(), elements));
        }
        let what = format!("change {} elements of table {TABLE}", self.count);
        self.count = 0;
        conn.commit(self.family, &messages, &what)
    }
}

pub(super) fn convert(element: NftElement) -> Element {
    Element {
        key: element.key,
        key_end: element.key_end,
        interval_end: element.interval_end,
        data: element.data.map(|data| match data {
            NftData::Value(bytes) => Data::Value(bytes),
            NftData::Goto(chain) => Data::Goto(chain),
            NftData::Accept => Data::Accept,
        }),
    }
}

pub(super) fn convert_back(set: NftSet, element: Element) -> NftElement {
    NftElement {
        set,
        key: element.key,
        key_end: element.key_end,
        interval_end: element.interval_end,
        data: element.data.map(|data| match data {
            Data::Value(bytes) => NftData::Value(bytes),
            Data::Goto(chain) => NftData::Goto(chain),
            Data::Accept => NftData::Accept,
        }),
    }
}
