//! The records of a network's leases, read once for every command that shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use flannel_model::{
    EtcdPrefix, Families, Ipv4Pool, Ipv6Pool, LeaseKey, LeaseValue, NetworkConfig, UsedNote, VxlanLeaseData,
};
use flannel_store::{KeyValue, LeaseId, Store, TimeToLive};
use futures::StreamExt;
use serde_json::value::RawValue;

use crate::failure::Failure;
use crate::output::{Rejected, with_causes};

/// Questions about leases that are under way at once.
const PARALLEL: usize = 64;
/// Time for all of them together; what is not answered by then is shown as unknown.
const DEADLINE: Duration = Duration::from_millis(2500);

/// One lease or reservation.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its key.
    pub key: LeaseKey,
    /// What the node published.
    pub value: LeaseValue,
    /// The record as etcd has it.
    pub kv: KeyValue,
    /// How long it lives; `None` for a reservation, and when etcd did not say.
    pub lifetime: Option<Lifetime>,
    /// Since when its node holds it, in seconds since 1970 by the clock of that node; `None` where nobody wrote that down, as
    /// nodes of flannel do not.
    pub held_since: Option<u64>,
}

/// Time of an etcd lease, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// What is left.
    pub left: u32,
    /// What it was granted for.
    pub granted: u32,
}

impl Record {
    /// The key hangs on no lease and never expires, or a node of flannel put it on one although it is marked.
    pub fn is_reservation(&self) -> bool {
        self.kv.lease.is_none() || self.value.reserved
    }

    /// Whether a node uses it: every node but one of flannel's udp and alloc backends names its backend.
    pub fn is_in_use(&self) -> bool {
        let silent = self.value.backend_type.is_none() && self.value.backend_data.is_none();
        !(self.is_reservation() && silent)
    }

    /// The address that the node is known by.
    pub fn address(&self) -> IpAddr {
        match self.value.public_ipv6 {
            Some(ipv6) if self.value.public_ip.is_unspecified() => ipv6.into(),
            _ => self.value.public_ip.into(),
        }
    }

    /// The node as operators know it: its address, and the beginning of its identity where it has one.
    pub fn holder(&self) -> String {
        let address = self.address();
        match self.value.node_id {
            Some(id) => format!("{address} (node {})", &id.to_string()[..8]),
            None => address.to_string(),
        }
    }

    /// Whose it is: the identity of one of our nodes, else the address, as flannel sees it.
    pub fn owner(&self) -> String {
        self.value
            .node_id
            .map_or_else(|| self.address().to_string(), |id| id.to_string())
    }
}

/// Everything below the ranges of leases.
#[derive(Debug)]
pub struct Listing {
    /// In the order of addresses.
    pub records: Vec<Record>,
    /// What no flanneld can use.
    pub rejected: Vec<Rejected>,
    /// How the network is cut, if its config can be used.
    pub pools: Option<Families<Ipv4Pool, Ipv6Pool>>,
    /// Which subnets are or were in use.
    pub notes: BTreeMap<LeaseKey, UsedNote>,
}

/// Reads the leases of the network, and when they end.
pub async fn read<S: Store>(store: &S, prefix: &EtcdPrefix) -> Result<Listing, Failure> {
    let mut listing = Listing {
        records: Vec::new(),
        rejected: Vec::new(),
        pools: pools(store, prefix).await?,
        notes: notes(store, prefix).await?,
    };
    for range in [prefix.subnets(), prefix.ipv6_subnets()] {
        for kv in store.list(&range).await?.kvs {
            match record(prefix, &range, &kv) {
                Ok(record) => listing.records.push(record),
                Err(reason) => listing.rejected.push(Rejected { key: kv.key, reason }),
            }
        }
    }
    // etcd's order is that of text, in which 10.5.10.0 comes before 10.5.9.0.
    listing.records.sort_by_key(|record| record.key);
    let lifetimes = lifetimes(store, &listing.records).await;
    for record in &mut listing.records {
        record.lifetime = lifetimes.get(&record.kv.lease).copied();
        record.held_since = held_since(record, listing.notes.get(&record.key));
    }
    Ok(listing)
}

async fn notes<S: Store>(store: &S, prefix: &EtcdPrefix) -> Result<BTreeMap<LeaseKey, UsedNote>, Failure> {
    let range = prefix.used();
    let read = |kv: &KeyValue| {
        let key = kv.key.strip_prefix(&range)?.parse().ok()?;
        Some((key, UsedNote::parse(&kv.value)?))
    };
    Ok(store.list(&range).await?.kvs.iter().filter_map(read).collect())
}

/// What a note says of its subnet's holder counts only while the same node holds it.
fn held_since(record: &Record, note: Option<&UsedNote>) -> Option<u64> {
    let holder = (record.value.public_ip, record.value.public_ipv6);
    let note = note.filter(|note| (note.public_ip, note.public_ipv6) == holder)?;
    note.held_since.filter(|_| record.is_in_use())
}

async fn pools<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
) -> Result<Option<Families<Ipv4Pool, Ipv6Pool>>, Failure> {
    let config = store.get(&prefix.config()).await?.0;
    Ok(config.and_then(|kv| Some(NetworkConfig::parse(&kv.value).ok()?.pools)))
}

fn record(prefix: &EtcdPrefix, range: &str, kv: &KeyValue) -> Result<Record, String> {
    let text = kv.key.strip_prefix(range).unwrap_or(&kv.key);
    let key: LeaseKey = text.parse().map_err(|error| with_causes(&error))?;
    if prefix.leases(key.subnets()) != range {
        return Err(
            "a lease of IPv6 alone has no place here, and one of IPv4 none in the other range".to_owned(),
        );
    }
    let value = LeaseValue::parse(&kv.value).map_err(|error| with_causes(&error))?;
    if value.backend_type.as_deref() == Some("vxlan") {
        vxlan_data(&key, &value)?;
    }
    Ok(Record {
        key,
        value,
        kv: kv.clone(),
        lifetime: None,
        held_since: None,
    })
}

/// No peer reaches a VXLAN node that does not say which Ethernet address it has; one that says it for IPv4 is of use.
fn vxlan_data(key: &LeaseKey, value: &LeaseValue) -> Result<(), String> {
    let check = |name: &str, data: Option<&RawValue>| match data.map(VxlanLeaseData::parse) {
        None => Err(format!("a vxlan lease without {name}")),
        Some(Err(error)) => Err(format!("{name} of a vxlan lease: {error}")),
        Some(Ok(_)) => Ok(()),
    };
    match key.ipv4() {
        Some(_) => check("BackendData", value.backend_data.as_deref()),
        None => check("BackendV6Data", value.backend_v6_data.as_deref()),
    }
}

async fn lifetimes<S: Store>(store: &S, records: &[Record]) -> BTreeMap<LeaseId, Lifetime> {
    let leases: BTreeSet<LeaseId> = records
        .iter()
        .map(|record| record.kv.lease)
        .filter(|lease| !lease.is_none())
        .collect();
    let questions = futures::stream::iter(leases)
        .map(|lease| async move { (lease, store.time_to_live(lease).await) })
        .buffer_unordered(PARALLEL)
        .take_until(tokio::time::sleep(DEADLINE));
    let answers = questions.filter_map(|(lease, answer)| async move {
        match answer {
            Ok(TimeToLive::Remaining { secs, granted_secs }) => Some((
                lease,
                Lifetime {
                    left: secs,
                    granted: granted_secs,
                },
            )),
            Ok(TimeToLive::Expired) => Some((lease, Lifetime { left: 0, granted: 0 })),
            Err(_) => None,
        }
    });
    answers.collect().await
}
