//! Following a key range for ever: list, watch, and begin again whenever that ends.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::{backoff, random};
use crate::{Change, ErrorKind, KeyValue, Position, Revision, Store, StoreError, Watch, WatchEnd, WatchItem};

/// Events that wait for a slow receiver before the watch itself is held up.
const QUEUE: usize = 1024;
/// A watch that says nothing for this long is asked for a sign of life. HTTP/2 pings find a frozen server or a dead connection
/// within 15 s; this finds a server that is frozen behind a proxy which answers them.
pub(crate) const SILENCE: Duration = Duration::from_secs(40);
/// Time for that sign: with the silence before, less than a minute.
const SIGN: Duration = Duration::from_secs(15);
/// A watch that was started after an outage counts as going on when it has lived for this long: etcd first says that the watch
/// runs and only then, up to 100 ms later, that its revision was compacted.
const PROOF: Duration = Duration::from_secs(1);
/// A watch that lived for this long was a good one: the next attempt comes quickly again.
const STABLE: Duration = Duration::from_secs(10);

/// What happens to the keys under a prefix.
///
/// `Init`, then `InitApply` for each key, then `InitDone` is the complete state at one revision: what is not in it is gone.
/// It comes at the beginning and again whenever changes may have been missed. In between, `Apply` and `Delete` come in the
/// order of the store. After `Lost` everything keeps its last state until `Resumed` or `Init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A complete state begins.
    Init,
    /// One key of the complete state.
    InitApply(KeyValue),
    /// The complete state ends.
    InitDone {
        /// Where the store stood when it was read.
        position: Position,
    },
    /// A key was written.
    Apply(KeyValue),
    /// A key was deleted or expired.
    Delete {
        /// The key.
        key: String,
        /// Revision of the deletion.
        mod_revision: Revision,
    },
    /// The store cannot be followed at the moment. Said once until it can be again; [`LostReason::WentBack`] is always said.
    Lost {
        /// Why.
        reason: LostReason,
    },
    /// After `Lost`: the watch goes on where it ended, and nothing was missed.
    Resumed {
        /// Everything up to here was said before.
        revision: Revision,
    },
}

/// Why the store cannot be followed at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostReason {
    /// Listing or starting the watch failed.
    Failed(StoreError),
    /// The watch ended.
    Ended(WatchEnd),
    /// The watch gave no sign of life.
    Silent(Duration),
    /// The store is not the one it was: wiped, or restored from a backup. A list follows.
    WentBack {
        /// Where it stood before.
        before: Position,
        /// Where it stands now.
        now: Position,
    },
}

impl LostReason {
    /// Whether the watch cannot go on where it ended.
    fn needs_list(&self) -> bool {
        match self {
            Self::WentBack { .. } | Self::Ended(WatchEnd::Compacted | WatchEnd::TooLarge(_)) => true,
            Self::Failed(_) | Self::Silent(_) => false,
            Self::Ended(WatchEnd::Failed(_) | WatchEnd::Closed | WatchEnd::Cancelled(_)) => false,
        }
    }
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::Ended(WatchEnd::Failed(error) | WatchEnd::TooLarge(error)) => write!(f, "{error}"),
            Self::Ended(WatchEnd::Closed) => f.write_str("etcd closed the watch"),
            Self::Ended(WatchEnd::Cancelled(why)) => write!(f, "etcd cancelled the watch: {why}"),
            Self::Ended(WatchEnd::Compacted) => {
                f.write_str("etcd has compacted the changes that were not seen yet; reading everything again")
            }
            Self::Silent(time) => write!(f, "the watch gave no sign of life for {} s", time.as_secs()),
            Self::WentBack { before, now } => write!(
                f,
                "etcd went back from revision {} (term {}) to {} (term {}): wiped or restored from a backup; \
                 reading everything again",
                before.revision, before.term, now.revision, now.term
            ),
        }
    }
}

/// Follows the keys under `prefix` until the receiver is dropped or the task aborted.
pub fn follow<S: Store>(store: S, prefix: String) -> (JoinHandle<()>, mpsc::Receiver<Event>) {
    follow_since(store, prefix, None)
}

/// The same for somebody who knows where the store stood in an earlier run: if it went back since, that is said
/// ([`LostReason::WentBack`]) before the first list.
pub fn follow_since<S: Store>(
    store: S,
    prefix: String,
    earlier: Option<Position>,
) -> (JoinHandle<()>, mpsc::Receiver<Event>) {
    let (events, receiver) = mpsc::channel(QUEUE);
    let follower = Follower {
        store,
        prefix,
        events: events.clone(),
        seen: None,
        latest: earlier,
        lost: false,
        refused: false,
        ask_first: false,
    };
    let task = tokio::spawn(async move {
        tokio::select! {
            () = follower.run() => {}
            () = events.closed() => {}
        }
    });
    (task, receiver)
}

struct Follower<S> {
    store: S,
    prefix: String,
    events: mpsc::Sender<Event>,
    /// Everything up to here was handed out; `None` before the first list and when a list is due.
    seen: Option<Position>,
    /// The latest that was ever known; a store that stands before it went back.
    latest: Option<Position>,
    /// `Lost` was said and nothing since.
    lost: bool,
    /// And that etcd refuses us was said as well.
    refused: bool,
    /// The watch was cancelled, maybe because its token is over: only a call, not a watch, makes the store authenticate again.
    ask_first: bool,
}

/// Why a session ended.
enum Stop {
    NobodyListens,
    Lost(LostReason),
}

impl<S: Store> Follower<S> {
    async fn run(mut self) {
        let mut backoff = backoff();
        loop {
            let started = Instant::now();
            let reason = match self.session().await {
                Err(Stop::Lost(reason)) => reason,
                Err(Stop::NobodyListens) => return,
                Ok(never) => match never {},
            };
            if reason.needs_list() {
                self.seen = None;
            }
            self.ask_first = matches!(&reason, LostReason::Ended(WatchEnd::Cancelled(_)));
            if let LostReason::WentBack { now, .. } = &reason {
                self.latest = Some(*now);
            }
            if self.say_lost(reason).await.is_err() {
                return;
            }
            if started.elapsed() >= STABLE {
                backoff.reset();
            }
            sleep(backoff.next(random())).await;
        }
    }

    async fn say_lost(&mut self, reason: LostReason) -> Result<(), Stop> {
        let refused = matches!(&reason, LostReason::Failed(error) if error.kind() == ErrorKind::Auth);
        // A store that went back is another matter than an outage: whoever deletes by absence has to know. And an outage
        // that ends in a refusal is one that only an operator can end.
        let news = matches!(reason, LostReason::WentBack { .. }) || (refused && !self.refused);
        self.refused = refused || (self.refused && self.lost);
        if self.lost && !news {
            tracing::debug!(prefix = %self.prefix, %reason, "etcd still cannot be followed");
            return Ok(());
        }
        self.lost = true;
        self.send(Event::Lost { reason }).await
    }

    /// Lists if that is due, then watches until it ends.
    async fn session(&mut self) -> Result<Infallible, Stop> {
        let mut seen = match self.seen {
            Some(seen) if self.ask_first => {
                or_lost(self.store.position().await, LostReason::Failed)?;
                seen
            }
            Some(seen) => seen,
            None => self.list().await?,
        };
        let mut watch = self.start_watch(&mut seen).await?;
        self.latest = Some(seen);
        loop {
            let item = match self.lost {
                true => proof(&mut watch).await?,
                false => Some(next_item(&mut watch).await?),
            };
            self.say_resumed(seen.revision).await?;
            match item {
                // A sign of life may run ahead of the changes (etcd before 3.4.25 and 3.5.8), so `seen` does not follow it.
                Some(WatchItem::Started(now) | WatchItem::Alive(now)) => self.not_behind(&seen, now).await?,
                Some(WatchItem::Changes(changes)) => {
                    for change in changes {
                        seen.revision = seen.revision.max(change.revision());
                        self.send(event(change)).await?;
                    }
                    self.seen = Some(seen);
                    self.latest = Some(seen);
                }
                None => {}
            }
        }
    }

    /// Starts a watch behind `seen` and waits until it runs.
    async fn start_watch(&self, seen: &mut Position) -> Result<S::Watch, Stop> {
        let watch = self.store.watch(&self.prefix, seen.revision + 1).await;
        let mut watch = or_lost(watch, LostReason::Failed)?;
        match next_item(&mut watch).await? {
            WatchItem::Started(now) => {
                self.not_behind(seen, now).await?;
                seen.term = seen.term.max(now.term);
                Ok(watch)
            }
            WatchItem::Alive(_) | WatchItem::Changes(_) => {
                let odd = "changes came before the watch was confirmed".to_owned();
                Err(Stop::Lost(LostReason::Ended(WatchEnd::Cancelled(odd))))
            }
        }
    }

    async fn list(&mut self) -> Result<Position, Stop> {
        let listing = self.store.list(&self.prefix).await;
        let listing = or_lost(listing, LostReason::Failed)?;
        let now = listing.position;
        if let Some(before) = self.latest.filter(|before| now.went_back_from(before)) {
            self.send(Event::Lost {
                reason: LostReason::WentBack { before, now },
            })
            .await?;
        }
        self.send(Event::Init).await?;
        for kv in listing.kvs {
            self.send(Event::InitApply(kv)).await?;
        }
        self.lost = false;
        let position = listing.position;
        self.send(Event::InitDone { position }).await?;
        self.seen = Some(position);
        self.latest = Some(position);
        Ok(position)
    }

    /// A watch may be served by a member that lags behind; only a quorum's word says that the store itself went back.
    async fn not_behind(&self, seen: &Position, now: Position) -> Result<(), Stop> {
        if !now.went_back_from(seen) {
            return Ok(());
        }
        let now = or_lost(self.store.position().await, LostReason::Failed)?;
        if now.went_back_from(seen) {
            let before = *seen;
            return Err(Stop::Lost(LostReason::WentBack { before, now }));
        }
        let lags = "the member that serves it lags behind the others".to_owned();
        Err(Stop::Lost(LostReason::Ended(WatchEnd::Cancelled(lags))))
    }

    async fn say_resumed(&mut self, revision: Revision) -> Result<(), Stop> {
        if std::mem::take(&mut self.lost) {
            self.send(Event::Resumed { revision }).await?;
        }
        Ok(())
    }

    async fn send(&self, event: Event) -> Result<(), Stop> {
        self.events.send(event).await.map_err(|_| Stop::NobodyListens)
    }
}

/// The next item, or nothing for long enough to believe in the watch.
async fn proof<W: Watch>(watch: &mut W) -> Result<Option<WatchItem>, Stop> {
    match timeout(PROOF, watch.next()).await {
        Ok(item) => or_lost(item, LostReason::Ended).map(Some),
        Err(_) => Ok(None),
    }
}

/// The next item, with a question for a sign of life in between.
async fn next_item<W: Watch>(watch: &mut W) -> Result<WatchItem, Stop> {
    let item = match timeout(SILENCE, watch.next()).await {
        Ok(item) => item,
        Err(_) => {
            let sign = async {
                watch.request_progress().await?;
                watch.next().await
            };
            match timeout(SIGN, sign).await {
                Ok(item) => item,
                Err(_) => return Err(Stop::Lost(LostReason::Silent(SILENCE + SIGN))),
            }
        }
    };
    or_lost(item, LostReason::Ended)
}

fn or_lost<T, E>(result: Result<T, E>, reason: impl FnOnce(E) -> LostReason) -> Result<T, Stop> {
    result.map_err(|error| Stop::Lost(reason(error)))
}

fn event(change: Change) -> Event {
    match change {
        Change::Put(kv) => Event::Apply(kv),
        Change::Delete { key, mod_revision } => Event::Delete { key, mod_revision },
    }
}
