//! The one watch stream of a store: etcd serves any number of watchers on it, told apart by their numbers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use etcd_client::{Error, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::classify::{classify, is_compacted, is_too_large};
use super::list::prefix_end;
use super::ops::position;
use super::watch::changes;
use crate::error::Tried;
use crate::follow::SILENCE;
use crate::{ErrorKind, Position, Revision, StoreError, WatchEnd, WatchItem};

/// Bytes of changes that may wait for a slow reader, as many as one message may have. One who is slower still is cut off, and goes on
/// where it was: it must not hold up the others.
const BACKLOG: usize = super::member::DECODE_LIMIT;

/// What a watch receives, and how many bytes of the backlog that is.
pub(super) type Delivery = (Result<WatchItem, WatchEnd>, usize);

/// The near end of a stream. Clones share it.
#[derive(Clone)]
pub(super) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    /// The number of the next watcher; etcd would choose one itself for 0.
    next: AtomicI64,
    /// etcd refused a watcher on it, maybe because its token is over: the next one needs a new stream.
    retired: AtomicBool,
}

/// What a watch is about.
pub(super) struct Wanted {
    pub prefix: String,
    pub from: Revision,
}

impl Wanted {
    /// The request for it, under this number.
    pub fn options(&self, id: i64) -> WatchOptions {
        // No fragments: an answer must hold a whole revision, because the next watch begins behind it.
        WatchOptions::new()
            .with_range(prefix_end(self.prefix.as_bytes()))
            .with_start_revision(self.from)
            .with_progress_notify()
            .with_watch_id(id)
    }
}

/// The far end of a delivery.
pub(super) struct Mailbox {
    pub id: i64,
    pub items: mpsc::UnboundedReceiver<Delivery>,
    pub waiting: Arc<AtomicUsize>,
}

enum Command {
    Watch(i64, Watcher, Revision),
    Cancel {
        id: i64,
        silent: bool,
    },
    Progress(i64),
    /// The connection is given up.
    End,
}

struct Watcher {
    prefix: String,
    items: mpsc::UnboundedSender<Delivery>,
    waiting: Arc<AtomicUsize>,
}

/// The first watcher's number.
pub(super) const FIRST: i64 = 1;

impl Handle {
    /// Takes over a stream that was opened with this watcher as its first.
    pub fn start(stream: WatchStream, wanted: Wanted, endpoint: String) -> (Self, Mailbox) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            next: AtomicI64::new(FIRST + 1),
            retired: AtomicBool::new(false),
        });
        let (watcher, mailbox) = watcher(FIRST, wanted.prefix);
        let pump = Pump {
            stream,
            commands: receiver,
            shared: shared.clone(),
            endpoint,
            watchers: BTreeMap::from([(FIRST, watcher)]),
            pending: VecDeque::from([FIRST]),
            heard: None,
            asked: false,
        };
        tokio::spawn(pump.run());
        (Self { commands, shared }, mailbox)
    }

    /// One more watcher on the stream; `None` when the stream is over or takes no more.
    pub fn join(&self, wanted: &Wanted) -> Option<Mailbox> {
        if self.shared.retired.load(Ordering::Relaxed) {
            return None;
        }
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (watcher, mailbox) = watcher(id, wanted.prefix.clone());
        let command = Command::Watch(id, watcher, wanted.from);
        self.commands.send(command).is_ok().then_some(mailbox)
    }

    /// Ends a watcher. `silent`: it was asked for a sign of life, and none came.
    pub fn cancel(&self, id: i64, silent: bool) {
        let _ = self.commands.send(Command::Cancel { id, silent });
    }

    /// Ends the stream, and with it every watcher.
    pub fn end(&self) {
        let _ = self.commands.send(Command::End);
    }

    /// Asks for a sign of life for a watcher.
    pub fn progress(&self, id: i64) {
        let _ = self.commands.send(Command::Progress(id));
    }
}

fn watcher(id: i64, prefix: String) -> (Watcher, Mailbox) {
    let (sender, items) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let watcher = Watcher {
        prefix,
        items: sender,
        waiting: waiting.clone(),
    };
    (watcher, Mailbox { id, items, waiting })
}

/// Owns the stream: hands out what comes in, and sends what is asked for. It ends with its last watcher.
struct Pump {
    stream: WatchStream,
    commands: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    endpoint: String,
    watchers: BTreeMap<i64, Watcher>,
    /// Watchers that etcd has not confirmed yet, in the order of their requests, which is that of its answers.
    pending: VecDeque<i64>,
    /// When something was heard last, and where etcd stood.
    heard: Option<(Instant, Position)>,
    /// A sign of life was asked for and nothing was heard since.
    asked: bool,
}

impl Pump {
    async fn run(mut self) {
        while !self.watchers.is_empty() {
            let outcome = tokio::select! {
                response = self.stream.message() => match response {
                    Ok(Some(response)) => self.take(&response).await,
                    Ok(None) => return self.end_all(|_, _| WatchEnd::Closed),
                    Err(error) => Err(error),
                },
                command = self.commands.recv() => match command {
                    Some(Command::Cancel { silent: true, .. }) if self.asked => return self.end_all(silent),
                    Some(Command::End) => return self.end_all(given_up),
                    Some(command) => self.obey(command).await,
                    None => return,
                },
            };
            if let Err(error) = outcome {
                return self.end_all(|watcher, endpoint| end(&error, watcher, endpoint));
            }
        }
    }

    fn end_all(self, end: impl Fn(&Watcher, &str) -> WatchEnd) {
        for watcher in self.watchers.values() {
            let _ = watcher.items.send((Err(end(watcher, &self.endpoint)), 0));
        }
    }

    async fn obey(&mut self, command: Command) -> Result<(), Error> {
        match command {
            Command::Watch(id, watcher, from) => {
                let prefix = watcher.prefix.clone();
                self.watchers.insert(id, watcher);
                self.pending.push_back(id);
                let wanted = Wanted { prefix, from };
                let options = wanted.options(id);
                self.stream.watch(wanted.prefix, Some(options)).await
            }
            Command::Cancel { id, .. } => match self.watchers.remove(&id) {
                Some(_) => self.stream.cancel(id).await,
                None => Ok(()),
            },
            Command::Progress(id) => match self.heard {
                // What came for another watcher came over the same stream.
                Some((at, position)) if at.elapsed() < SILENCE => {
                    self.deliver(id, Ok(WatchItem::Alive(position))).await
                }
                _ if self.asked => Ok(()),
                _ => {
                    self.asked = true;
                    self.stream.request_progress().await
                }
            },
            // The loop ends with it.
            Command::End => Ok(()),
        }
    }

    async fn take(&mut self, response: &WatchResponse) -> Result<(), Error> {
        let at = position(response.header())?;
        self.heard = Some((Instant::now(), at));
        self.asked = false;
        let id = response.watch_id();
        if response.created() {
            // One that was refused has no number of its own from etcd 3.5 on.
            let id = match self.watchers.contains_key(&id) {
                true => Some(id),
                false => self.pending.front().copied(),
            };
            self.pending.retain(|pending| Some(*pending) != id);
            let created = self.ended(response).map_or(Ok(WatchItem::Started(at)), Err);
            return match id {
                Some(id) => self.deliver(id, created).await,
                None => Ok(()),
            };
        }
        if self.watchers.contains_key(&id) {
            let item = match self.ended(response) {
                Some(end) => Err(end),
                None if response.events().is_empty() => Ok(WatchItem::Alive(at)),
                None => Ok(WatchItem::Changes(changes(response))),
            };
            return self.deliver(id, item).await;
        }
        if !response.canceled() && response.events().is_empty() {
            self.all_alive(at).await?;
        }
        Ok(())
    }

    /// An answer to a question for a sign of life concerns all.
    async fn all_alive(&mut self, at: Position) -> Result<(), Error> {
        let confirmed = self.watchers.keys().filter(|id| !self.pending.contains(id));
        for id in confirmed.copied().collect::<Vec<_>>() {
            self.deliver(id, Ok(WatchItem::Alive(at))).await?;
        }
        Ok(())
    }

    fn ended(&self, response: &WatchResponse) -> Option<WatchEnd> {
        if response.compact_revision() > 0 {
            return Some(WatchEnd::Compacted);
        }
        response.canceled().then(|| {
            self.shared.retired.store(true, Ordering::Relaxed);
            WatchEnd::Cancelled(response.cancel_reason().to_owned())
        })
    }

    async fn deliver(&mut self, id: i64, item: Result<WatchItem, WatchEnd>) -> Result<(), Error> {
        let Some(watcher) = self.watchers.get(&id) else {
            return Ok(());
        };
        let over = item.is_err();
        let size = size(&item);
        let before = watcher.waiting.fetch_add(size, Ordering::Relaxed);
        let gone = watcher.items.send((item, size)).is_err();
        if over {
            self.watchers.remove(&id);
            return Ok(());
        }
        if before > BACKLOG {
            let slow = "this node reads more slowly than etcd is written to".to_owned();
            let _ = watcher.items.send((Err(WatchEnd::Cancelled(slow)), 0));
        }
        if gone || before > BACKLOG {
            self.watchers.remove(&id);
            return self.stream.cancel(id).await;
        }
        Ok(())
    }
}

/// What an item takes of the backlog.
fn size(item: &Result<WatchItem, WatchEnd>) -> usize {
    match item {
        Ok(WatchItem::Changes(changes)) => changes.iter().map(crate::Change::size).sum(),
        Ok(WatchItem::Started(_) | WatchItem::Alive(_)) | Err(_) => 0,
    }
}

fn end(error: &Error, watcher: &Watcher, endpoint: &str) -> WatchEnd {
    if is_compacted(error) {
        return WatchEnd::Compacted;
    }
    let failure = classify(error);
    let tried = vec![Tried {
        endpoint: endpoint.to_owned(),
        reason: failure.reason,
    }];
    let story =
        StoreError::new(&format!("watch {} in", watcher.prefix), failure.kind, tried).with_hint(failure.hint);
    match is_too_large(error) {
        true => WatchEnd::TooLarge(story),
        false => WatchEnd::Failed(story),
    }
}

/// Another watcher found the stream to be silent.
fn silent(watcher: &Watcher, endpoint: &str) -> WatchEnd {
    failed(watcher, endpoint, ErrorKind::Timeout, "no sign of life")
}

fn given_up(watcher: &Watcher, endpoint: &str) -> WatchEnd {
    let reason = "this host's address changed, and the connection is made anew";
    failed(watcher, endpoint, ErrorKind::Unreachable, reason)
}

fn failed(watcher: &Watcher, endpoint: &str, kind: ErrorKind, reason: &str) -> WatchEnd {
    let tried = vec![Tried {
        endpoint: endpoint.to_owned(),
        reason: reason.to_owned(),
    }];
    let doing = format!("watch {} in", watcher.prefix);
    WatchEnd::Failed(StoreError::new(&doing, kind, tried))
}
