//! Flows of UDP and SCTP whose endpoint is gone: their clients would go on sending to it for as long as they send.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flannel_model::ServiceProtocol;
use flannel_netlink::conntrack::{self, Flow};
use flannel_plan::{FrontendKey, Frontends};

use super::servers::Gone;
use crate::services::programmer::Status;

/// Ends the flows from clients of a frontend to an endpoint that it no longer has, and no other.
pub(super) fn end(gone: &[Gone], frontends: &Frontends, status: &mut Status) {
    let mut by_endpoint: BTreeMap<(ServiceProtocol, SocketAddr), BTreeSet<FrontendKey>> = BTreeMap::new();
    for gone in gone {
        let endpoint = (gone.frontend.protocol(), gone.endpoint);
        by_endpoint.entry(endpoint).or_default().insert(gone.frontend);
    }
    for ipv4 in [true, false] {
        if !by_endpoint.keys().any(|(_, endpoint)| endpoint.is_ipv4() == ipv4) {
            continue;
        }
        let stale = |flow: &Flow| {
            let Some(protocol) = ServiceProtocol::from_number(flow.protocol) else {
                return false;
            };
            let keys = by_endpoint.get(&(protocol, flow.answerer));
            keys.is_some_and(|keys| keys.iter().any(|key| is_to(flow, key, frontends)))
        };
        let ended = conntrack::flows(ipv4, stale).and_then(|flows| conntrack::end(&flows));
        match ended {
            Ok(count) => tracing::debug!(count, "flows to endpoints that are gone were ended"),
            Err(error) => status.fail(&error),
        }
    }
}

/// Whether a flow was sent to this frontend.
fn is_to(flow: &Flow, key: &FrontendKey, frontends: &Frontends) -> bool {
    match key {
        FrontendKey::Address(at) => flow.destination == SocketAddr::new(at.address, at.port),
        FrontendKey::NodePort(at) => {
            flow.destination.port() == at.port && frontends.node_addresses.contains(&flow.destination.ip())
        }
    }
}
