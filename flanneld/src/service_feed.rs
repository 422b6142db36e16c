//! From what the store says of `<prefix>/services/v1/` to the programmer of virtual servers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flannel_model::EtcdPrefix;
use flannel_store::{Event, KeyValue, Store, follow};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use crate::overlay::Facts;
use crate::rejects::RejectLog;
use crate::services::{RawRecord, ServiceMode, Services, Status, programmer, service_node};

/// IPVS has no notifications: what stands is compared this often.
const AUDIT: Duration = Duration::from_secs(60);
/// Where the kernel does tell of changes by others, it is asked this often whether there were any.
const LOOK: Duration = Duration::from_millis(50);
/// After a failed pass.
const RETRY: Duration = Duration::from_secs(2);
/// Endpoints change in bursts; a pass waits this long for the rest of one.
const SETTLE: Duration = Duration::from_millis(20);
/// Events that are taken at once.
const BURST: usize = 4096;

/// Starts the task. Services are programmed once a lease is held and a complete list was seen.
pub fn start<S: Store>(
    store: S,
    prefix: EtcdPrefix,
    mode: ServiceMode,
    facts: watch::Receiver<Option<Arc<Facts>>>,
) {
    tokio::spawn(run(store, prefix.services(), mode, facts));
}

/// Every record of the range, as the store has it.
struct Records {
    range: String,
    map: BTreeMap<String, RawRecord>,
    listing: BTreeMap<String, RawRecord>,
    synced: bool,
}

impl Records {
    fn new(range: String) -> Self {
        Self {
            range,
            map: BTreeMap::new(),
            listing: BTreeMap::new(),
            synced: false,
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(kv) => {
                let entry = self.entry(kv);
                self.listing.extend(entry);
            }
            Event::InitDone { .. } => {
                self.map = std::mem::take(&mut self.listing);
                self.synced = true;
            }
            Event::Apply(kv) => {
                let entry = self.entry(kv);
                self.map.extend(entry);
            }
            Event::Delete { key, .. } => {
                if let Some(key) = key.strip_prefix(&self.range) {
                    self.map.remove(key);
                }
            }
            Event::Lost { reason } => {
                tracing::warn!("Services cannot be followed: {reason}; they stay as they are")
            }
            Event::Resumed { .. } => tracing::info!("Services are followed again"),
        }
    }

    fn entry(&self, kv: KeyValue) -> Option<(String, RawRecord)> {
        let key = kv.key.strip_prefix(&self.range)?.to_owned();
        Some((
            key,
            RawRecord {
                value: kv.value,
                create_revision: kv.create_revision,
            },
        ))
    }
}

async fn run<S: Store>(
    store: S,
    range: String,
    mode: ServiceMode,
    mut facts: watch::Receiver<Option<Arc<Facts>>>,
) {
    let (_, mut events) = follow(store, range.clone());
    let mut records = Records::new(range);
    let mut services = Services::new(programmer(mode));
    let mut log = StatusLog::default();
    let mut burst = Vec::new();
    let mut due = Instant::now() + AUDIT;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = facts.changed() => if changed.is_err() { return },
            count = events.recv_many(&mut burst, BURST) => {
                if count == 0 {
                    return;
                }
                tokio::time::sleep(SETTLE).await;
                while let Ok(event) = events.try_recv() {
                    burst.push(event);
                }
                burst.drain(..).for_each(|event| records.take(event));
            }
            () = sleep_until(due) => services.verify(),
            _ = look.tick() => if !services.disturbed() { continue },
        }
        due = Instant::now() + AUDIT;
        let node = facts.borrow_and_update().as_deref().map(service_node);
        let Some(node) = node.filter(|_| records.synced) else {
            continue;
        };
        let map = records.map.clone();
        let pass = tokio::task::spawn_blocking(move || {
            let status = services.sync(&map, &node);
            (services, status)
        });
        match pass.await {
            Ok((back, status)) => {
                services = back;
                if !status.failed.is_empty() {
                    due = Instant::now() + RETRY;
                }
                log.tell(&status);
            }
            Err(error) => {
                tracing::error!(%error, "a pass over the Services ended early");
                services = Services::new(programmer(mode));
                due = Instant::now() + RETRY;
            }
        }
    }
}

/// Says what a pass did.
#[derive(Default)]
struct StatusLog {
    rejects: RejectLog,
    failures: crate::said::Said,
}

impl StatusLog {
    fn tell(&mut self, status: &Status) {
        self.rejects.update(
            "service record",
            "is not, or not wholly, programmed",
            status.rejects.iter().cloned(),
        );
        if status.added + status.removed > 0 {
            tracing::info!(
                added = status.added,
                removed = status.removed,
                unchanged = status.unchanged,
                "virtual servers are programmed"
            );
        }
        let text = status.failed.join("; ");
        if text.is_empty() {
            self.failures.clear();
        } else if self.failures.is_news(&text) {
            tracing::error!("{text}; trying again");
        }
    }
}
