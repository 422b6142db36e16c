//! The table of peers: every record of others, checked before it may move a route.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;

use flannel_model::{Ipv4Pool, Ipv4Subnet, LeaseKey, LeaseKeyError, LeaseValue, LeaseValueError};

use crate::{Record, Revisions};

/// A peer whose record passed every check that does not depend on the backend.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its lease.
    pub key: LeaseKey,
    /// What it published.
    pub value: LeaseValue,
    /// When.
    pub revisions: Revisions,
}

/// What a record is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The pool of the network config.
    pub pool: Ipv4Pool,
    /// Our own lease.
    pub own: LeaseKey,
    /// The address that we publish.
    pub own_public_ip: Ipv4Addr,
}

/// Why a record is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RejectReason {
    /// The key is no lease key.
    Key(LeaseKeyError),
    /// The value is no lease value. If an earlier one was good, that one stays in use.
    Value(String),
    /// The subnet is not one of the Network.
    OutsideNetwork(Ipv4Subnet),
    /// The subnet has another length than SubnetLen.
    Length(u8),
    /// It claims our subnet.
    OwnSubnet,
    /// It claims our address: an earlier lease of this node, or a second node with the same address.
    OwnPublicIp,
    /// Its PublicIP can be no node's.
    PublicIp(Ipv4Addr, &'static str),
    /// An older record holds the same subnet.
    Duplicate(LeaseKey),
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(error) => write!(f, "the key {error}"),
            Self::Value(error) => f.write_str(error),
            Self::OutsideNetwork(network) => write!(f, "the subnet is not inside Network {network}"),
            Self::Length(length) => write!(f, "the subnet is not a /{length}, as SubnetLen asks for"),
            Self::OwnSubnet => f.write_str("it claims the subnet of this node"),
            Self::OwnPublicIp => f.write_str(
                "its PublicIP is this node's own: an earlier lease of this node, or a second node with the same address",
            ),
            Self::PublicIp(address, what) => write!(f, "its PublicIP {address} is {what}; expected a node's unicast address"),
            Self::Duplicate(key) => write!(f, "the older record {key} holds the same subnet"),
        }
    }
}

/// A record that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Its key behind `<prefix>/subnets/`, shortened.
    pub key: String,
    /// Why.
    pub reason: RejectReason,
}

/// The peers that may be programmed, and the records that may not.
#[derive(Debug, Clone, Default)]
pub struct PeerView {
    /// One peer a subnet.
    pub peers: BTreeMap<Ipv4Subnet, Peer>,
    /// Everything else, in key order.
    pub rejects: Vec<Reject>,
}

/// Longest key that is kept for the report of a reject, in characters.
const SHOWN_KEY: usize = 120;

/// What was last read under one key. Only what was understood is kept, never the bytes: a record of a megabyte costs us
/// nothing.
#[derive(Debug, Clone)]
struct Entry {
    good: Option<Peer>,
    bad: Option<RejectReason>,
}

/// Every record below `<prefix>/subnets/`, read once when it arrives.
#[derive(Debug, Clone, Default)]
pub struct PeerTable {
    entries: BTreeMap<String, Entry>,
}

impl PeerTable {
    /// Takes a complete list: records that are not in it are gone. A bad value of a key that was good keeps the good one.
    pub fn reset(&mut self, records: impl IntoIterator<Item = Record>) {
        let mut before = std::mem::take(&mut self.entries);
        for record in records {
            let known = before.remove(&record.key);
            self.entries.insert(record.key.clone(), read(record, known));
        }
    }

    /// Takes one new or changed record.
    pub fn put(&mut self, record: Record) {
        let known = self.entries.remove(&record.key);
        self.entries.insert(record.key.clone(), read(record, known));
    }

    /// Takes the deletion of a key.
    pub fn delete(&mut self, key: &str) {
        self.entries.remove(key);
    }

    /// Checks every record against `limits`. One bad record never changes what becomes of another, except that of two
    /// records for one subnet the older wins.
    pub fn view(&self, limits: &Limits) -> PeerView {
        let mut view = PeerView::default();
        let mut holders: HashMap<Ipv4Subnet, (i64, String)> = HashMap::new();
        for (text, entry) in self
            .entries
            .iter()
            .filter(|(text, _)| **text != limits.own.to_string())
        {
            if let Some(reason) = &entry.bad {
                view.reject(text, reason.clone());
            }
            let Some(peer) = &entry.good else { continue };
            if let Some(reason) = objection(peer, limits) {
                view.reject(text, reason);
                continue;
            }
            view.accept(text, peer, &mut holders);
        }
        view
    }
}

impl PeerView {
    fn reject(&mut self, key: &str, reason: RejectReason) {
        self.rejects.push(Reject {
            key: key.chars().take(SHOWN_KEY).collect(),
            reason,
        });
    }

    fn accept(&mut self, text: &str, peer: &Peer, holders: &mut HashMap<Ipv4Subnet, (i64, String)>) {
        let Some(subnet) = peer.key.ipv4() else { return };
        let created = peer.revisions.created;
        match holders.get(&subnet).cloned() {
            Some((older, _)) if older <= created => {
                let holder = self.peers.get(&subnet).map_or(peer.key, |p| p.key);
                self.reject(text, RejectReason::Duplicate(holder));
                return;
            }
            Some((_, younger)) => self.reject(&younger, RejectReason::Duplicate(peer.key)),
            None => {}
        }
        holders.insert(subnet, (created, text.to_owned()));
        self.peers.insert(subnet, peer.clone());
    }
}

fn read(record: Record, known: Option<Entry>) -> Entry {
    let key: LeaseKey = match record.key.parse() {
        Ok(key) => key,
        Err(error) => {
            return Entry {
                good: None,
                bad: Some(RejectReason::Key(error)),
            };
        }
    };
    match LeaseValue::parse(&record.value) {
        Ok(value) => Entry {
            good: Some(Peer {
                key,
                value,
                revisions: record.revisions,
            }),
            bad: None,
        },
        Err(error) => {
            let good = known.and_then(|entry| entry.good);
            Entry {
                good,
                bad: Some(RejectReason::Value(with_cause(&error))),
            }
        }
    }
}

fn with_cause(error: &LeaseValueError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error} ({cause})"),
        None => error.to_string(),
    }
}

fn objection(peer: &Peer, limits: &Limits) -> Option<RejectReason> {
    let Some(subnet) = peer
        .key
        .ipv4()
        .filter(|subnet| limits.pool.network.contains(subnet))
    else {
        return Some(RejectReason::OutsideNetwork(limits.pool.network));
    };
    if limits.own.ipv4().is_some_and(|own| subnet.overlaps(&own)) {
        return Some(RejectReason::OwnSubnet);
    }
    if subnet.length() != limits.pool.subnet_len() {
        return Some(RejectReason::Length(limits.pool.subnet_len()));
    }
    let address = peer.value.public_ip;
    if address == limits.own_public_ip {
        return Some(RejectReason::OwnPublicIp);
    }
    unusable(address, limits).map(|what| RejectReason::PublicIp(address, what))
}

fn unusable(address: Ipv4Addr, limits: &Limits) -> Option<&'static str> {
    [
        (address.octets()[0] == 0, "unspecified"),
        (address.is_loopback(), "a loopback address"),
        (address.is_multicast(), "a multicast address"),
        (address.is_broadcast(), "the broadcast address"),
        (address.is_link_local(), "a link-local address"),
        (limits.pool.network.holds(address), "inside the pod Network"),
    ]
    .into_iter()
    .find_map(|(holds, what)| holds.then_some(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::NetworkConfig;

    fn limits() -> Limits {
        Limits {
            pool: *NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#)
                .unwrap()
                .pools
                .ipv4()
                .unwrap(),
            own: "10.5.1.0-24".parse().unwrap(),
            own_public_ip: Ipv4Addr::new(192, 168, 50, 11),
        }
    }

    fn record(key: &str, value: &str, created: i64) -> Record {
        let revisions = Revisions {
            created,
            modified: created,
        };
        Record {
            key: key.into(),
            value: value.into(),
            revisions,
            lease: 1,
        }
    }

    fn value(ip: &str) -> String {
        format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#)
    }

    fn good() -> Vec<Record> {
        vec![
            record("10.5.2.0-24", &value("192.168.50.12"), 2),
            record("10.5.3.0-24", &value("192.168.50.13"), 3),
        ]
    }

    #[test]
    fn a_bad_record_is_named_and_moves_nobody_elses_route() {
        for (key, bad, part) in [
            ("fd00::-64", value("192.168.50.66"), "not inside Network"),
            ("0.0.0.0-0", value("192.168.50.66"), "prefix length 0"),
            ("10.5.9.9-32", value("192.168.50.66"), "prefix length 32"),
            ("foo", value("192.168.50.66"), "not of the form"),
            ("10.5.9.0-24/meta", value("192.168.50.66"), "not of the form"),
            (
                "10.6.9.0-24",
                value("192.168.50.66"),
                "not inside Network 10.5.0.0/16",
            ),
            ("10.0.0.0-8", value("192.168.50.66"), "not inside Network"),
            (
                "10.5.0.0-17",
                value("192.168.50.66"),
                "claims the subnet of this node",
            ),
            (
                "10.5.1.0-24&fd00::-64",
                value("192.168.50.66"),
                "claims the subnet of this node",
            ),
            (
                "10.5.1.128-25",
                value("192.168.50.66"),
                "claims the subnet of this node",
            ),
            ("10.5.8.0-23", value("192.168.50.66"), "not a /24"),
            ("10.5.9.0-24", value("192.168.50.11"), "this node's own"),
            ("10.5.9.0-24", value("127.0.0.1"), "loopback"),
            ("10.5.9.0-24", value("224.0.0.1"), "multicast"),
            ("10.5.9.0-24", value("169.254.1.1"), "link-local"),
            ("10.5.9.0-24", value("10.5.2.7"), "inside the pod Network"),
            ("10.5.9.0-24", "{}".into(), "0.0.0.0 is unspecified"),
            ("10.5.9.0-24", "not json".into(), "not a JSON object"),
            ("10.5.9.0-24", "x".repeat(1 << 20), "1048576 bytes"),
        ] {
            let mut table = PeerTable::default();
            table.reset(good().into_iter().chain([record(key, &bad, 9)]));
            let view = table.view(&limits());
            assert_eq!(view.peers.len(), 2, "{key}");
            assert_eq!(view.rejects.len(), 1, "{key}");
            assert_eq!(view.rejects[0].key, key);
            assert!(
                view.rejects[0].reason.to_string().contains(part),
                "{key}: {}",
                view.rejects[0].reason
            );
        }
    }

    #[test]
    fn a_good_record_that_turns_bad_keeps_its_last_good_value() {
        let mut table = PeerTable::default();
        table.reset(good());
        table.put(record("10.5.2.0-24", "junk", 9));
        let view = table.view(&limits());
        assert_eq!(view.peers.len(), 2);
        assert_eq!(view.rejects.len(), 1);
        table.reset(
            good()[1..]
                .iter()
                .cloned()
                .chain([record("10.5.2.0-24", "junk", 9)]),
        );
        assert_eq!(table.view(&limits()).peers.len(), 2);
        table.delete("10.5.2.0-24");
        let view = table.view(&limits());
        assert_eq!((view.peers.len(), view.rejects.len()), (1, 0));
    }

    #[test]
    fn a_changed_value_is_seen_on_a_new_list() {
        let mut table = PeerTable::default();
        table.reset(good());
        table.reset([record("10.5.2.0-24", &value("192.168.50.99"), 2)]);
        let view = table.view(&limits());
        let addresses: Vec<_> = view
            .peers
            .values()
            .map(|p| p.value.public_ip.to_string())
            .collect();
        assert_eq!(addresses, ["192.168.50.99"]);
    }

    #[test]
    fn of_two_records_for_one_subnet_the_older_wins_in_any_order() {
        let single = record("10.5.9.0-24", &value("192.168.50.20"), 20);
        let dual = record("10.5.9.0-24&fd00::-64", &value("192.168.50.10"), 10);
        for records in [vec![single.clone(), dual.clone()], vec![dual, single]] {
            let mut table = PeerTable::default();
            table.reset(records);
            let view = table.view(&limits());
            let addresses: Vec<_> = view
                .peers
                .values()
                .map(|p| p.value.public_ip.to_string())
                .collect();
            assert_eq!(addresses, ["192.168.50.10"]);
            assert_eq!(view.rejects[0].key, "10.5.9.0-24");
        }
    }

    #[test]
    fn our_own_record_is_no_peer_and_no_reject() {
        let mut table = PeerTable::default();
        table.reset([record("10.5.1.0-24", &value("192.168.50.11"), 1)]);
        let view = table.view(&limits());
        assert!(view.peers.is_empty() && view.rejects.is_empty());
    }
}
