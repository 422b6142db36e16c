//! What IPVS counts of our virtual servers.

use std::collections::BTreeMap;

use flannel_model::{ServerKey, Traffic};
use flannel_netlink::NetlinkError;
use flannel_netlink::generic::Ipvs;
use flannel_plan::FrontendKey;

use super::servers::Owners;
use crate::services::counts::{FrontendCounts, Wanted, add};

/// One list of all virtual servers; the connections of real servers take one more list for each virtual server.
pub(super) fn counts(
    ipvs: &mut Ipvs,
    owners: &Owners,
    wanted: &Wanted,
) -> Result<BTreeMap<FrontendKey, FrontendCounts>, NetlinkError> {
    let carried: BTreeMap<ServerKey, Traffic> = ipvs
        .traffic()?
        .into_iter()
        .map(|(key, stats)| {
            let traffic = Traffic {
                connections: stats.connections,
                packets_in: Some(stats.packets_in),
                packets_out: Some(stats.packets_out),
                bytes_in: Some(stats.bytes_in),
                bytes_out: Some(stats.bytes_out),
            };
            (key, traffic)
        })
        .collect();
    let mut out = BTreeMap::new();
    for (frontend, keys) in owners.iter() {
        let mut counts = FrontendCounts::default();
        for key in &keys {
            if let Some(traffic) = carried.get(key) {
                add(&mut counts.traffic, *traffic);
            }
        }
        if wanted.connections_of(&frontend) {
            let endpoints = counts.endpoints.get_or_insert_default();
            for key in &keys {
                for real in ipvs.real_servers(key)? {
                    let endpoint = endpoints.entry(real.address).or_default();
                    endpoint.active += u64::from(real.active);
                    endpoint.inactive += u64::from(real.inactive);
                }
            }
        }
        out.insert(frontend, counts);
    }
    Ok(out)
}
