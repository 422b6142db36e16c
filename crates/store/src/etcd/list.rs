//! Reading a whole prefix at one revision.

use std::sync::atomic::Ordering;

use etcd_client::{GetOptions, GetResponse};

use super::EtcdStore;
use super::calls::{CallError, Repeat};
use super::classify::{is_compacted, is_too_large};
use super::ops::{key_value, position};
use crate::{ErrorKind, Listing, Revision, StoreError};

/// Keys that are asked for at first, so that one answer has them all: of twice as many nodes as are known to be in one network. Each key of
/// flannel has about 300 bytes with its value, so this is 6 MB. etcd itself sends any length (its --max-request-bytes is for requests).
const WHOLE: i64 = 20_000;
/// Keys in one answer when that is more than a message holds, or more than the way to etcd carries within a call's deadline.
const PAGE: i64 = 1000;
/// How often a listing begins anew because its revision was compacted while it was read.
const RESTARTS: usize = 3;

/// The range that is still to be read.
struct Range {
    start: Vec<u8>,
    end: Vec<u8>,
    limit: i64,
    /// Set by the first page: all others are read at the same revision.
    revision: Option<Revision>,
}

impl EtcdStore {
    pub(super) async fn list_pages(&self, prefix: &str) -> Result<Listing, StoreError> {
        let doing = format!("list the keys under {prefix} in");
        let mut restarts = RESTARTS;
        loop {
            match self.list_once(&doing, prefix).await {
                Err(CallError { raw: Some(raw), .. }) if is_compacted(&raw) && restarts > 0 => restarts -= 1,
                other => return other.map_err(StoreError::from),
            }
        }
    }

    async fn list_once(&self, doing: &str, prefix: &str) -> Result<Listing, CallError> {
        let mut range = Range {
            start: prefix.as_bytes().to_vec(),
            end: prefix_end(prefix.as_bytes()),
            limit: self.first_page(),
            revision: None,
        };
        let mut kvs = Vec::new();
        let mut first = None;
        loop {
            let mut page = self.page(doing, &mut range).await?;
            let at = match first {
                Some(at) => at,
                None => position(page.header()).map_err(|raw| odd(doing, raw))?,
            };
            first = Some(at);
            range.revision = Some(at.revision);
            let more = page.more();
            let new = page.take_kvs();
            if let Some(last) = new.last() {
                range.start = [last.key(), &[0]].concat();
            }
            let empty = new.is_empty();
            kvs.extend(new.into_iter().map(key_value));
            if !more || empty {
                return Ok(Listing {
                    kvs,
                    revision: at.revision,
                    position: at,
                });
            }
        }
    }

    fn first_page(&self) -> i64 {
        match self.shared.short_pages.load(Ordering::Relaxed) {
            true => PAGE,
            false => WHOLE,
        }
    }

    /// One page. Junk values may make it larger than the decode limit; then fewer keys are asked for. One that took too long is
    /// told as such, and the next list begins with short pages.
    async fn page(&self, doing: &str, range: &mut Range) -> Result<GetResponse, CallError> {
        loop {
            let asked = &*range;
            let page = self
                .call(doing, Repeat::Always, |mut connection| async move {
                    let options = GetOptions::new()
                        .with_range(asked.end.clone())
                        .with_limit(asked.limit)
                        .with_revision(asked.revision.unwrap_or(0));
                    connection.kv.get(asked.start.clone(), Some(options)).await
                })
                .await;
            match page {
                Err(CallError { raw: Some(raw), .. }) if is_too_large(&raw) && range.limit > 1 => {
                    range.limit = PAGE.min(range.limit / 2);
                }
                Err(error) if error.story.kind() == ErrorKind::Timeout => {
                    self.shared.short_pages.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                other => return other,
            }
        }
    }
}

fn odd(doing: &str, raw: etcd_client::Error) -> CallError {
    CallError {
        story: StoreError::new(
            doing,
            ErrorKind::Other,
            vec![crate::error::Tried {
                endpoint: "an endpoint".to_owned(),
                reason: raw.to_string(),
            }],
        ),
        raw: Some(raw),
    }
}

/// The first key behind all that begin with `prefix`; a zero byte stands for "to the end" in etcd.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(prefix_end(b"/a/"), b"/a0");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), [0]);
        assert_eq!(prefix_end(b""), [0]);
    }
}
