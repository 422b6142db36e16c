//! The calls of [`Store`] on etcd.

use etcd_client::{
    Compare, CompareOp, Error, LeaseGrantOptions, PutOptions, ResponseHeader, Txn, TxnOp, TxnResponse,
};

use super::EtcdStore;
use super::calls::{CallError, Repeat};
use super::classify::{is_lease_gone, is_lease_there};
use super::watch::EtcdWatch;
use crate::{
    Created, KeptAlive, KeyValue, LeaseId, Listing, NewLease, Position, Renewal, Replaced, Revision, Store,
    StoreError, TimeToLive,
};

impl Store for EtcdStore {
    type Watch = EtcdWatch;

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let doing = format!("read {key} from");
        let mut response = self
            .call(&doing, Repeat::Always, |mut connection| async move {
                connection.kv.get(key, None).await
            })
            .await?;
        let revision = revision(response.header());
        Ok((response.take_kvs().pop().map(key_value), revision))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.list_pages(prefix).await
    }

    async fn position(&self) -> Result<Position, StoreError> {
        let response = self
            .call(
                "ask for the revision of",
                Repeat::Always,
                |mut connection| async move {
                    // A key that nobody has; the answer's header is what counts.
                    let response = connection.kv.get("\0", None).await?;
                    position(response.header())
                },
            )
            .await?;
        Ok(response)
    }

    async fn create(
        &self,
        key: &str,
        value: &str,
        lease: NewLease,
        notes: &[(String, String)],
    ) -> Result<Created, StoreError> {
        let doing = format!("create {key} in");
        let (lease, fresh) = self.grant(&doing, lease).await?;
        let notes = notes.iter().map(|(key, value)| put(key, value, LeaseId::NONE));
        let txn = Txn::new()
            .when([Compare::version(key, CompareOp::Equal, 0)])
            .and_then(
                [put(key, value, lease)]
                    .into_iter()
                    .chain(notes)
                    .collect::<Vec<_>>(),
            );
        let outcome = self.fenced(&doing, txn, fresh.then_some(lease)).await?;
        Ok(match outcome {
            Some(revision) => Created::Won { lease, revision },
            None => Created::Lost,
        })
    }

    async fn replace(
        &self,
        key: &str,
        value: &str,
        expect_mod_revision: Revision,
        lease: Renewal,
    ) -> Result<Replaced, StoreError> {
        let doing = format!("replace {key} in");
        let (lease, fresh) = match lease {
            Renewal::Keep(lease) => (lease, None),
            Renewal::None => (LeaseId::NONE, None),
            Renewal::Grant(lease) => {
                let (lease, fresh) = self.grant(&doing, lease).await?;
                (lease, fresh.then_some(lease))
            }
        };
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expect_mod_revision)])
            .and_then([put(key, value, lease)]);
        let outcome = self.fenced(&doing, txn, fresh).await?;
        Ok(match outcome {
            Some(revision) => Replaced::Won { lease, revision },
            None => Replaced::Lost,
        })
    }

    async fn write_all(&self, puts: &[(String, String)], deletes: &[String]) -> Result<Revision, StoreError> {
        let doing = match (puts, deletes) {
            ([(key, _)], []) => format!("write {key} to"),
            ([], [key]) => format!("delete {key} from"),
            _ => format!("change {} keys in", puts.len() + deletes.len()),
        };
        let puts = puts.iter().map(|(key, value)| put(key, value, LeaseId::NONE));
        let deletes = deletes.iter().map(|key| TxnOp::delete(key.as_str(), None));
        let txn = Txn::new().and_then(puts.chain(deletes).collect::<Vec<_>>());
        let response = self.transact(&doing, txn).await?;
        Ok(revision(response.header()))
    }

    async fn delete_if(&self, key: &str, expect_mod_revision: Revision) -> Result<bool, StoreError> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expect_mod_revision)])
            .and_then([TxnOp::delete(key, None)]);
        let response = self.transact(&format!("delete {key} from"), txn).await?;
        Ok(response.succeeded())
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<KeptAlive, StoreError> {
        self.renew(lease).await
    }

    async fn time_to_live(&self, lease: LeaseId) -> Result<TimeToLive, StoreError> {
        let doing = format!("read lease {lease} from");
        let answer = self
            .call(&doing, Repeat::Always, |mut connection| async move {
                connection.lease.time_to_live(lease.0, None).await
            })
            .await;
        match answer {
            // etcd answers −1 for a lease that is gone, and 0 in its last second.
            Ok(answer) if answer.ttl() >= 0 && answer.granted_ttl() > 0 => Ok(TimeToLive::Remaining {
                secs: seconds(answer.ttl()).unwrap_or(0),
                granted_secs: seconds(answer.granted_ttl()).unwrap_or(0),
            }),
            Ok(_) => Ok(TimeToLive::Expired),
            Err(CallError { raw: Some(raw), .. }) if is_lease_gone(&raw) => Ok(TimeToLive::Expired),
            Err(error) => Err(error.story),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<EtcdWatch, StoreError> {
        self.start_watch(prefix, from).await
    }

    async fn reconnect(&self) {
        self.give_up_connections().await;
    }
}

impl EtcdStore {
    /// The lease, and whether it was granted just now.
    async fn grant(&self, doing: &str, lease: NewLease) -> Result<(LeaseId, bool), StoreError> {
        let ttl = i64::from(lease.ttl_secs.max(1));
        // With a number of ours, a second grant finds the first one's lease.
        let repeat = match lease.id.is_none() {
            true => Repeat::IfUnsent,
            false => Repeat::Always,
        };
        let granted = self
            .call(doing, repeat, |mut connection| async move {
                let options = (!lease.id.is_none()).then(|| LeaseGrantOptions::new().with_id(lease.id.0));
                connection.lease.grant(ttl, options).await
            })
            .await;
        match granted {
            Ok(granted) => Ok((LeaseId(granted.id()), true)),
            Err(CallError { raw: Some(raw), .. }) if is_lease_there(&raw) => Ok((lease.id, false)),
            Err(error) => Err(error.story),
        }
    }

    async fn transact(&self, doing: &str, txn: Txn) -> Result<TxnResponse, StoreError> {
        let txn = &txn;
        let response = self
            .call(doing, Repeat::IfUnsent, |mut connection| async move {
                connection.kv.txn(txn.clone()).await
            })
            .await?;
        Ok(response)
    }

    /// Runs a guarded transaction: its revision, or `None` when the guard did not hold. `fresh` is a lease that was granted
    /// for it; it goes again unless the key hangs on it or might.
    async fn fenced(
        &self,
        doing: &str,
        txn: Txn,
        fresh: Option<LeaseId>,
    ) -> Result<Option<Revision>, StoreError> {
        let outcome = self.transact(doing, txn).await;
        let useless = match &outcome {
            Ok(response) => !response.succeeded(),
            Err(error) => !error.kind().is_ambiguous(),
        };
        if let Some(lease) = fresh.filter(|_| useless) {
            self.revoke(lease).await;
        }
        let response = outcome?;
        Ok(response.succeeded().then(|| revision(response.header())))
    }

    /// Best effort: a lease without keys harms nobody and expires.
    async fn revoke(&self, lease: LeaseId) {
        let doing = format!("revoke lease {lease} in");
        let revoked = self
            .call(&doing, Repeat::Always, |mut connection| async move {
                connection.lease.revoke(lease.0).await
            })
            .await;
        if let Err(error) = revoked {
            let gone = error.raw.as_ref().is_some_and(is_lease_gone);
            if !gone {
                tracing::debug!(error = %error.story, "an unused lease stays until it expires");
            }
        }
    }
}

fn put(key: &str, value: &str, lease: LeaseId) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease.0)))
}

fn seconds(ttl: i64) -> Option<u32> {
    u32::try_from(ttl).ok().filter(|secs| *secs > 0)
}

pub(super) fn revision(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, ResponseHeader::revision)
}

pub(super) fn position(header: Option<&ResponseHeader>) -> Result<Position, Error> {
    let header = header.ok_or_else(|| Error::WatchError("etcd's answer has no header".to_owned()))?;
    Ok(Position {
        cluster: header.cluster_id(),
        term: header.raft_term(),
        revision: header.revision(),
    })
}

pub(super) fn key_value(kv: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision, lease) = (kv.create_revision(), kv.mod_revision(), kv.lease());
    let (key, value) = kv.into_key_value();
    KeyValue {
        key: text(key),
        value,
        create_revision,
        mod_revision,
        lease: LeaseId(lease),
    }
}

/// A key as text; foreign bytes are replaced.
pub(super) fn text(key: Vec<u8>) -> String {
    String::from_utf8(key).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
