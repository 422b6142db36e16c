//! Services from etcd: the records below `<prefix>/services/v1/`.

use std::collections::BTreeSet;

use flannel_model::{ServiceKey, ServiceRecord};
use flannel_store::{Event, KeyValue, Store, follow};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::news::{News, Stamp};
use crate::said::chain;
use crate::services::Record;

/// Reads the value under a key.
pub fn etcd_record(name: &str, value: &[u8], created: i64) -> Record {
    let read = || -> Result<(ServiceKey, ServiceRecord), String> {
        let key = ServiceKey::parse(name).map_err(|error| chain(&error))?;
        let record = ServiceRecord::parse(&key, value).map_err(|error| chain(&error))?;
        Ok((key, record))
    };
    Record {
        name: name.to_owned(),
        content: read(),
        created,
    }
}

/// Tells what happens in the range until nobody listens.
pub(super) async fn feed<S: Store>(store: S, range: String, news: mpsc::Sender<News>) {
    let (_, mut events) = follow(store, range.clone());
    let mut names = Names::new(range);
    while let Some(event) = events.recv().await {
        for item in names.take(event) {
            if news.send(item).await.is_err() {
                return;
            }
        }
    }
}

/// Of what was heard just now.
fn stamp(revision: flannel_store::Revision) -> Stamp {
    Stamp {
        revision: u64::try_from(revision).unwrap_or(0),
        triggered: None,
        heard: Some(Instant::now()),
    }
}

/// Which keys there are, to know what a complete list lacks.
struct Names {
    range: String,
    known: BTreeSet<String>,
    listing: BTreeSet<String>,
}

impl Names {
    fn new(range: String) -> Self {
        Self {
            range,
            known: BTreeSet::new(),
            listing: BTreeSet::new(),
        }
    }

    fn take(&mut self, event: Event) -> Vec<News> {
        match event {
            Event::Init => {
                self.listing.clear();
                Vec::new()
            }
            Event::InitApply(kv) => {
                let put = self.put(kv);
                if let Some(News::Put(record, _)) = &put {
                    self.listing.insert(record.name.clone());
                }
                put.into_iter().collect()
            }
            Event::InitDone { position } => {
                let stamp = stamp(position.revision);
                let present = std::mem::take(&mut self.listing);
                let mut news: Vec<News> = self
                    .known
                    .difference(&present)
                    .cloned()
                    .map(|name| News::Gone(name, stamp))
                    .collect();
                self.known = present;
                news.push(News::Complete);
                news
            }
            Event::Apply(kv) => self.put(kv).into_iter().collect(),
            Event::Delete { key, mod_revision } => {
                let name = key
                    .strip_prefix(&self.range)
                    .filter(|name| self.known.remove(*name));
                name.map(|name| News::Gone(name.to_owned(), stamp(mod_revision)))
                    .into_iter()
                    .collect()
            }
            Event::Lost { reason } => vec![News::Lost(reason.to_string())],
            Event::Resumed { .. } => vec![News::Resumed],
        }
    }

    fn put(&mut self, kv: KeyValue) -> Option<News> {
        let name = kv.key.strip_prefix(&self.range)?;
        self.known.insert(name.to_owned());
        Some(News::Put(
            Box::new(etcd_record(name, &kv.value, kv.create_revision)),
            stamp(kv.mod_revision),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::{LeaseId, Position};

    fn kv(key: &str) -> KeyValue {
        KeyValue {
            key: format!("/n/services/v1/{key}"),
            value: b"{}".to_vec(),
            create_revision: 1,
            mod_revision: 7,
            lease: LeaseId::NONE,
        }
    }

    /// What is told, in short.
    fn told(names: &mut Names, event: Event) -> String {
        let short = |news: &News| match news {
            News::Put(record, stamp) => format!("put {}@{}", record.name, stamp.revision),
            News::Gone(name, _) => format!("gone {name}"),
            News::Complete => "complete".to_owned(),
            other => format!("{other:?}"),
        };
        names.take(event).iter().map(short).collect::<Vec<_>>().join(", ")
    }

    fn done() -> Event {
        let position = Position {
            cluster: 1,
            term: 1,
            revision: 9,
        };
        Event::InitDone { position }
    }

    #[test]
    fn absence_counts_after_a_complete_list_only() {
        let mut names = Names::new("/n/services/v1/".to_owned());
        assert_eq!(told(&mut names, Event::Init), "");
        assert_eq!(told(&mut names, Event::InitApply(kv("a"))), "put a@7");
        assert_eq!(told(&mut names, Event::InitApply(kv("b"))), "put b@7");
        assert_eq!(told(&mut names, done()), "complete");
        assert_eq!(told(&mut names, Event::Apply(kv("c"))), "put c@7");
        let gone = |key: &str| Event::Delete {
            key: format!("/n/services/v1/{key}"),
            mod_revision: 10,
        };
        assert_eq!(told(&mut names, gone("a")), "gone a");
        assert_eq!(told(&mut names, gone("a")), "", "once");
        // A list that breaks off takes nothing away, the next whole one does.
        told(&mut names, Event::Init);
        told(&mut names, Event::Init);
        assert_eq!(told(&mut names, Event::InitApply(kv("c"))), "put c@7");
        assert_eq!(told(&mut names, done()), "gone b, complete");
    }
}
