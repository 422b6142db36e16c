//! One call: deadline, the next member when one fails, and an error that tells the story.

use std::future::Future;

use etcd_client::Error;
use tokio::time::Instant;

use super::classify::{Failure, classify};
use super::member::{Connection, Member};
use super::{CALL_DEADLINE, EtcdStore};
use crate::error::Tried;
use crate::{ErrorKind, StoreError};

/// When a call may be sent a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Reads: whenever the connection failed.
    Always,
    /// Writes: only when the first was certainly not sent.
    IfUnsent,
}

impl Repeat {
    fn allows(self, failure: &Failure) -> bool {
        match failure.kind {
            ErrorKind::Unreachable | ErrorKind::NoLeader => self == Self::Always || failure.unsent,
            ErrorKind::Timeout | ErrorKind::Auth | ErrorKind::Config | ErrorKind::Other => false,
        }
    }
}

/// Why a call failed: the sorted story, and the last raw error for those who look for one special answer.
pub(super) struct CallError {
    pub story: StoreError,
    pub raw: Option<Error>,
}

async fn attempt<T, F, Fut>(
    member: &Member,
    call: &F,
    deadline: Instant,
) -> Result<T, (Failure, Option<Error>)>
where
    F: Fn(Connection) -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let attempt = async { call(member.connection().await?).await };
    match tokio::time::timeout_at(deadline, attempt).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err((explained(member, classify(&error)), Some(error))),
        Err(_) => Err((Failure::timeout(), None)),
    }
}

/// A server that asks for a certificate ends the connection of a client without one. With TLS 1.3 that is after the client's handshake
/// (RFC 8446 §4.4.2.4 and §6.2), and the alert that says why is often lost with the connection.
fn explained(member: &Member, failure: Failure) -> Failure {
    let ended = failure.kind == ErrorKind::Unreachable && !failure.unsent && failure.hint.is_none();
    if !ended || !member.is_reached_without_certificate() {
        return failure;
    }
    let hint = "is etcd running and reachable from this node? If it asks its clients for a certificate \
                (--client-cert-auth), give --etcd-certfile and --etcd-keyfile";
    Failure {
        hint: Some(hint),
        ..failure
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> Self {
        error.story
    }
}

impl EtcdStore {
    /// Runs `call` on the preferred member, and on the others as far as `repeat` allows. `doing` completes
    /// "cannot … etcd".
    pub(super) async fn call<T, F, Fut>(&self, doing: &str, repeat: Repeat, call: F) -> Result<T, CallError>
    where
        F: Fn(Connection) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, Error>> + Send,
        T: Send,
    {
        let deadline = Instant::now() + CALL_DEADLINE;
        let mut tried = Vec::new();
        let mut last: Option<(Failure, Option<Error>)> = None;
        for (index, member) in self.order() {
            let mut outcome = attempt(member, &call, deadline).await;
            if let Err((failure, _)) = &outcome
                && failure.kind == ErrorKind::Auth
            {
                // A token that ran out, a password or a certificate that was changed: once more with what is on disk now.
                // etcd checks who asks before it does anything, so this is safe for writes as well.
                member.forget().await;
                outcome = attempt(member, &call, deadline).await;
            }
            let (failure, raw) = match outcome {
                Ok(value) => {
                    self.prefer(index);
                    return Ok(value);
                }
                Err(failed) => failed,
            };
            tried.push(Tried {
                endpoint: member.name().to_owned(),
                reason: failure.reason.clone(),
            });
            self.after(index, member, &failure).await;
            let again = repeat.allows(&failure);
            last = Some((failure, raw));
            if !again {
                break;
            }
        }
        let (failure, raw) = last.unwrap_or_else(|| (Failure::timeout(), None));
        Err(CallError {
            story: StoreError::new(doing, failure.kind, tried).with_hint(failure.hint),
            raw,
        })
    }

    /// What a failure means for the calls to come.
    pub(super) async fn after(&self, index: usize, member: &Member, failure: &Failure) {
        match failure.kind {
            ErrorKind::Unreachable | ErrorKind::NoLeader => self.turn_from(index),
            // The connection may hang for good (a black hole): the next call must not use it.
            ErrorKind::Timeout => {
                self.turn_from(index);
                member.forget().await;
            }
            ErrorKind::Auth => member.forget().await,
            ErrorKind::Config | ErrorKind::Other => {}
        }
    }
}
