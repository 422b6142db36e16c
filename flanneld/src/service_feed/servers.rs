//! Servers that the node must go on to reach: no Service may take their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use flannel_plan::ServiceNode;

use crate::services::server_addresses;

/// Longest that names may take to be looked up: they are known already, because the servers were reached by them.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Etcd and the API server.
#[derive(Debug, Default)]
pub(super) struct Servers {
    /// URLs of etcd, until their addresses are known.
    etcd: Vec<String>,
    /// Host of the API server, until its addresses are known.
    api_server: Option<String>,
    reserved: BTreeMap<IpAddr, String>,
    api_servers: BTreeSet<IpAddr>,
}

impl Servers {
    pub(super) fn new(etcd: Vec<String>, api_server: Option<String>) -> Self {
        Self {
            etcd,
            api_server,
            ..Self::default()
        }
    }

    /// Looks up their addresses, once.
    pub(super) async fn look_up(&mut self) {
        let etcd = std::mem::take(&mut self.etcd);
        if !etcd.is_empty() {
            let found = addresses(etcd).await.unwrap_or_default();
            self.reserved = found.into_iter().map(|ip| (ip, "etcd".to_owned())).collect();
        }
        if let Some(host) = self.api_server.take() {
            self.api_servers = addresses(vec![host]).await.unwrap_or_default();
        }
    }

    /// Tells the node of them.
    pub(super) fn add_to(&self, node: &mut ServiceNode) {
        node.reserved.clone_from(&self.reserved);
        node.api_servers.clone_from(&self.api_servers);
    }
}

/// The addresses behind names or URLs; `None` when the look-up takes too long.
async fn addresses(hosts: Vec<String>) -> Option<BTreeSet<IpAddr>> {
    let found = tokio::task::spawn_blocking(move || server_addresses(&hosts));
    tokio::time::timeout(LOOK_UP, found).await.ok()?.ok()
}
