//! From what the store says of the range of leases to the table of peers, and to news of our own key.

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_lease::{
    Event as LeaseEvent, Holding, Identity, Limits, OwnerChange, Patience, Peer, PeerChange, PeerTable,
    PeerView, Record, Touched,
};
use flannel_model::{Families, Ipv4Pool, Ipv6Pool};
use flannel_store::{Event, LostReason, Position};
use tokio::sync::oneshot;

use crate::lease_driver::record;

/// Follows the range.
pub struct PeerFeed {
    range: String,
    table: PeerTable,
    listing: Vec<Record>,
    /// Who waits for the first complete list.
    first: Option<oneshot::Sender<Vec<Record>>>,
    position: Option<Position>,
    /// The last write of what stands against our lease, once it was told.
    clash: i64,
    /// Since something was touched it was not looked for what stands against our lease.
    clash_due: bool,
}

/// What an event brought.
#[derive(Debug, Default, PartialEq)]
pub struct News {
    /// The table may have changed and is complete.
    pub peers: bool,
    /// What our own lease has to know.
    pub own: Option<Own>,
    /// Subnets that went from one node to another.
    pub moved: Vec<OwnerChange>,
}

/// What our own lease has to know, whichever key it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// The store was wiped or restored.
    Reset,
    /// Somebody's lease was deleted.
    Freed,
}

impl From<Own> for LeaseEvent {
    fn from(own: Own) -> Self {
        match own {
            Own::Reset => Self::StoreReset,
            Own::Freed => Self::Freed,
        }
    }
}

impl PeerFeed {
    /// A table with nobody in it, for the keys that begin with `range`.
    pub fn new(range: String, patience: Patience) -> Self {
        Self {
            range,
            table: PeerTable::new(patience),
            listing: Vec::new(),
            first: None,
            position: None,
            clash: 0,
            clash_due: true,
        }
    }

    /// The first complete list as it comes, for somebody who would else read the same.
    pub fn first_list(&mut self) -> oneshot::Receiver<Vec<Record>> {
        let (first, list) = oneshot::channel();
        self.first = Some(first);
        list
    }

    /// Begins with what an earlier run knew.
    pub fn preload(&mut self, peers: impl IntoIterator<Item = Peer>) {
        self.table.preload(peers);
    }

    /// Where the store stood when it was heard of last.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether a complete list was seen: before, nothing may be removed for being absent.
    pub fn is_synced(&self) -> bool {
        self.table.is_synced()
    }

    /// The peers as they stand.
    pub fn view(&self, limits: &Limits<'_>) -> PeerView {
        self.table.view(limits)
    }

    /// What changed since this was asked last.
    pub fn take_touched(&mut self) -> Touched {
        self.table.take_touched()
    }

    /// Brings the peers as they stood to how they stand; see [`PeerTable::refresh`].
    pub fn refresh(
        &self,
        view: &mut PeerView,
        keys: &BTreeSet<String>,
        limits: &Limits<'_>,
    ) -> Option<Vec<PeerChange>> {
        self.table.refresh(view, keys, limits)
    }

    /// Lets go of peers that have had their time. Whether anything changed.
    pub fn settle(&mut self, now: Duration) -> bool {
        self.table.settle(now)
    }

    /// When [`settle`](Self::settle) has something to do.
    pub fn wake_at(&self) -> Option<Duration> {
        self.table.wake_at()
    }

    /// Has everything looked at when [`own_news`](Self::own_news) is asked next: the identity changed.
    pub fn look_again(&mut self) {
        self.clash_due = true;
    }

    /// What the store says of the lease that we hold, if it is other than what we know of it. With the same lease and identity as
    /// last time, only what was `touched` since is looked at.
    pub fn own_news(
        &mut self,
        held: &Holding,
        identity: &Identity,
        pools: &Families<Ipv4Pool, Ipv6Pool>,
        touched: &Touched,
    ) -> Option<LeaseEvent> {
        if let Some(news) = self.table.own_news(held) {
            self.clash_due = true;
            return Some(news);
        }
        let due = std::mem::replace(&mut self.clash_due, false);
        let among = if due { &Touched::Everything } else { touched };
        let clash = self.table.clash(identity, &held.key, pools, among)?;
        // Told once: what an operation can do about it is done then.
        let new = clash > self.clash;
        self.clash = clash;
        new.then_some(LeaseEvent::Clash)
    }

    /// Takes one event at `now` since boot.
    pub fn take(&mut self, event: Event, now: Duration) -> News {
        match event {
            Event::Init => {
                self.listing.clear();
                News::default()
            }
            Event::InitApply(kv) => {
                self.listing.extend(record(&self.range, kv));
                News::default()
            }
            Event::InitDone { position } => {
                self.position = Some(position);
                let listing = std::mem::take(&mut self.listing);
                if let Some(first) = self.first.take().filter(|first| !first.is_closed()) {
                    // Who went on without it does not need it.
                    let _ = first.send(listing.clone());
                }
                let moved = self.table.reset(listing, position.revision, now);
                News {
                    peers: true,
                    own: Some(Own::Freed),
                    moved,
                }
            }
            Event::Apply(kv) => {
                let Some(record) = record(&self.range, kv) else {
                    return News::default();
                };
                self.heard(record.revisions.modified);
                let moved = self.table.put(&record);
                self.changed(None, moved)
            }
            Event::Delete { key, mod_revision } => {
                let Some(key) = key.strip_prefix(&self.range) else {
                    return News::default();
                };
                self.heard(mod_revision);
                self.table.delete(key, mod_revision, now);
                self.changed(Some(Own::Freed), None)
            }
            Event::Lost {
                reason: LostReason::WentBack { .. },
            } => {
                self.table.distrust(now);
                self.clash = 0;
                News {
                    own: Some(Own::Reset),
                    ..News::default()
                }
            }
            Event::Lost { .. } | Event::Resumed { .. } => News::default(),
        }
    }

    fn heard(&mut self, revision: i64) {
        if let Some(position) = &mut self.position {
            position.revision = revision.max(position.revision);
        }
    }

    fn changed(&self, own: Option<Own>, moved: Option<OwnerChange>) -> News {
        News {
            peers: self.table.is_synced(),
            own,
            moved: moved.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::NetworkConfig;
    use flannel_store::{KeyValue, LeaseId};

    const PATIENCE: Patience = Patience {
        hold: Duration::from_secs(30),
        grace: Duration::from_secs(300),
    };
    const NOW: Duration = Duration::from_secs(1000);

    fn kv(key: &str, ip: &str, revision: i64) -> KeyValue {
        KeyValue {
            key: format!("/net/subnets/{key}"),
            value: format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#).into_bytes(),
            create_revision: revision,
            mod_revision: revision,
            lease: LeaseId(7),
        }
    }

    fn done(revision: i64) -> Event {
        let position = Position {
            cluster: 1,
            term: 2,
            revision,
        };
        Event::InitDone { position }
    }

    fn feed() -> PeerFeed {
        PeerFeed::new("/net/subnets/".into(), PATIENCE)
    }

    fn held(modified: i64) -> Holding {
        Holding {
            key: "10.5.1.0-24".parse().unwrap(),
            lease: 7,
            modified,
            valid_until: Some(NOW),
        }
    }

    fn me() -> Identity {
        Identity {
            public_ip: "192.168.50.11".parse().unwrap(),
            public_ipv6: None,
            node: None,
        }
    }

    fn pools() -> Families<Ipv4Pool, Ipv6Pool> {
        let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16"}"#);
        config.unwrap().pools
    }

    #[test]
    fn nothing_is_complete_before_the_list_ends() {
        let mut feed = feed();
        assert!(!feed.take(Event::Init, NOW).peers);
        assert!(
            !feed
                .take(Event::InitApply(kv("10.5.2.0-24", "192.168.50.12", 3)), NOW)
                .peers
        );
        assert!(!feed.is_synced());
        assert!(
            feed.own_news(&held(1), &me(), &pools(), &Touched::Everything)
                .is_none()
        );
        assert!(feed.take(done(9), NOW).peers);
        assert!(feed.is_synced());
        assert!(
            feed.take(Event::Apply(kv("10.5.3.0-24", "192.168.50.13", 10)), NOW)
                .peers
        );
    }

    #[tokio::test]
    async fn the_first_list_is_handed_on_once_and_whole() {
        let mut feed = feed();
        let list = feed.first_list();
        feed.take(Event::Init, NOW);
        feed.take(Event::InitApply(kv("10.5.2.0-24", "192.168.50.12", 3)), NOW);
        // It broke off and begins again.
        feed.take(Event::Init, NOW);
        feed.take(Event::InitApply(kv("10.5.3.0-24", "192.168.50.13", 4)), NOW);
        feed.take(done(9), NOW);
        let keys: Vec<String> = list.await.unwrap().into_iter().map(|record| record.key).collect();
        assert_eq!(keys, ["10.5.3.0-24"]);
        assert_eq!(feed.table.snapshot().count(), 1, "and taken all the same");
    }

    #[test]
    fn news_of_our_own_key_are_found_whenever_they_came() {
        let mut feed = feed();
        feed.take(Event::Init, NOW);
        feed.take(Event::InitApply(kv("10.5.1.0-24", "192.168.50.11", 5)), NOW);
        feed.take(done(9), NOW);
        assert!(
            feed.own_news(&held(5), &me(), &pools(), &Touched::Everything)
                .is_none()
        );
        // written before we knew that it is ours
        assert!(matches!(
            feed.own_news(&held(4), &me(), &pools(), &Touched::Everything),
            Some(LeaseEvent::OwnPut(_))
        ));
        feed.take(Event::Apply(kv("10.5.1.0-24", "192.168.50.66", 12)), NOW);
        let Some(LeaseEvent::OwnPut(put)) = feed.own_news(&held(5), &me(), &pools(), &Touched::Everything)
        else {
            panic!("no news");
        };
        assert_eq!((put.modified, put.owner.unwrap().public_ip.octets()[3]), (12, 66));
        let gone = Event::Delete {
            key: "/net/subnets/10.5.1.0-24".into(),
            mod_revision: 13,
        };
        feed.take(gone, NOW);
        assert!(matches!(
            feed.own_news(&held(5), &me(), &pools(), &Touched::Everything),
            Some(LeaseEvent::OwnDeleted(13))
        ));
        assert!(
            feed.own_news(&held(14), &me(), &pools(), &Touched::Everything)
                .is_none(),
            "ours is newer than what was seen"
        );
    }

    #[test]
    fn an_unreadable_write_to_our_key_is_a_conflict_and_not_ours() {
        let mut feed = feed();
        feed.take(Event::Init, NOW);
        feed.take(done(9), NOW);
        let mut junk = kv("10.5.1.0-24", "x", 12);
        junk.value = b"junk".to_vec();
        feed.take(Event::Apply(junk), NOW);
        let Some(LeaseEvent::OwnPut(put)) = feed.own_news(&held(5), &me(), &pools(), &Touched::Everything)
        else {
            panic!("no news");
        };
        assert_eq!(put.owner, None);
    }

    #[test]
    fn a_store_that_went_back_is_told_and_doubted() {
        let mut feed = feed();
        feed.take(Event::Init, NOW);
        feed.take(Event::InitApply(kv("10.5.2.0-24", "192.168.50.12", 3)), NOW);
        feed.take(done(9), NOW);
        let at = |revision| Position {
            cluster: 1,
            term: 2,
            revision,
        };
        let reason = LostReason::WentBack {
            before: at(9),
            now: at(1),
        };
        assert_eq!(feed.take(Event::Lost { reason }, NOW).own, Some(Own::Reset));
        feed.take(Event::Init, NOW);
        feed.take(done(1), NOW);
        assert_eq!(feed.table.snapshot().count(), 1);
        assert_eq!(feed.wake_at(), Some(NOW + PATIENCE.grace));
        assert!(feed.settle(NOW + PATIENCE.grace));
        assert_eq!(feed.table.snapshot().count(), 0);
    }
}
