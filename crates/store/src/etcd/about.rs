//! What the members of the cluster say of themselves, for those who look after them.

use futures::future::join_all;

use super::classify::{Failure, classify};
use super::member::Member;
use super::{CALL_DEADLINE, EtcdStore};
use crate::StoreError;
use crate::error::Tried;

/// A member of the cluster, as it is behind one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// etcd's version, such as `3.5.30`.
    pub version: String,
    /// The leader that it follows; 0 for none.
    pub leader: u64,
    /// Size of its database on disk, in bytes.
    pub database: u64,
    /// What it complains about. A full or a damaged database stops all writes.
    pub complaints: Vec<String>,
}

impl EtcdStore {
    /// Asks every endpoint, all at once, and answers in their order: each with what is behind it, or why it does not say.
    pub async fn members(&self) -> Vec<(String, Result<MemberStatus, StoreError>)> {
        let ask = |member| async move { (Member::name(member).to_owned(), status(member).await) };
        join_all(self.shared.members.iter().map(ask)).await
    }
}

async fn status(member: &Member) -> Result<MemberStatus, StoreError> {
    let ask = async { member.connection().await?.maintenance.status().await };
    let failure = match tokio::time::timeout(CALL_DEADLINE, ask).await {
        Ok(Ok(status)) => {
            return Ok(MemberStatus {
                version: status.version().to_owned(),
                leader: status.leader(),
                database: u64::try_from(status.db_size()).unwrap_or(0),
                complaints: status.errors().to_vec(),
            });
        }
        Ok(Err(error)) => classify(&error),
        Err(_) => Failure::timeout(),
    };
    let tried = Tried {
        endpoint: member.name().to_owned(),
        reason: failure.reason.clone(),
    };
    Err(StoreError::new("ask for the status of", failure.kind, vec![tried]).with_hint(failure.hint))
}
