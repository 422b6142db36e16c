//! The calls that this project makes on a store, and no others.

use std::future::Future;

use crate::{
    Created, KeptAlive, KeyValue, LeaseId, Listing, NewLease, Renewal, Replaced, Revision, StoreError,
    TimeToLive,
};

/// A key-value store with revisions and leases. Every call ends within [`CALL_DEADLINE`](crate::CALL_DEADLINE).
///
/// Reads are repeated on the next endpoint when one fails. A write is repeated only when it certainly was not sent; where
/// [`ErrorKind::is_ambiguous`](crate::ErrorKind::is_ambiguous) holds, the caller has to read before it tries again.
pub trait Store: Clone + Send + Sync + 'static {
    /// A running watch; only [`follow`](crate::follow()) uses it.
    type Watch: Watch;

    /// Reads one key, and the revision at which it was read.
    fn get(&self, key: &str)
    -> impl Future<Output = Result<(Option<KeyValue>, Revision), StoreError>> + Send;

    /// Reads every key that begins with `prefix`, all at one revision however many pages it takes.
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Where the store stands, by the word of a quorum: a member that lags behind does not look like a store that went back.
    fn position(&self) -> impl Future<Output = Result<Position, StoreError>> + Send;

    /// Creates a key on a fresh lease, unless it exists. When it does, a lease that was granted for it is revoked again.
    /// `notes` are written in the same transaction, without a lease.
    fn create(
        &self,
        key: &str,
        value: &str,
        lease: NewLease,
        notes: &[(String, String)],
    ) -> impl Future<Output = Result<Created, StoreError>> + Send;

    /// Replaces a key whose last change is exactly `expect_mod_revision`. Otherwise nothing is written and a fresh lease is
    /// revoked again. A fresh lease is not revoked when the outcome is unknown: the key may hang on it.
    fn replace(
        &self,
        key: &str,
        value: &str,
        expect_mod_revision: Revision,
        lease: Renewal,
    ) -> impl Future<Output = Result<Replaced, StoreError>> + Send;

    /// Writes some keys (without a lease) and deletes others in one transaction. No key may be named twice; etcd takes 128
    /// operations unless its --max-txn-ops is raised.
    fn write_all(
        &self,
        puts: &[(String, String)],
        deletes: &[String],
    ) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// Deletes a key whose last change is exactly `expect_mod_revision`; `false` when it is another or the key is gone.
    fn delete_if(
        &self,
        key: &str,
        expect_mod_revision: Revision,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Renews a lease once. Only a positive time to live in etcd's answer counts as alive.
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<KeptAlive, StoreError>> + Send;

    /// Asks how long a lease lives.
    fn time_to_live(&self, lease: LeaseId) -> impl Future<Output = Result<TimeToLive, StoreError>> + Send;

    /// Starts to watch every key that begins with `prefix`, from `from` on (inclusive).
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> impl Future<Output = Result<Self::Watch, StoreError>> + Send;

    /// Gives every connection up, so that what comes next goes over a new one. For a host whose address changed: no packet leaves
    /// from the one of before, and neither end would notice for long.
    fn reconnect(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Writes one key without a lease, whatever stood there.
    fn put(&self, key: &str, value: &str) -> impl Future<Output = Result<Revision, StoreError>> + Send {
        let puts = [(key.to_owned(), value.to_owned())];
        async move { self.write_all(&puts, &[]).await }
    }

    /// Writes several keys in one transaction.
    fn put_all(
        &self,
        puts: &[(String, String)],
    ) -> impl Future<Output = Result<Revision, StoreError>> + Send {
        self.write_all(puts, &[])
    }

    /// Deletes one key; it is no error when there is none.
    fn delete(&self, key: &str) -> impl Future<Output = Result<Revision, StoreError>> + Send {
        let deletes = [key.to_owned()];
        async move { self.write_all(&[], &deletes).await }
    }
}

/// Where a store stands. It never goes back, unless the store was wiped or restored from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// etcd's cluster id.
    pub cluster: u64,
    /// Raft term: a wiped cluster begins again at a low one.
    pub term: u64,
    /// Revision of the store.
    pub revision: Revision,
}

impl Position {
    /// Whether `self` cannot come after `earlier` in the life of one store.
    pub fn went_back_from(&self, earlier: &Self) -> bool {
        self.cluster != earlier.cluster || self.term < earlier.term || self.revision < earlier.revision
    }
}

/// One change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Written.
    Put(KeyValue),
    /// Deleted or expired.
    Delete {
        /// The key.
        key: String,
        /// Revision of the deletion.
        mod_revision: Revision,
    },
}

impl Change {
    /// Revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }

    /// Memory that it takes, in bytes and roughly.
    pub(crate) fn size(&self) -> usize {
        let content = match self {
            Self::Put(kv) => kv.key.len() + kv.value.len(),
            Self::Delete { key, .. } => key.len(),
        };
        size_of::<Self>() + content
    }
}

/// What a watch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchItem {
    /// It runs; the store stands here.
    Started(Position),
    /// Changes in the order in which they happened, complete for each revision.
    Changes(Vec<Change>),
    /// A sign of life.
    Alive(Position),
}

/// Why a watch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEnd {
    /// The stream broke.
    Failed(StoreError),
    /// The server ended it without a word.
    Closed,
    /// The server ended it.
    Cancelled(String),
    /// The history from there on was compacted away.
    Compacted,
    /// One message was larger than the decode limit.
    TooLarge(StoreError),
}

/// A running watch.
pub trait Watch: Send + 'static {
    /// The next item. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<WatchItem, WatchEnd>> + Send;

    /// Asks for a sign of life.
    fn request_progress(&mut self) -> impl Future<Output = Result<(), WatchEnd>> + Send;
}
