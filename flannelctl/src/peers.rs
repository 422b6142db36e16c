//! `flannelctl peers`: what this node's kernel has for every peer, and whether that is all of it.

mod rows;

use serde::Serialize;

use crate::failure::Failure;
use crate::node::{Asked, NodeView, Sources, read};
use crate::output::{Output, Rejected, columns, printable, span};
use flannel_store::Store;
use rows::Row;
pub use rows::rows;

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    /// This node's lease, by its key.
    own: String,
    /// The backend of the network.
    backend: String,
    /// One for each subnet of a peer, in the order of addresses.
    peers: Vec<Row>,
    /// Records that this node does not use.
    refused: Vec<Rejected>,
    sources: Sources,
}

/// Shows them.
pub async fn show<S: Store>(asked: Asked<'_, S>, output: &mut Output) -> Result<(), Failure> {
    let node = read(asked).await?;
    output.show(&view(node), text)
}

fn view(node: NodeView) -> View {
    let refused = node.expected.refused.iter().map(|(key, reason)| Rejected {
        key: key.clone(),
        reason: reason.clone(),
    });
    let mut all: Vec<Rejected> = refused.collect();
    all.extend(node.listing.rejected.iter().map(|record| Rejected {
        key: record.key.clone(),
        reason: record.reason.clone(),
    }));
    View {
        own: node.own.key.to_string(),
        backend: node.config.backend.kind.clone(),
        peers: rows(&node),
        refused: all,
        sources: node.sources,
    }
}

fn text(view: &View) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut text = match view.backend.as_str() {
        "vxlan" => columns(
            [
                "SUBNET",
                "PUBLIC IP",
                "BACKEND",
                "ROUTE",
                "NEIGHBOUR",
                "FDB",
                "STATE",
            ],
            view.peers.iter().map(|row| {
                let [subnet, public, backend, route] = row.common();
                [
                    subnet,
                    public,
                    backend,
                    route,
                    or_dash(&row.neighbour),
                    or_dash(&row.fdb),
                    row.state(),
                ]
            }),
        ),
        "wireguard" => columns(
            [
                "SUBNET",
                "PUBLIC IP",
                "BACKEND",
                "ROUTE",
                "ENDPOINT",
                "HANDSHAKE",
                "RECEIVED",
                "SENT",
                "STATE",
            ],
            view.peers.iter().map(|row| {
                let [subnet, public, backend, route] = row.common();
                let bytes =
                    |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
                let handshake = match (row.handshake_seconds_ago, &row.endpoint) {
                    (Some(secs), _) => format!("{} ago", span(secs)),
                    (None, Some(_)) => "never".to_owned(),
                    (None, None) => "-".to_owned(),
                };
                let endpoint = or_dash(&row.endpoint);
                let (received, sent) = (bytes(row.received_bytes), bytes(row.sent_bytes));
                [
                    subnet,
                    public,
                    backend,
                    route,
                    endpoint,
                    handshake,
                    received,
                    sent,
                    row.state(),
                ]
            }),
        ),
        _ => columns(
            ["SUBNET", "PUBLIC IP", "BACKEND", "ROUTE", "STATE"],
            view.peers.iter().map(|row| {
                let [subnet, public, backend, route] = row.common();
                [subnet, public, backend, route, row.state()]
            }),
        ),
    };
    for (i, record) in view.refused.iter().enumerate() {
        if i == 0 {
            text += "\nRefused records:\n";
        }
        text += &format!("  {}: {}\n", printable(&record.key), printable(&record.reason));
    }
    text + &view.sources.lines()
}
