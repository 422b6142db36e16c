//! What nftables and connection tracking count of our frontends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use flannel_model::{ServiceProtocol, Traffic};
use flannel_netlink::NetlinkError;
use flannel_netlink::conntrack;
use flannel_netlink::nftables::{Counter, Data, Family, NftConn};
use flannel_plan::FrontendKey;
use flannel_plan::nft::{NftSet, TABLE, entrance};

use crate::services::counts::{EndpointCounts, FrontendCounts, Wanted, add};

/// Maps whose elements count the connections of their frontends.
const COUNTING: [NftSet; 4] = [
    NftSet::Frontends,
    NftSet::FrontendsOutside,
    NftSet::NodePorts,
    NftSet::NodePortsOutside,
];

/// Sets whose elements count what is sent to their frontends, or what is answered.
const CARRYING: [NftSet; 4] = [
    NftSet::Received,
    NftSet::ReceivedPorts,
    NftSet::Sent,
    NftSet::SentPorts,
];

/// What an element of `set` counted.
fn counted(set: NftSet, counter: Counter) -> Traffic {
    let mut traffic = Traffic {
        connections: 0,
        packets_in: Some(0),
        packets_out: Some(0),
        bytes_in: Some(0),
        bytes_out: Some(0),
    };
    match set {
        NftSet::Received | NftSet::ReceivedPorts => {
            (traffic.packets_in, traffic.bytes_in) = (Some(counter.packets), Some(counter.bytes));
        }
        NftSet::Sent | NftSet::SentPorts => {
            (traffic.packets_out, traffic.bytes_out) = (Some(counter.packets), Some(counter.bytes));
        }
        // a map of the nat type sees the first packet of a connection alone
        _ => traffic.connections = counter.packets,
    }
    traffic
}

/// Counts what each of `keys`, all of one family, has carried.
pub(super) fn traffic(
    conn: &mut NftConn,
    family: Family,
    keys: &BTreeSet<FrontendKey>,
) -> Result<BTreeMap<FrontendKey, FrontendCounts>, NetlinkError> {
    let mut out: BTreeMap<FrontendKey, FrontendCounts> =
        keys.iter().map(|key| (*key, FrontendCounts::default())).collect();
    let by_entrance: HashMap<(bool, Vec<u8>), FrontendKey> = keys
        .iter()
        .map(|key| ((matches!(key, FrontendKey::NodePort(_)), entrance(key)), *key))
        .collect();
    for set in COUNTING.into_iter().chain(CARRYING) {
        let node_ports = matches!(
            set,
            NftSet::NodePorts | NftSet::NodePortsOutside | NftSet::ReceivedPorts | NftSet::SentPorts
        );
        for listed in conn.elements(family, TABLE, set.name())?.unwrap_or_default() {
            let key = by_entrance.get(&(node_ports, listed.element.key));
            let is_refused = listed.element.data == Some(Data::Accept);
            if let (Some(key), Some(counter), false) = (key, listed.counter, is_refused) {
                add(&mut out.entry(*key).or_default().traffic, counted(set, counter));
            }
        }
    }
    Ok(out)
}

/// Counts the tracked connections of the endpoints of `wanted` frontends among `counts`, all of one family.
pub(super) fn connections(
    ipv4: bool,
    node_addresses: &BTreeSet<IpAddr>,
    wanted: &Wanted,
    counts: &mut BTreeMap<FrontendKey, FrontendCounts>,
) -> Result<(), NetlinkError> {
    let mut at: HashMap<(ServiceProtocol, SocketAddr), FrontendKey> = HashMap::new();
    for key in counts.keys().filter(|key| wanted.connections_of(key)) {
        match key {
            FrontendKey::Address(v) => {
                at.insert((v.protocol, SocketAddr::new(v.address, v.port)), *key);
            }
            FrontendKey::NodePort(n) => {
                let ips = node_addresses.iter().filter(|ip| ip.is_ipv4() == n.ipv4);
                at.extend(ips.map(|ip| ((n.protocol, SocketAddr::new(*ip, n.port)), *key)));
            }
        }
    }
    if at.is_empty() {
        return Ok(());
    }
    for key in at.values() {
        if let Some(counts) = counts.get_mut(key) {
            counts.endpoints.get_or_insert_default();
        }
    }
    // Nothing is kept of the flows: there may be hundreds of thousands.
    conntrack::flows(ipv4, |flow| {
        let protocol = ServiceProtocol::from_number(flow.protocol);
        let key = protocol.and_then(|protocol| at.get(&(protocol, flow.destination)));
        let counts = key
            .filter(|_| flow.answerer != flow.destination)
            .and_then(|key| counts.get_mut(key));
        if let Some(endpoints) = counts.and_then(|c| c.endpoints.as_mut()) {
            let endpoint: &mut EndpointCounts = endpoints.entry(flow.answerer).or_default();
            match flow.established {
                true => endpoint.active += 1,
                false => endpoint.inactive += 1,
            }
        }
        false
    })?;
    Ok(())
}
