//! What flannelctl and `/metrics` are told of the data path.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flannel_model::{UdpPeerReport, UdpReport};
use flannel_tun::counters::DropReason;
use flannel_tun::engine::Engine;
use flannel_tun::table::PeerSpec;

/// How a data path with these peers stands.
pub fn of(listen: SocketAddr, engine: &Engine, peers: &[PeerSpec]) -> UdpReport {
    let totals = engine.tally().totals();
    let offloads = engine.offloads().named();
    let dropped = DropReason::ALL
        .iter()
        .map(|reason| (reason.name().to_owned(), totals.dropped(*reason)))
        .filter(|(_, packets)| *packets > 0);
    UdpReport {
        listen,
        queues: engine.queues(),
        offloads: offloads.map(|(name, used)| (name.to_owned(), used)).into(),
        sent_packets: totals.sent_packets,
        received_packets: totals.received_packets,
        dropped: dropped.collect(),
        peers: by_address(peers, &engine.kept_back().into_iter().collect()),
    }
}

/// A node with pods of both families is there twice.
fn by_address(peers: &[PeerSpec], kept_back: &BTreeMap<SocketAddr, u64>) -> Vec<UdpPeerReport> {
    let mut all: BTreeMap<SocketAddr, UdpPeerReport> = BTreeMap::new();
    for peer in peers {
        let entry = all.entry(peer.endpoint).or_insert_with(|| UdpPeerReport {
            address: peer.endpoint,
            subnets: Vec::new(),
            any_port: peer.any_port,
            overload: kept_back.get(&peer.endpoint).copied().unwrap_or_default(),
        });
        entry.subnets.extend(peer.subnets.iter().map(ToString::to_string));
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use flannel_tun::table::Net;

    use super::*;

    #[test]
    fn a_node_with_both_families_is_one_peer() {
        let spec = |endpoint: &str, address: &str, length| PeerSpec {
            endpoint: endpoint.parse().unwrap(),
            subnets: vec![Net::new(address.parse().unwrap(), length)],
            any_port: false,
            ecn: true,
        };
        let specs = [
            spec("192.0.2.2:8285", "10.5.2.0", 24),
            spec("192.0.2.1:8285", "10.5.1.0", 24),
            spec("192.0.2.2:8285", "fd00:5:0:2::", 64),
        ];
        let flooding = "192.0.2.2:8285".parse().unwrap();
        let peers = by_address(&specs, &[(flooding, 7)].into());
        let kept_back: Vec<u64> = peers.iter().map(|peer| peer.overload).collect();
        assert_eq!(kept_back, [0, 7]);
        let subnets: Vec<&[String]> = peers.iter().map(|peer| peer.subnets.as_slice()).collect();
        assert_eq!(
            subnets,
            [&["10.5.1.0/24"][..], &["10.5.2.0/24", "fd00:5:0:2::/64"]]
        );
    }
}
