//! From what the store says of `<prefix>/subnets/` to the table of peers, and to news of our own key.

use flannel_lease::{Event as LeaseEvent, Limits, OwnPut, PeerTable, PeerView, Record};
use flannel_model::{EtcdPrefix, LeaseKey, LeaseValue};
use flannel_store::{Event, KeyValue};

use crate::lease_driver::record;

/// Follows the range.
pub struct PeerFeed {
    range: String,
    table: PeerTable,
    listing: Vec<Record>,
    synced: bool,
}

/// What an event brought.
#[derive(Debug, Default)]
pub struct News {
    /// The table may have changed and is complete.
    pub peers: bool,
    /// Somebody wrote or deleted our own key.
    pub own: Option<LeaseEvent>,
}

impl PeerFeed {
    /// An empty table.
    pub fn new(prefix: &EtcdPrefix) -> Self {
        Self {
            range: prefix.subnets(),
            table: PeerTable::default(),
            listing: Vec::new(),
            synced: false,
        }
    }

    /// Whether a complete list was seen: before, nothing may be removed for being absent.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The peers as they stand.
    pub fn view(&self, limits: &Limits) -> PeerView {
        self.table.view(limits)
    }

    /// Takes one event. `own` is the key that this node holds.
    pub fn take(&mut self, event: Event, own: Option<&LeaseKey>) -> News {
        let own = own.map(ToString::to_string);
        match event {
            Event::Init => {
                self.listing.clear();
                News::default()
            }
            Event::InitApply(kv) => {
                self.listing.extend(record(&self.range, kv));
                News::default()
            }
            Event::InitDone { revision } => self.listed(revision, own.as_deref()),
            Event::Apply(kv) => self.put(kv, own.as_deref()),
            Event::Delete { key, mod_revision } => {
                let Some(key) = key.strip_prefix(&self.range) else {
                    return News::default();
                };
                self.table.delete(key);
                let ours = own.as_deref() == Some(key);
                News {
                    peers: self.synced,
                    own: ours.then_some(LeaseEvent::OwnDeleted(mod_revision)),
                }
            }
            Event::Lost { .. } | Event::Resumed { .. } => News::default(),
        }
    }

    fn listed(&mut self, revision: i64, own: Option<&str>) -> News {
        let own_event = own.map(|own| match self.listing.iter().find(|record| record.key == own) {
            Some(record) => LeaseEvent::OwnPut(own_put(record)),
            None => LeaseEvent::OwnDeleted(revision),
        });
        self.table.reset(self.listing.drain(..));
        self.synced = true;
        News {
            peers: true,
            own: own_event,
        }
    }

    fn put(&mut self, kv: KeyValue, own: Option<&str>) -> News {
        let Some(record) = record(&self.range, kv) else {
            return News::default();
        };
        let own_event = (own == Some(record.key.as_str())).then(|| LeaseEvent::OwnPut(own_put(&record)));
        self.table.put(record);
        News {
            peers: self.synced,
            own: own_event,
        }
    }
}

fn own_put(record: &Record) -> OwnPut {
    let public_ip = LeaseValue::parse(&record.value).ok().map(|value| value.public_ip);
    OwnPut {
        public_ip,
        lease: record.lease,
        modified: record.revisions.modified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::LeaseId;

    fn kv(key: &str, ip: &str, revision: i64) -> KeyValue {
        KeyValue {
            key: format!("/net/subnets/{key}"),
            value: format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#).into_bytes(),
            create_revision: revision,
            mod_revision: revision,
            lease: LeaseId(7),
        }
    }

    fn own() -> LeaseKey {
        "10.5.1.0-24".parse().unwrap()
    }

    #[test]
    fn nothing_is_complete_before_the_list_ends() {
        let mut feed = PeerFeed::new(&EtcdPrefix::new("/net"));
        assert!(!feed.take(Event::Init, None).peers);
        assert!(
            !feed
                .take(Event::InitApply(kv("10.5.2.0-24", "192.168.50.12", 3)), None)
                .peers
        );
        assert!(!feed.is_synced());
        assert!(feed.take(Event::InitDone { revision: 9 }, None).peers);
        assert!(feed.is_synced());
        assert!(
            feed.take(Event::Apply(kv("10.5.3.0-24", "192.168.50.13", 10)), None)
                .peers
        );
    }

    #[test]
    fn news_of_our_own_key_reach_the_lease() {
        let mut feed = PeerFeed::new(&EtcdPrefix::new("/net"));
        let done = |feed: &mut PeerFeed| feed.take(Event::InitDone { revision: 9 }, Some(&own())).own;
        assert!(matches!(done(&mut feed), Some(LeaseEvent::OwnDeleted(9))));
        feed.take(Event::Init, Some(&own()));
        feed.take(
            Event::InitApply(kv("10.5.1.0-24", "192.168.50.11", 5)),
            Some(&own()),
        );
        assert!(matches!(
            done(&mut feed),
            Some(LeaseEvent::OwnPut(OwnPut {
                modified: 5,
                lease: 7,
                ..
            }))
        ));
        let put = feed
            .take(Event::Apply(kv("10.5.1.0-24", "192.168.50.66", 12)), Some(&own()))
            .own;
        assert!(matches!(
            put,
            Some(LeaseEvent::OwnPut(OwnPut { modified: 12, .. }))
        ));
        let gone = Event::Delete {
            key: "/net/subnets/10.5.1.0-24".into(),
            mod_revision: 13,
        };
        assert!(matches!(
            feed.take(gone, Some(&own())).own,
            Some(LeaseEvent::OwnDeleted(13))
        ));
    }

    #[test]
    fn an_unreadable_write_to_our_key_is_a_conflict_and_not_ours() {
        let mut feed = PeerFeed::new(&EtcdPrefix::new("/net"));
        let mut junk = kv("10.5.1.0-24", "x", 12);
        junk.value = b"junk".to_vec();
        let own_event = feed.take(Event::Apply(junk), Some(&own())).own;
        assert!(matches!(
            own_event,
            Some(LeaseEvent::OwnPut(OwnPut { public_ip: None, .. }))
        ));
    }
}
