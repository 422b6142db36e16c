//! `flannelctl doctor`: whether leases and peers are as they should be, and what to do where they are not.

mod forwarding;
mod host;
mod kube_proxy;
mod leases;
mod legacy_iptables;
mod managers;
mod members;
mod node;
mod ways;

use std::time::Instant;

use flannel_model::{EtcdPrefix, IpSubnet, LeaseKey, NetworkConfig};
use flannel_store::{EtcdStore, Store};

use crate::check_config::findings;
use crate::failure::Failure;
use crate::findings::{Finding, Level, number, show, some};
use crate::output::{Output, wall_seconds};
use crate::services::stored::Stored;
use crate::subnets::{self, Listing};

pub use forwarding::second;
pub use leases::config_and_leases;
pub use node::Paths;

/// etcd that takes longer for one read by a quorum is named, in milliseconds: ten times its own disk's usual 10 ms
/// (etcd's tuning guide).
const SLOW: u128 = 100;

/// Looks at everything.
pub async fn run(
    store: &EtcdStore,
    prefix: &EtcdPrefix,
    paths: Paths<'_>,
    output: &mut Output,
) -> Result<(), Failure> {
    let start = Instant::now();
    // Without etcd nothing else can be told apart.
    store.position().await?;
    let mut found = vec![answers(start.elapsed().as_millis())];
    found.extend(members::findings(&store.members().await));
    let listing = subnets::read(store, prefix).await?;
    found.push(host::clock(&listing, wall_seconds()));
    found.push(keys(store, prefix).await?);
    let config = config(store, prefix, &mut found).await?;
    found.extend(leases::alone(&listing));
    if let Some(config) = &config {
        found.extend(config_and_leases(config, &listing));
        found.push(services_apart(store, prefix, config).await?);
        found.extend(fullness(&listing));
        found.extend(node::findings(paths, config, &listing));
        found.extend(kube_proxy::finding());
    }
    show(&found, output, |errors| {
        let noun = if errors == 1 { "check" } else { "checks" };
        Failure::Findings(format!("{errors} {noun} failed (above)"))
    })
}

fn answers(milliseconds: u128) -> Finding {
    let text = format!("a quorum answered within {milliseconds} ms");
    match milliseconds {
        0..SLOW => Finding::ok("etcd", text),
        _ => Finding::warning(
            "etcd",
            text,
            "look at etcd's disk, its load and the network in between",
        ),
    }
}

async fn config<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    found: &mut Vec<Finding>,
) -> Result<Option<NetworkConfig>, Failure> {
    let key = prefix.config();
    let Some(kv) = store.get(&key).await?.0 else {
        let fix = "write one: flannelctl config set -f FILE; no node can start without";
        found.push(Finding::error(
            "config",
            format!("there is no network config at {key}"),
            fix,
        ));
        return Ok(None);
    };
    // Whether nodes run with --ipv6-only is not known here.
    found.extend(findings(&kv.value, true));
    Ok(NetworkConfig::parse(&kv.value).ok())
}

/// Every key that begins with `<prefix>/subnets`: flannel looks at all of them, and one that it cannot read makes every
/// flanneld of flannel forget all its peers.
async fn keys<S: Store>(store: &S, prefix: &EtcdPrefix) -> Result<Finding, Failure> {
    let range = prefix.subnets();
    let wide = range.trim_end_matches('/');
    let all = store.list(wide).await?.kvs;
    let is_lease = |key: &str| {
        let lease: Option<LeaseKey> = key.strip_prefix(&range).and_then(|rest| rest.parse().ok());
        lease.is_some_and(|lease| lease.ipv4().is_some())
    };
    let stray: Vec<&str> = all
        .iter()
        .map(|kv| kv.key.as_str())
        .filter(|key| !is_lease(key))
        .collect();
    Ok(match stray.as_slice() {
        [] => Finding::ok(
            "lease-keys",
            format!("{} below {range}, no other than leases", number(all.len(), "key")),
        ),
        stray => Finding::error(
            "lease-keys",
            format!("{} keys that are no leases: {}", stray.len(), some(stray)),
            "delete them (etcdctl del KEY): nodes of flannel drop all their peers for such a key; ours skip it",
        ),
    })
}

/// Service addresses inside the network of pods, or the other way round, reach the wrong one.
pub async fn services_apart<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    config: &NetworkConfig,
) -> Result<Finding, Failure> {
    let ranges = Stored::read(store, prefix)
        .await?
        .config
        .map(|config| config.cidrs)
        .unwrap_or_default();
    let networks: [Option<IpSubnet>; 2] = [
        config.pools.ipv4().map(|pool| pool.network.into()),
        config.pools.ipv6().map(|pool| pool.network.into()),
    ];
    let clashes: Vec<String> = networks
        .into_iter()
        .flatten()
        .flat_map(|network| ranges.iter().map(move |range| (network, range)))
        .filter(|(network, range)| network.overlaps(range))
        .map(|(network, range)| format!("{range} and {network}"))
        .collect();
    Ok(match clashes.as_slice() {
        [] => Finding::ok(
            "service-ranges",
            format!(
                "{}, none inside the network of pods",
                number(ranges.len(), "service range")
            ),
        ),
        clashes => Finding::error(
            "service-ranges",
            format!(
                "service range and network of pods share addresses: {}",
                some(clashes)
            ),
            "give Services a range of their own (flannelctl service apply with a ServiceCIDR)",
        ),
    })
}

fn fullness(listing: &Listing) -> Vec<Finding> {
    subnets::usage(listing)
        .iter()
        .map(|usage| {
            let taken = usage.used + usage.reserved;
            let text = format!(
                "{taken} of {} subnets of {} are taken ({} ‰)",
                usage.subnets, usage.network, usage.per_mille
            );
            let fix = "make Network larger or SubnetLen longer, or release leases of nodes that are gone \
                       (flannelctl subnets release)";
            match usage.per_mille {
                1000.. => Finding::error("room", format!("{text}: no node can join"), fix),
                900.. => Finding::warning("room", text, fix),
                _ => Finding::ok("room", text),
            }
        })
        .collect()
}

/// A finding about those that `bad` are, or one that says `good`.
fn judge(check: &'static str, level: Level, bad: &[String], what: &str, good: String, fix: &str) -> Finding {
    let text = || format!("{what}: {}", some(bad));
    match (bad.is_empty(), level) {
        (true, _) => Finding::ok(check, good),
        (false, Level::Error) => Finding::error(check, text(), fix),
        (false, _) => Finding::warning(check, text(), fix),
    }
}
