//! A store in memory for tests: revisions, leases and watches as in etcd, and failures on demand.
//!
//! Time is tokio's, so a test with paused time decides when a lease expires.

mod state;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch as signal;

use crate::error::Tried;
use crate::{
    CALL_DEADLINE, Created, ErrorKind, KeptAlive, KeyValue, LeaseId, Listing, NewLease, Position, Renewal,
    Replaced, Revision, Store, StoreError, TimeToLive, WatchEnd,
};
use state::State;
pub use watch::MemoryWatch;

/// An etcd in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: signal::Sender<()>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new()),
                changed: signal::Sender::new(()),
            }),
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every call fails like this; `None` ends it.
    pub fn fail_calls(&self, kind: Option<ErrorKind>) {
        self.change(|state| state.failure = kind);
    }

    /// From now on writes happen, but their answers are lost ([`ErrorKind::Timeout`]).
    pub fn lose_answers(&self, lose: bool) {
        self.change(|state| state.lose_answers = lose);
    }

    /// A frozen server: calls run into their deadline, watches say nothing.
    pub fn freeze(&self, frozen: bool) {
        self.change(|state| state.frozen = frozen);
    }

    /// Ends all running watches.
    pub fn end_watches(&self, end: WatchEnd) {
        self.change(|state| {
            state.watch_generation += 1;
            state.watch_end = end;
        });
    }

    /// Forgets the history up to now.
    pub fn compact(&self) {
        self.change(|state| state.compacted = state.position.revision);
    }

    /// Loses everything, as when the data directory is deleted and etcd begins anew. Running watches are closed.
    pub fn wipe(&self) {
        self.change(State::wipe);
        self.end_watches(WatchEnd::Closed);
    }

    /// How many leases are alive: a leak shows here.
    pub fn leases(&self) -> usize {
        let mut state = self.state();
        state.expire();
        state.leases.len()
    }

    /// How many watches were started so far: a hot loop shows here.
    pub fn watches_started(&self) -> u64 {
        self.state().watches_started
    }

    /// Writes a key on a fresh lease whatever stood there, as a foreign node would.
    pub fn put_leased(&self, key: &str, value: &str, ttl_secs: u32) -> LeaseId {
        self.change(|state| {
            let lease = state.grant(NewLease::any(ttl_secs));
            state.put(key, value, lease);
            lease
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = {
            let mut state = self.state();
            state.expire();
            change(&mut state)
        };
        self.shared.changed.send_replace(());
        result
    }

    /// What stands between a call and its answer.
    async fn enter(&self, doing: &str) -> Result<(), StoreError> {
        let (frozen, failure) = {
            let state = self.state();
            (state.frozen, state.failure)
        };
        if frozen {
            tokio::time::sleep(CALL_DEADLINE).await;
            return Err(failed(doing, ErrorKind::Timeout));
        }
        match failure {
            Some(kind) => Err(failed(doing, kind)),
            None => Ok(()),
        }
    }

    async fn write<T>(&self, doing: &str, change: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        self.enter(doing).await?;
        let result = self.change(change);
        match self.state().lose_answers {
            true => Err(failed(doing, ErrorKind::Timeout)),
            false => Ok(result),
        }
    }
}

fn failed(doing: &str, kind: ErrorKind) -> StoreError {
    let tried = Tried {
        endpoint: "memory".to_owned(),
        reason: "injected failure".to_owned(),
    };
    StoreError::new(doing, kind, vec![tried])
}

impl Store for MemoryStore {
    type Watch = MemoryWatch;

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError> {
        self.enter(&format!("read {key} from")).await?;
        let mut state = self.state();
        state.expire();
        Ok((state.keys.get(key).cloned(), state.position.revision))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.enter(&format!("list the keys under {prefix} in")).await?;
        let mut state = self.state();
        state.expire();
        let under = state.keys.values().filter(|kv| kv.key.starts_with(prefix));
        Ok(Listing {
            kvs: under.cloned().collect(),
            revision: state.position.revision,
            position: state.position,
        })
    }

    async fn position(&self) -> Result<Position, StoreError> {
        self.enter("ask for the revision of").await?;
        let mut state = self.state();
        state.expire();
        Ok(state.position)
    }

    async fn create(
        &self,
        key: &str,
        value: &str,
        lease: NewLease,
        notes: &[(String, String)],
    ) -> Result<Created, StoreError> {
        self.write(&format!("create {key} in"), |state| {
            if state.keys.contains_key(key) {
                return Created::Lost;
            }
            let lease = state.grant(lease);
            let revision = state.put(key, value, lease);
            for (key, value) in notes {
                state.put_at(key, value, LeaseId::NONE);
            }
            Created::Won { lease, revision }
        })
        .await
    }

    async fn replace(
        &self,
        key: &str,
        value: &str,
        expect_mod_revision: Revision,
        lease: Renewal,
    ) -> Result<Replaced, StoreError> {
        self.write(&format!("replace {key} in"), |state| {
            if state.mod_revision(key) != expect_mod_revision {
                return Replaced::Lost;
            }
            let lease = match lease {
                Renewal::Keep(lease) => lease,
                Renewal::Grant(lease) => state.grant(lease),
                Renewal::None => LeaseId::NONE,
            };
            let revision = state.put(key, value, lease);
            Replaced::Won { lease, revision }
        })
        .await
    }

    async fn write_all(&self, puts: &[(String, String)], deletes: &[String]) -> Result<Revision, StoreError> {
        self.write("change keys in", |state| state.write_all(puts, deletes))
            .await
    }

    async fn delete_if(&self, key: &str, expect_mod_revision: Revision) -> Result<bool, StoreError> {
        self.write(&format!("delete {key} from"), |state| {
            let ours = state.keys.contains_key(key) && state.mod_revision(key) == expect_mod_revision;
            if ours {
                state.write_all(&[], &[key.to_owned()]);
            }
            ours
        })
        .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<KeptAlive, StoreError> {
        self.write(&format!("renew lease {lease} in"), |state| {
            match state.renew(lease) {
                Some(ttl_secs) => KeptAlive::Alive { ttl_secs },
                None => KeptAlive::Expired,
            }
        })
        .await
    }

    async fn time_to_live(&self, lease: LeaseId) -> Result<TimeToLive, StoreError> {
        self.enter(&format!("read lease {lease} from")).await?;
        let mut state = self.state();
        state.expire();
        Ok(state.time_to_live(lease))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<MemoryWatch, StoreError> {
        self.enter(&format!("watch {prefix} in")).await?;
        self.state().watches_started += 1;
        Ok(MemoryWatch::new(self.clone(), prefix, from))
    }
}
