//! One complete list, page by page, each object handed on as soon as it was read.

use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::client::Client;
use crate::error::ApiError;
use crate::follow::Event;
use crate::object::Object;
use crate::resource::Resource;
use crate::split::{SplitError, Splitter};

/// Objects a page, as client-go's pager has it (tools/pager/pager.go).
const PAGE: usize = 500;

/// Which state of the collection will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// Any: what the server has in its cache.
    Any,
    /// One at least as new as this resource version, so that time does not go backwards on another server.
    NotOlderThan(String),
    /// The most recent one.
    Newest,
}

/// Why a list did not come to its end.
#[derive(Debug)]
pub(crate) enum ListStop {
    Failed(ApiError),
    NobodyListens,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Envelope {
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

/// Reads the whole collection. Sends `Init` before the first object and an `InitApply` for each; the resource version from which
/// a watch goes on comes back, and how many objects there were.
pub(crate) async fn list(
    client: &Client,
    resource: &Resource,
    from: &From,
    events: &mpsc::Sender<Event>,
) -> Result<(String, usize), ListStop> {
    let what = format!("list {resource}");
    let (mut next, mut pages, mut objects) = (None::<String>, 0usize, 0usize);
    loop {
        let target = target(resource, from, next.as_deref());
        let answer = client.get(&target, &what).await.map_err(ListStop::Failed)?;
        if pages == 0 {
            send(events, Event::Init).await?;
        }
        let (envelope, count) = page(client, resource, &what, answer.into_body(), events).await?;
        pages += 1;
        objects += count;
        match envelope.metadata.r#continue.filter(|token| !token.is_empty()) {
            Some(token) => next = Some(token),
            None => {
                let version = envelope.metadata.resource_version.filter(|v| !v.is_empty());
                let version = version.ok_or_else(|| {
                    ListStop::Failed(ApiError::Content {
                        what,
                        problem: "a list without a resource version".to_owned(),
                    })
                })?;
                return Ok((version, objects));
            }
        }
        tracing::debug!(%resource, pages, objects, "reading");
    }
}

fn target(resource: &Resource, from: &From, next: Option<&str>) -> String {
    let (path, selector) = resource.target();
    let mut target = format!("{path}?limit={PAGE}");
    match (next, from) {
        (Some(token), _) => {
            target.push_str("&continue=");
            escape(token, &mut target);
        }
        (None, From::Any) => target.push_str("&resourceVersion=0&resourceVersionMatch=NotOlderThan"),
        (None, From::NotOlderThan(version)) => {
            target.push_str(&format!(
                "&resourceVersion={version}&resourceVersionMatch=NotOlderThan"
            ));
        }
        (None, From::Newest) => {}
    }
    if !selector.is_empty() {
        target.push('&');
        target.push_str(&selector);
    }
    target
}

/// Percent-encodes all but the unreserved characters of RFC 3986 section 2.3.
fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

async fn page(
    client: &Client,
    resource: &Resource,
    what: &str,
    mut body: hyper::body::Incoming,
    events: &mpsc::Sender<Event>,
) -> Result<(Envelope, usize), ListStop> {
    let bad = |problem: String| {
        ListStop::Failed(ApiError::Content {
            what: what.to_owned(),
            problem,
        })
    };
    let cut = |error: SplitError| bad(error.text().to_owned());
    let within = client.patience().answer;
    let (mut splitter, mut count) = (Splitter::new(), 0);
    let mut ready = Vec::new();
    loop {
        let frame = match timeout(within, body.frame()).await {
            Err(_) => {
                let (what, server) = (what.to_owned(), client.server());
                return Err(ListStop::Failed(ApiError::Timeout { what, server, within }));
            }
            Ok(None) => break,
            Ok(Some(Err(source))) => {
                let (what, server) = (what.to_owned(), client.server());
                return Err(ListStop::Failed(ApiError::Unreachable {
                    what,
                    server,
                    source: std::sync::Arc::new(source),
                }));
            }
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        splitter
            .push(&frame, |item| ready.push(Object::read(resource, item)))
            .map_err(cut)?;
        for object in ready.drain(..) {
            count += 1;
            send(events, Event::InitApply(Box::new(object))).await?;
        }
    }
    let envelope = splitter.finish().map_err(cut)?;
    let envelope =
        serde_json::from_slice(&envelope).map_err(|error| bad(format!("no list of the API: {error}")))?;
    Ok((envelope, count))
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), ListStop> {
    events.send(event).await.map_err(|_| ListStop::NobodyListens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let services = target(&Resource::Services, &From::Any, None);
        assert!(
            services.starts_with("/api/v1/services?limit=500&resourceVersion=0&resourceVersionMatch=NotOlderThan&labelSelector=%21"),
            "{services}"
        );
        let cidrs = Resource::ServiceCidrs;
        assert_eq!(
            target(&cidrs, &From::Newest, None),
            "/apis/networking.k8s.io/v1/servicecidrs?limit=500"
        );
        // A page that follows must name neither a version nor a match.
        assert_eq!(
            target(&cidrs, &From::NotOlderThan("7".to_owned()), Some("a/b=")),
            "/apis/networking.k8s.io/v1/servicecidrs?limit=500&continue=a%2Fb%3D"
        );
    }
}
