//! One watch: lines of JSON that come for minutes.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::client::Client;
use crate::error::{ApiError, Status};
use crate::object::Object;
use crate::resource::Resource;
use crate::split::MAX_ITEM;

/// What a watch says.
#[derive(Debug)]
pub(crate) enum Item {
    /// An object was made or changed.
    Applied(Box<Object>),
    /// An object is gone, or fits the selector no more.
    Deleted(Box<Object>),
    /// Everything up to this resource version was said.
    Bookmark(String),
}

/// A running watch.
pub(crate) struct Watch<'a> {
    resource: &'a Resource,
    what: String,
    server: String,
    silence: Duration,
    body: Incoming,
    line: Vec<u8>,
    rest: Bytes,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
}

impl<'a> Watch<'a> {
    /// Starts a watch behind `version` that the server ends after `seconds`.
    pub(crate) async fn start(
        client: &Client,
        resource: &'a Resource,
        version: &str,
        seconds: u64,
    ) -> Result<Self, ApiError> {
        let (path, selector) = resource.target();
        let target = format!(
            "{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}{}{selector}",
            if selector.is_empty() { "" } else { "&" }
        );
        let what = format!("watch {resource}");
        let answer = client.get(&target, &what).await?;
        Ok(Self {
            resource,
            what,
            server: client.server(),
            silence: client.patience().silence,
            body: answer.into_body(),
            line: Vec::new(),
            rest: Bytes::new(),
        })
    }

    /// The next item; `None` when the server ended the watch in good order, or it said nothing for long.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, ApiError> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let head = self.rest.split_to(end + 1);
                self.line.extend_from_slice(&head);
                let line = std::mem::take(&mut self.line);
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return self.item(&line).map(Some);
            }
            self.line.extend_from_slice(&self.rest);
            self.rest = Bytes::new();
            if self.line.len() > MAX_ITEM {
                return Err(self.content("a line of more than 8 MiB"));
            }
            match timeout(self.silence, self.body.frame()).await {
                Err(_) => {
                    tracing::debug!(
                        what = self.what,
                        "nothing was said for {} s; beginning again",
                        self.silence.as_secs()
                    );
                    return Ok(None);
                }
                Ok(None) if self.line.is_empty() => return Ok(None),
                Ok(None) => return Err(self.content("cut off within a line")),
                Ok(Some(Err(source))) => {
                    return Err(ApiError::Unreachable {
                        what: self.what.clone(),
                        server: self.server.clone(),
                        source: std::sync::Arc::new(source),
                    });
                }
                Ok(Some(Ok(frame))) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
    }

    fn item(&self, line: &[u8]) -> Result<Item, ApiError> {
        let parsed: Line<'_> = serde_json::from_slice(line)
            .map_err(|error| self.content(&format!("no event of a watch: {error}")))?;
        let json = parsed.object.get().as_bytes();
        match parsed.kind.as_ref() {
            "ADDED" | "MODIFIED" => Ok(Item::Applied(Box::new(Object::read(self.resource, json)))),
            "DELETED" => Ok(Item::Deleted(Box::new(Object::read(self.resource, json)))),
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_slice(json).map_err(|error| {
                    self.content(&format!("a bookmark without a resource version: {error}"))
                })?;
                Ok(Item::Bookmark(bookmark.metadata.resource_version))
            }
            "ERROR" => {
                let code = serde_json::from_slice::<Status>(json).ok().and_then(|s| s.code);
                Err(ApiError::refused(&self.what, code.unwrap_or(500), json, None))
            }
            other => Err(self.content(&format!("an event of the unknown type {other:?}"))),
        }
    }

    fn content(&self, problem: &str) -> ApiError {
        ApiError::Content {
            what: self.what.clone(),
            problem: problem.to_owned(),
        }
    }
}
