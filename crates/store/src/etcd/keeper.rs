//! Renewal of leases: a stream that stays open for each lease, and one message on it a renewal.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::{Instant, timeout_at};

use super::calls::{CallError, Repeat};
use super::classify::{Failure, is_lease_gone};
use super::{CALL_DEADLINE, EtcdStore};
use crate::error::Tried;
use crate::{KeptAlive, LeaseId, StoreError};

/// A stream whose lease nobody renewed for this long is closed: renewals are minutes apart, so the lease was given up.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// The open streams.
#[derive(Default)]
pub(super) struct Keepers(Mutex<HashMap<LeaseId, Keeper>>);

/// A stream with no answer under way.
struct Keeper {
    requests: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    /// The member that serves it.
    member: usize,
    used: Instant,
}

impl Keeper {
    /// One message, and the time to live in its answer; 0 for a lease that is gone.
    async fn renew(&mut self) -> Result<i64, Error> {
        self.requests.keep_alive().await?;
        match self.answers.message().await? {
            Some(answer) => Ok(answer.ttl()),
            None => Err(Error::LeaseKeepAliveError("etcd closed the stream".to_owned())),
        }
    }
}

impl Keepers {
    /// Whoever renews has the stream to himself, and brings it back only when every answer was read: one that came late would
    /// be taken for the answer to the next question.
    fn take(&self, lease: LeaseId) -> Option<Keeper> {
        self.lock().remove(&lease)
    }

    fn bring_back(&self, lease: LeaseId, keeper: Keeper) {
        let now = Instant::now();
        let mut keepers = self.lock();
        keepers.retain(|_, other| now < other.used + LEFT_BEHIND);
        keepers.insert(lease, Keeper { used: now, ..keeper });
    }

    /// Closes every stream that nobody has in hand.
    pub(super) fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<LeaseId, Keeper>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EtcdStore {
    pub(super) async fn renew(&self, lease: LeaseId) -> Result<KeptAlive, StoreError> {
        let doing = format!("renew lease {lease} in");
        let deadline = Instant::now() + CALL_DEADLINE;
        if let Some(mut keeper) = self.shared.keepers.take(lease) {
            match timeout_at(deadline, keeper.renew()).await {
                Ok(Ok(ttl)) => return Ok(self.kept(lease, keeper, ttl)),
                // The connection was lost since the last renewal: there may be another one by now.
                Ok(Err(error)) => tracing::debug!(%lease, %error, "the stream of renewals is opened again"),
                Err(_) => return Err(self.no_answer(&doing, keeper.member).await),
            }
        }
        match timeout_at(deadline, self.open_keeper(&doing, lease)).await {
            Ok(opened) => opened,
            Err(_) => Err(self.no_answer(&doing, self.preferred()).await),
        }
    }

    async fn open_keeper(&self, doing: &str, lease: LeaseId) -> Result<KeptAlive, StoreError> {
        let opened = self
            .call(doing, Repeat::Always, |mut connection| async move {
                // The client library keeps the answer to its first request to itself; the second is ours to read.
                let (mut requests, mut answers) = connection.lease.keep_alive(lease.0).await?;
                requests.keep_alive().await?;
                let ttl = answers.message().await?.map_or(0, |answer| answer.ttl());
                Ok((requests, answers, ttl))
            })
            .await;
        match opened {
            Ok((requests, answers, ttl)) => {
                let keeper = Keeper {
                    requests,
                    answers,
                    member: self.preferred(),
                    used: Instant::now(),
                };
                Ok(self.kept(lease, keeper, ttl))
            }
            Err(CallError { raw: Some(raw), .. }) if is_lease_gone(&raw) => Ok(KeptAlive::Expired),
            Err(error) => Err(error.story),
        }
    }

    fn kept(&self, lease: LeaseId, keeper: Keeper, ttl: i64) -> KeptAlive {
        match u32::try_from(ttl) {
            Ok(ttl_secs) if ttl_secs > 0 => {
                self.shared.keepers.bring_back(lease, keeper);
                KeptAlive::Alive { ttl_secs }
            }
            _ => KeptAlive::Expired,
        }
    }

    async fn no_answer(&self, doing: &str, index: usize) -> StoreError {
        let failure = Failure::timeout();
        let mut tried = Vec::new();
        if let Some(member) = self.shared.members.get(index) {
            self.after(index, member, &failure).await;
            tried.push(Tried {
                endpoint: member.name().to_owned(),
                reason: failure.reason.clone(),
            });
        }
        StoreError::new(doing, failure.kind, tried)
    }
}
