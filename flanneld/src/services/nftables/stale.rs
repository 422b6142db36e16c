//! What outlives a change of endpoints and must not: the memory of clients whose endpoint is gone, and flows of UDP and SCTP that
//! go on to it. TCP connections are left to themselves: they go on as long as both ends do.

use std::collections::{BTreeMap, BTreeSet};

use flannel_model::{ServiceProtocol, VirtualAddress};
use flannel_netlink::nftables::{Data, Element, Family, NftConn, delete_elements};
use flannel_netlink::{NetlinkError, conntrack};
use flannel_plan::nft::{AFFINITY, TABLE, Translated, read_remembered};
use flannel_plan::{FrontendKey, NodePort};

use super::super::programmer::View;

/// What is to be looked at.
pub(super) struct Stale {
    ipv4: bool,
    /// `None`: all frontends.
    flows: Option<BTreeSet<FrontendKey>>,
    clients: Option<BTreeSet<FrontendKey>>,
}

impl Stale {
    pub(super) fn nothing(ipv4: bool) -> Self {
        Self {
            ipv4,
            flows: Some(BTreeSet::new()),
            clients: Some(BTreeSet::new()),
        }
    }

    pub(super) fn everything(ipv4: bool) -> Self {
        Self {
            ipv4,
            flows: None,
            clients: None,
        }
    }

    /// Takes up what a frontend's change may leave behind. A new frontend counts: a flow that came before it was not translated.
    pub(super) fn note(
        &mut self,
        key: &FrontendKey,
        before: Option<&Translated>,
        after: Option<&Translated>,
    ) {
        let endpoints = |t: Option<&Translated>| t.map(Translated::endpoints).unwrap_or_default();
        let (was, is) = (endpoints(before), endpoints(after));
        let gone = was.iter().any(|e| !is.contains(e));
        if key.protocol() != ServiceProtocol::Tcp && (gone || was.is_empty()) {
            self.flows.iter_mut().for_each(|keys| {
                keys.insert(*key);
            });
        }
        if gone && before.is_some_and(|t| t.affinity().is_some()) {
            self.clients.iter_mut().for_each(|keys| {
                keys.insert(*key);
            });
        }
    }

    /// Removes it.
    pub(super) fn clear(
        &self,
        conn: &mut NftConn,
        known: &BTreeMap<FrontendKey, Translated>,
        view: &View<'_>,
    ) -> Result<(), NetlinkError> {
        let remembers = || known.values().any(|t| t.affinity().is_some());
        if self
            .clients
            .as_ref()
            .map_or_else(remembers, |keys| !keys.is_empty())
        {
            self.forget_clients(conn, known, view)?;
        }
        let has_flows = || known.keys().any(|k| k.protocol() != ServiceProtocol::Tcp);
        if self
            .flows
            .as_ref()
            .map_or_else(has_flows, |keys| !keys.is_empty())
        {
            self.end_flows(known, view)?;
        }
        Ok(())
    }

    fn forget_clients(
        &self,
        conn: &mut NftConn,
        known: &BTreeMap<FrontendKey, Translated>,
        view: &View<'_>,
    ) -> Result<(), NetlinkError> {
        let family = if self.ipv4 { Family::Ipv4 } else { Family::Ipv6 };
        let listed = conn.elements(family, TABLE, AFFINITY)?.unwrap_or_default();
        let is_stale = |element: &Element| {
            let Some(Data::Value(data)) = &element.data else {
                return false;
            };
            let Some(remembered) = read_remembered(&element.key, data) else {
                return false;
            };
            let key = frontend_at(remembered.at, known, view);
            if !self.clients.as_ref().is_none_or(|keys| keys.contains(&key)) {
                return false;
            }
            let valid = known.get(&key).filter(|t| t.affinity().is_some());
            !valid.is_some_and(|t| t.endpoints().contains(&remembered.endpoint))
        };
        let stale: Vec<Element> = listed.into_iter().map(|l| l.element).filter(is_stale).collect();
        let what = "forget clients of endpoints that are gone";
        match conn.commit(family, &delete_elements(TABLE, AFFINITY, &stale), what) {
            // one of them ran out just now, and took the others' transaction with it
            Err(error) if error.is_missing() => {
                for element in &stale {
                    match conn.commit(family, &delete_elements(TABLE, AFFINITY, [element]), what) {
                        Err(error) if !error.is_missing() => return Err(error),
                        Ok(()) | Err(_) => {}
                    }
                }
                Ok(())
            }
            result => result,
        }
    }

    fn end_flows(
        &self,
        known: &BTreeMap<FrontendKey, Translated>,
        view: &View<'_>,
    ) -> Result<(), NetlinkError> {
        let flows = conntrack::flows(self.ipv4, |flow| {
            let protocol = ServiceProtocol::from_number(flow.protocol);
            let Some(protocol) = protocol.filter(|p| *p != ServiceProtocol::Tcp) else {
                return false;
            };
            let at = VirtualAddress {
                protocol,
                address: flow.destination.ip(),
                port: flow.destination.port(),
            };
            let key = frontend_at(at, known, view);
            match &self.flows {
                Some(keys) if !keys.contains(&key) => false,
                Some(_) => known
                    .get(&key)
                    .is_none_or(|t| !t.endpoints().contains(&flow.answerer)),
                None => known
                    .get(&key)
                    .is_some_and(|t| !t.endpoints().contains(&flow.answerer)),
            }
        })?;
        if !flows.is_empty() {
            let ended = conntrack::end(&flows)?;
            tracing::debug!(ended, "flows to endpoints that are gone were ended");
        }
        Ok(())
    }
}

/// The frontend that a packet to this address and port belongs to: its own, or that of a node port.
fn frontend_at(
    at: VirtualAddress,
    known: &BTreeMap<FrontendKey, Translated>,
    view: &View<'_>,
) -> FrontendKey {
    let own = FrontendKey::Address(at);
    if known.contains_key(&own) || !view.frontends.node_addresses.contains(&at.address) {
        return own;
    }
    FrontendKey::NodePort(NodePort {
        ipv4: at.address.is_ipv4(),
        protocol: at.protocol,
        port: at.port,
    })
}
