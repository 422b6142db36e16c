//! Watches: each is one watcher on the stream that all of a store share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_client::{EventType, WatchResponse};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::EtcdStore;
use super::calls::Repeat;
use super::ops::{key_value, text};
use super::stream::{Delivery, FIRST, Handle, Mailbox, Wanted};
use crate::{Change, Revision, StoreError, Watch, WatchEnd, WatchItem};

/// The stream that new watches join.
#[derive(Default)]
pub(super) struct Streams(Mutex<Slot>);

#[derive(Default)]
struct Slot {
    current: Option<Handle>,
    /// When the last attempt to open one failed, and how: those who waited for it need not try themselves.
    failed: Option<(Instant, StoreError)>,
}

/// A watch on etcd. It does not reconnect: that is the business of [`follow`](crate::follow()).
pub struct EtcdWatch {
    stream: Handle,
    id: i64,
    items: mpsc::UnboundedReceiver<Delivery>,
    waiting: Arc<AtomicUsize>,
    /// A sign of life was asked for, and nothing came since.
    asked: bool,
}

impl EtcdStore {
    pub(super) async fn start_watch(&self, prefix: &str, from: Revision) -> Result<EtcdWatch, StoreError> {
        let wanted = Wanted {
            prefix: prefix.to_owned(),
            from,
        };
        let asked = Instant::now();
        let mut slot = self.shared.streams.0.lock().await;
        if let Some(stream) = &slot.current
            && let Some(mailbox) = stream.join(&wanted)
        {
            return Ok(EtcdWatch::new(stream.clone(), mailbox));
        }
        slot.current = None;
        if let Some((at, error)) = &slot.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        match self.open_stream(wanted).await {
            Ok((stream, mailbox)) => {
                slot.current = Some(stream.clone());
                Ok(EtcdWatch::new(stream, mailbox))
            }
            Err(error) => {
                slot.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Forgets the connections to all members and ends what is open on them.
    pub(super) async fn give_up_connections(&self) {
        for member in &self.shared.members {
            member.forget().await;
        }
        self.shared.keepers.close();
        if let Some(stream) = self.shared.streams.0.lock().await.current.take() {
            stream.end();
        }
    }

    /// A new stream with its first watcher.
    async fn open_stream(&self, wanted: Wanted) -> Result<(Handle, Mailbox), StoreError> {
        let doing = format!("watch {} in", wanted.prefix);
        let wanted_here = &wanted;
        let stream = self
            .call(&doing, Repeat::Always, |mut connection| async move {
                let options = wanted_here.options(FIRST);
                connection
                    .watch
                    .watch(wanted_here.prefix.as_str(), Some(options))
                    .await
            })
            .await?;
        let member = self.shared.members.get(self.preferred());
        let endpoint = member.map_or_else(String::new, |member| member.name().to_owned());
        Ok(Handle::start(stream, wanted, endpoint))
    }
}

impl EtcdWatch {
    fn new(stream: Handle, mailbox: Mailbox) -> Self {
        Self {
            stream,
            id: mailbox.id,
            items: mailbox.items,
            waiting: mailbox.waiting,
            asked: false,
        }
    }
}

impl Drop for EtcdWatch {
    fn drop(&mut self) {
        self.stream.cancel(self.id, self.asked);
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchItem, WatchEnd> {
        let Some((item, size)) = self.items.recv().await else {
            return Err(WatchEnd::Closed);
        };
        self.asked = false;
        self.waiting.fetch_sub(size, Ordering::Relaxed);
        item
    }

    async fn request_progress(&mut self) -> Result<(), WatchEnd> {
        self.asked = true;
        self.stream.progress(self.id);
        Ok(())
    }
}

/// The changes of an answer.
pub(super) fn changes(response: &WatchResponse) -> Vec<Change> {
    response.events().iter().filter_map(change).collect()
}

fn change(event: &etcd_client::Event) -> Option<Change> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        EventType::Put => Change::Put(key_value(kv.clone())),
        EventType::Delete => Change::Delete {
            key: text(kv.key().to_vec()),
            mod_revision: kv.mod_revision(),
        },
    })
}
