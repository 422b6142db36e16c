//! `flannelctl explain`: what happens to packets for one address, and why.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use flannel_model::{EtcdPrefix, Explanation, ServiceKey, ServiceProtocol, ServiceRecord};
use flannel_plan::{ServiceFacts, ServiceNode, ServiceTable};
use flannel_store::Store;

use super::node_table::{node_line, table, troubles};
use super::stored::Stored;
use super::{Asker, daemon};
use crate::cli::ExplainArguments;
use crate::failure::Failure;
use crate::output::{Output, columns, printable};

/// Asks the flanneld of this node, and where there is none, works out what etcd says.
pub async fn explain<S: Store>(
    asker: Asker<'_, S>,
    at: SocketAddr,
    arguments: &ExplainArguments,
    output: &mut Output,
) -> Result<(), Failure> {
    let protocol = arguments.protocol.map(Into::into);
    let local = daemon::explain(&arguments.socket.status_socket, at, protocol).await?;
    let explanation = match local {
        Some(explanation) => explanation,
        None => from_etcd(asker.store, asker.prefix, at, protocol).await?,
    };
    output.show(&explanation, |e| text(at, e))
}

/// What follows from etcd alone, on a node that is none: it has no pods and no addresses.
async fn from_etcd<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    at: SocketAddr,
    protocol: Option<ServiceProtocol>,
) -> Result<Explanation, Failure> {
    let stored = Stored::read(store, prefix).await?;
    let mut explanation = table_of(&stored).explain(at, protocol).to_status();
    explanation.summary.source = "etcd".to_owned();
    explanation.summary.revision = u64::try_from(stored.revision).unwrap_or(0);
    Ok(explanation)
}

fn table_of(stored: &Stored) -> ServiceTable {
    let node = ServiceNode {
        // Nobody's address, of either family: ranges of a family that a node lacks are not programmed.
        primary: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        ..ServiceNode::default()
    };
    let mut facts = ServiceFacts::new(node);
    for (key, value, created) in &stored.raw {
        if let Ok(key) = ServiceKey::parse(key)
            && let Ok(record) = ServiceRecord::parse(&key, value)
        {
            facts.add(key, record, *created);
        }
    }
    let mut table = ServiceTable::new(facts);
    table.refresh();
    table
}

fn text(at: SocketAddr, explanation: &Explanation) -> String {
    let mut text = match explanation.node.as_str() {
        "" => format!(
            "{at}, as etcd has it at revision {}; no flanneld answers on this host, so node ports and traffic policies are left out\n",
            explanation.summary.revision
        ),
        node => format!("{at} on {}\n", node_line(node, &explanation.summary)),
    };
    for sentence in &explanation.verdict {
        let _ = writeln!(text, "{}", printable(sentence));
    }
    if !explanation.services.is_empty() {
        text += "\n";
        text += &table(&explanation.services, None);
    }
    if !explanation.unused.is_empty() {
        let rows = explanation.unused.iter();
        text += "\n";
        text += &columns(
            ["NOT USED", "OF", "WHY"],
            rows.map(|unused| {
                let port = match unused.port_name.as_str() {
                    "" => String::new(),
                    name => format!(":{name}"),
                };
                [
                    unused.address.to_string(),
                    format!("{}{port}", unused.service),
                    unused.reason.clone(),
                ]
            }),
        );
    }
    let notes = explanation.notes.iter();
    let mut lines: Vec<String> = notes
        .map(|note| format!("{}: {}", note.subject, note.text))
        .collect();
    lines.extend(troubles(&explanation.summary));
    for (i, line) in lines.iter().enumerate() {
        if i == 0 {
            text += "\nProblems:\n";
        }
        let _ = writeln!(text, "  {}", printable(line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::memory::MemoryStore;

    #[tokio::test]
    async fn without_a_daemon_etcd_is_explained() {
        let store = MemoryStore::new();
        let prefix = EtcdPrefix::new("/n");
        for (key, value) in [
            ("config", r#"{"cidrs":["10.96.0.0/16"]}"#),
            (
                "spec/shop/web",
                r#"{"clusterIP":"10.96.0.10","ports":[{"port":80}]}"#,
            ),
            ("endpoints/shop/web/-/10.5.1.2:8080", r#"{"weight":3}"#),
            ("endpoints/shop/web/-/10.5.1.3:8080", r#"{"state":"notReady"}"#),
            ("spec/shop/bad", "{"),
        ] {
            store.put(&format!("/n/services/v1/{key}"), value).await.unwrap();
        }
        let at: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let explanation = from_etcd(&store, &prefix, at, None).await.unwrap();
        let text = text(at, &explanation);
        for part in [
            "10.96.0.10:80, as etcd has it at revision 6; no flanneld answers",
            "TCP 10.96.0.10:80 is the port of Service shop/web (cluster address).",
            "10.5.1.2:8080   3",
            "10.5.1.3:8080   shop/web   it is not ready",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
