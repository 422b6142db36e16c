//! One watch stream.

use etcd_client::{Error, EventType, WatchOptions, WatchResponse, WatchStream};

use super::EtcdStore;
use super::calls::Repeat;
use super::classify::{classify, is_compacted, is_too_large};
use super::list::prefix_end;
use super::ops::{key_value, position, text};
use crate::error::Tried;
use crate::{Change, Revision, StoreError, Watch, WatchEnd, WatchItem};

/// A watch on etcd. It does not reconnect: that is the business of [`follow`](crate::follow()).
pub struct EtcdWatch {
    stream: WatchStream,
    prefix: String,
    endpoint: String,
}

impl EtcdStore {
    pub(super) async fn start_watch(&self, prefix: &str, from: Revision) -> Result<EtcdWatch, StoreError> {
        let doing = format!("watch {prefix} in");
        let stream = self
            .call(&doing, Repeat::Always, |mut connection| async move {
                // No fragments: an answer must hold a whole revision, because the next watch begins behind it.
                let options = WatchOptions::new()
                    .with_range(prefix_end(prefix.as_bytes()))
                    .with_start_revision(from)
                    .with_progress_notify();
                connection.watch.watch(prefix, Some(options)).await
            })
            .await?;
        let endpoint = self
            .order()
            .next()
            .map_or_else(String::new, |(_, member)| member.name().to_owned());
        Ok(EtcdWatch {
            stream,
            prefix: prefix.to_owned(),
            endpoint,
        })
    }
}

impl EtcdWatch {
    fn end(&self, error: Error) -> WatchEnd {
        if is_compacted(&error) {
            return WatchEnd::Compacted;
        }
        let failure = classify(&error);
        let tried = vec![Tried {
            endpoint: self.endpoint.clone(),
            reason: failure.reason,
        }];
        let story = StoreError::new(&format!("watch {} in", self.prefix), failure.kind, tried)
            .with_hint(failure.hint);
        match is_too_large(&error) {
            true => WatchEnd::TooLarge(story),
            false => WatchEnd::Failed(story),
        }
    }

    fn item(&self, response: &WatchResponse) -> Result<WatchItem, WatchEnd> {
        if response.compact_revision() > 0 {
            return Err(WatchEnd::Compacted);
        }
        if response.canceled() {
            return Err(WatchEnd::Cancelled(response.cancel_reason().to_owned()));
        }
        let at = position(response.header()).map_err(|error| self.end(error))?;
        if response.created() {
            return Ok(WatchItem::Started(at));
        }
        if response.events().is_empty() {
            return Ok(WatchItem::Alive(at));
        }
        Ok(WatchItem::Changes(
            response.events().iter().filter_map(change).collect(),
        ))
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchItem, WatchEnd> {
        match self.stream.message().await {
            Ok(Some(response)) => self.item(&response),
            Ok(None) => Err(WatchEnd::Closed),
            Err(error) => Err(self.end(error)),
        }
    }

    async fn request_progress(&mut self) -> Result<(), WatchEnd> {
        self.stream
            .request_progress()
            .await
            .map_err(|error| self.end(error))
    }
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
