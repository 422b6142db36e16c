//! Following a collection for ever: list, watch, and begin again whenever that ends.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::{backoff, heeding, random};
use crate::client::Client;
use crate::error::ApiError;
use crate::list::{From, ListStop, list};
use crate::object::{Object, ObjectName};
use crate::resource::Resource;
use crate::watch::{Item, Watch};

/// Events that wait for a slow receiver before the connection itself is held up.
const QUEUE: usize = 256;
/// A watch that was begun after an outage counts as going on when it has lived for this long: an expired resource version may
/// be told as the first event of a watch.
const PROOF: Duration = Duration::from_secs(1);
/// A watch that lived for this long was a good one: the next attempt comes quickly again.
const STABLE: Duration = Duration::from_secs(5);
/// Reasons of one outage that are told; the cause of an outage may change while it lasts, but not for ever.
const TOLD_REASONS: usize = 8;
/// A collection that the server does not know is asked for again this often: the server may be upgraded.
const ABSENT: Duration = Duration::from_secs(300);

/// What happens in a collection.
///
/// `Init`, then `InitApply` for each object, then `InitDone` is its complete state: what is not in it is gone. It comes at the
/// beginning and again whenever changes may have been missed. In between, `Apply` and `Delete` come in the order of the API
/// server. After `Lost` everything keeps its last state until `Resumed` or `Init`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A complete state begins. A second `Init` without `InitDone` discards what came since the first.
    Init,
    /// One object of the complete state.
    InitApply(Box<Object>),
    /// The complete state ends.
    InitDone {
        /// Resource version of the state.
        version: String,
    },
    /// An object was made or changed.
    Apply(Box<Object>),
    /// An object is gone, or no longer selected.
    Delete(ObjectName),
    /// The collection cannot be followed at the moment. Each reason is said once until it can be again.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// After `Lost`: the watch goes on where it ended, and nothing was missed.
    Resumed,
}

/// Why a collection cannot be followed at the moment.
#[derive(Debug, Clone)]
pub struct LostReason(pub ApiError);

impl PartialEq for LostReason {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl fmt::Display for LostReason {
    /// With every cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = std::error::Error::source(&self.0);
        while let Some(next) = cause {
            write!(f, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    }
}

/// Follows a collection until the receiver is dropped or the task aborted.
pub fn follow(client: Client, resource: Resource) -> (JoinHandle<()>, mpsc::Receiver<Event>) {
    let (events, receiver) = mpsc::channel(QUEUE);
    let follower = Follower {
        client,
        resource,
        events: events.clone(),
        seen: None,
        from: From::Any,
        told: BTreeSet::new(),
    };
    let task = tokio::spawn(async move {
        tokio::select! {
            () = follower.run() => {}
            () = events.closed() => {}
        }
    });
    (task, receiver)
}

struct Follower {
    client: Client,
    resource: Resource,
    events: mpsc::Sender<Event>,
    /// Everything up to this resource version was handed out; `None` when a list is due.
    seen: Option<String>,
    /// Which state the next list may give.
    from: From,
    /// Reasons for which `Lost` was said since it could be followed last.
    told: BTreeSet<String>,
}

/// How a session ended.
enum Stop {
    NobodyListens,
    /// In good order.
    Ended,
    Lost(ApiError),
}

impl std::convert::From<ListStop> for Stop {
    fn from(stop: ListStop) -> Self {
        match stop {
            ListStop::Failed(error) => Self::Lost(error),
            ListStop::NobodyListens => Self::NobodyListens,
        }
    }
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = backoff();
        loop {
            let started = Instant::now();
            let stop = match self.session().await {
                Ok(never) => match never {},
                Err(stop) => stop,
            };
            if started.elapsed() >= STABLE {
                backoff.reset();
            }
            let delay = match stop {
                Stop::NobodyListens => return,
                // A server that ends watches at once must not be asked in a tight loop.
                Stop::Ended if started.elapsed() >= PROOF => continue,
                Stop::Ended => backoff.next(random()),
                Stop::Lost(error) if error.is_not_found() && self.resource.may_be_absent() => {
                    if self.absent().await.is_err() {
                        return;
                    }
                    ABSENT
                }
                Stop::Lost(error) => {
                    let delay = self.delay(&error, started.elapsed(), &mut backoff);
                    if self.say_lost(error).await.is_err() {
                        return;
                    }
                    delay
                }
            };
            sleep(delay).await;
        }
    }

    /// What has to be read anew after `error`, and when, for a session that lived for so long.
    fn delay(&mut self, error: &ApiError, lived: Duration, backoff: &mut flannel_model::Backoff) -> Duration {
        if error.is_expired() {
            // A watch that expired is followed by a list at once, from any server that has caught up with it. A list that was
            // refused for its version is asked for as it is most recently.
            self.from = match (self.seen.take(), error) {
                (Some(version), ApiError::Refused { .. }) => From::NotOlderThan(version),
                (_, _) => From::Newest,
            };
            if self.from != From::Newest && lived >= PROOF {
                return Duration::ZERO;
            }
        }
        heeding(backoff.next(random()), error.retry_after())
    }

    async fn say_lost(&mut self, error: ApiError) -> Result<(), Stop> {
        let reason = LostReason(error);
        // Changes that are too old to be told are no outage: a list follows.
        let news =
            !reason.0.is_expired() && self.told.len() < TOLD_REASONS && self.told.insert(reason.to_string());
        if !news {
            tracing::debug!(resource = %self.resource, %reason, "still to be read");
            return Ok(());
        }
        self.send(Event::Lost { reason }).await
    }

    /// The server has no such collection: it is empty, as long as that lasts.
    async fn absent(&mut self) -> Result<(), Stop> {
        self.seen = None;
        self.told.clear();
        self.send(Event::Init).await?;
        self.send(Event::InitDone {
            version: String::new(),
        })
        .await
    }

    /// Lists if that is due, then watches until it ends.
    async fn session(&mut self) -> Result<Infallible, Stop> {
        self.client.refresh();
        let version = match &self.seen {
            Some(version) => version.clone(),
            None => self.list().await?,
        };
        let watch = self.client.patience().watch;
        let seconds = watch + random() % watch.max(1);
        let resource = self.resource.clone();
        let mut watch = Watch::start(&self.client, &resource, &version, seconds)
            .await
            .map_err(Stop::Lost)?;
        loop {
            let item = match self.told.is_empty() {
                false => timeout(PROOF, watch.next()).await.ok(),
                true => Some(watch.next().await),
            };
            let item = item.transpose().map_err(Stop::Lost)?;
            if !std::mem::take(&mut self.told).is_empty() {
                self.send(Event::Resumed).await?;
            }
            match item {
                None => {}
                Some(None) => return Err(Stop::Ended),
                Some(Some(item)) => self.take(item).await?,
            }
        }
    }

    async fn take(&mut self, item: Item) -> Result<(), Stop> {
        let (version, event) = match item {
            Item::Bookmark(version) => (version, None),
            Item::Applied(object) => (object.version.clone(), Some(Event::Apply(object))),
            Item::Deleted(object) => (object.version.clone(), Some(Event::Delete(object.name))),
        };
        self.check_not_behind(&version)?;
        if let Some(event) = event {
            self.send(event).await?;
        }
        if !version.is_empty() {
            self.seen = Some(version);
        }
        Ok(())
    }

    /// A server whose storage was restored from a backup says nothing of what is older than the version that was asked for, and
    /// that is everything, until it has caught up; its bookmarks show it.
    fn check_not_behind(&self, now: &str) -> Result<(), Stop> {
        // Versions are compared as numbers, as Kubernetes allows since 1.35 (KEP-5504).
        let number = |text: &str| text.parse::<u64>().ok();
        match (self.seen.as_deref().and_then(number), number(now)) {
            (Some(before), Some(now)) if now < before => Err(Stop::Lost(ApiError::WentBack {
                what: format!("watch {}", self.resource),
                before,
                now,
            })),
            _ => Ok(()),
        }
    }

    async fn list(&mut self) -> Result<String, Stop> {
        let (version, objects) = list(&self.client, &self.resource, &self.from, &self.events).await?;
        tracing::info!(resource = %self.resource, objects, version, "read from the API server");
        self.told.clear();
        self.send(Event::InitDone {
            version: version.clone(),
        })
        .await?;
        self.from = From::NotOlderThan(version.clone());
        self.seen = Some(version.clone());
        Ok(version)
    }

    async fn send(&self, event: Event) -> Result<(), Stop> {
        self.events.send(event).await.map_err(|_| Stop::NobodyListens)
    }
}
