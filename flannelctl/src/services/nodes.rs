//! What the nodes tell of their Services.

use flannel_model::{EtcdPrefix, NodeServices};
use flannel_store::{Revision, Store};
use serde::Serialize;

use super::node_table::troubles;
use crate::failure::Failure;
use crate::output::columns;

/// One node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    node: String,
    #[serde(flatten)]
    summary: NodeServices,
    /// Whether its kernel shows all that is known to anybody.
    current: bool,
}

/// Every node that tells of its Services. `revision` is that of the last record in etcd.
pub async fn read<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    revision: Revision,
) -> Result<Vec<NodeView>, Failure> {
    let range = prefix.service_nodes();
    let listing = store.list(&range).await?;
    let nodes = listing.kvs.into_iter().filter_map(|kv| {
        let node = kv.key.strip_prefix(&range)?.to_owned();
        // One of a version that is not understood tells nothing.
        let summary: NodeServices = serde_json::from_slice(&kv.value).ok()?;
        Some((node, summary))
    });
    Ok(judge(nodes.collect(), u64::try_from(revision).unwrap_or(0)))
}

/// Nodes with one source should show the same: the newest that any of them shows, or that etcd has.
fn judge(nodes: Vec<(String, NodeServices)>, in_etcd: u64) -> Vec<NodeView> {
    let newest = |source: &str| {
        let own = nodes.iter().filter(|(_, n)| n.source == source);
        let own = own.map(|(_, n)| n.revision).max().unwrap_or(0);
        if source == "etcd" { own.max(in_etcd) } else { own }
    };
    let newest_of: Vec<u64> = nodes.iter().map(|(_, n)| newest(&n.source)).collect();
    nodes
        .into_iter()
        .zip(newest_of)
        .map(|((node, summary), newest)| NodeView {
            current: summary.revision >= newest && summary.failed.is_empty() && summary.lost.is_none(),
            node,
            summary,
        })
        .collect()
}

/// The nodes; nothing where there are none.
pub fn table(nodes: &[NodeView]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let rows = nodes.iter().map(|view| {
        let summary = &view.summary;
        let state = match troubles(summary).first() {
            Some(trouble) => trouble.clone(),
            None if view.current => "current".to_owned(),
            None => "behind".to_owned(),
        };
        [
            view.node.clone(),
            summary.source.clone(),
            summary.mode.clone(),
            summary.revision.to_string(),
            summary.frontends.to_string(),
            summary.problems.to_string(),
            state,
        ]
    });
    let header = [
        "NODE",
        "SOURCE",
        "MODE",
        "REVISION",
        "ADDRESSES",
        "PROBLEMS",
        "STATE",
    ];
    format!("\n{}", columns(header, rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::memory::MemoryStore;

    #[tokio::test]
    async fn nodes_that_are_behind_are_seen() {
        let store = MemoryStore::new();
        let prefix = EtcdPrefix::new("/n");
        for (node, value) in [
            (
                "n1",
                r#"{"source":"etcd","mode":"ipvs","revision":9,"frontends":3,"problems":0}"#,
            ),
            (
                "n2",
                r#"{"source":"etcd","mode":"nftables","revision":8,"frontends":2,"problems":1}"#,
            ),
            (
                "n3",
                r#"{"source":"kube","mode":"ipvs","revision":4,"frontends":2,"problems":0,"lost":"no route"}"#,
            ),
            ("n4", "junk"),
        ] {
            store
                .put(&format!("/n/services/nodes/{node}"), value)
                .await
                .unwrap();
        }
        let nodes = read(&store, &prefix, 7).await.unwrap();
        let current: Vec<bool> = nodes.iter().map(|n| n.current).collect();
        assert_eq!(current, [true, false, false]);
        let nodes = read(&store, &prefix, 10).await.unwrap();
        assert!(nodes.iter().all(|n| !n.current), "a newer record is in etcd");
        let text = table(&nodes);
        for line in [
            "n2     etcd     nftables   8          2           1          behind",
            "n3     kube     ipvs       4          2           0          the source cannot be followed: no route",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
