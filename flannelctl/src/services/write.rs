//! Writing many records.

use flannel_store::{Store, StoreError};

/// Operations in one transaction: etcd takes 128 unless its --max-txn-ops is raised.
const AT_ONCE: usize = 120;

/// A write that did not come to its end.
#[derive(Debug)]
pub struct Unfinished {
    /// What was written before, of how much.
    pub done: usize,
    pub of: usize,
    pub error: StoreError,
}

/// Writes and deletes keys in one transaction, or where there are too many for one, in several: the config first, then endpoints,
/// then specs, so that no Service is there before its endpoints; what goes, goes the other way round.
pub async fn write<S: Store>(
    store: &S,
    mut puts: Vec<(String, String)>,
    mut deletes: Vec<String>,
) -> Result<(), Unfinished> {
    let of = puts.len() + deletes.len();
    if of <= AT_ONCE {
        if of > 0 {
            let written = store.write_all(&puts, &deletes).await;
            written.map_err(|error| Unfinished { done: 0, of, error })?;
        }
        return Ok(());
    }
    puts.sort_by_key(|(key, _)| rank(key));
    deletes.sort_by_key(|key| std::cmp::Reverse(rank(key)));
    let mut done = 0;
    for chunk in puts.chunks(AT_ONCE) {
        let written = store.write_all(chunk, &[]).await;
        written.map_err(|error| Unfinished { done, of, error })?;
        done += chunk.len();
    }
    for chunk in deletes.chunks(AT_ONCE) {
        let written = store.write_all(&[], chunk).await;
        written.map_err(|error| Unfinished { done, of, error })?;
        done += chunk.len();
    }
    Ok(())
}

fn rank(key: &str) -> u8 {
    match key {
        key if key.contains("/services/v1/spec/") => 2,
        key if key.ends_with("/services/v1/config") => 0,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::memory::MemoryStore;

    #[tokio::test]
    async fn more_than_a_transaction_takes_is_written_in_several() {
        let store = MemoryStore::new();
        let key = |kind: &str, n: usize| (format!("/n/services/v1/{kind}/shop/s{n}"), "{}".to_owned());
        let mut puts: Vec<(String, String)> = (0..300).map(|n| key("spec", n)).collect();
        puts.extend((0..300).map(|n| key("slices", n)));
        puts.push(("/n/services/v1/config".to_owned(), "{}".to_owned()));
        write(&store, puts.clone(), Vec::new()).await.unwrap();
        let kvs = store.list("/n/").await.unwrap().kvs;
        assert_eq!(kvs.len(), 601);
        let last = |part: &str| {
            kvs.iter()
                .filter(|kv| kv.key.contains(part))
                .map(|kv| kv.mod_revision)
                .max()
        };
        assert!(last("/config") < last("/slices/") && last("/slices/") < last("/spec/"));
        let deletes = puts.into_iter().map(|(key, _)| key).collect();
        write(&store, Vec::new(), deletes).await.unwrap();
        assert!(store.list("/n/").await.unwrap().kvs.is_empty());
    }
}
