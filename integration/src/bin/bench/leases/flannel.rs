//! What flannel asks of etcd. Its calls at a start, carried out; and what follows from them for many nodes.
//!
//! A start lists twice (to acquire, to watch), each time one Range and then one LeaseTimeToLive a key, one after the other; a
//! renewal, once in 23 hours, is a LeaseGrant and a Put, and every watcher answers each Put that it sees with a LeaseTimeToLive.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use flannel_lab::etcd;
use flannel_lab::lab::{CONFIG_KEY, SUBNETS_PREFIX};

/// Hours between two renewals of a node.
const RENEWAL_HOURS: f64 = 23.0;

/// What a start took.
#[derive(Debug)]
pub struct Start {
    /// Until the subnet is held and the peers are known.
    pub time: Duration,
    /// Messages to etcd.
    pub calls: u64,
}

/// Starts as flannel does, beside `number` leases, and removes its lease again.
pub async fn start(number: usize) -> Result<Start> {
    let prefix = SUBNETS_PREFIX.trim_end_matches('/');
    let own = format!("{SUBNETS_PREFIX}10.255.254.0-24");
    let mut client = Client::connect([etcd::ENDPOINT], None).await?;
    let began = Instant::now();
    client.get(CONFIG_KEY, None).await?;
    let mut calls = 1;
    calls += list(&mut client, prefix).await?;
    let lease = client.lease_grant(86_400, None).await?.id();
    let put = TxnOp::put(
        own.as_str(),
        "{\"PublicIP\":\"192.168.1.1\"}",
        Some(PutOptions::new().with_lease(lease)),
    );
    let absent = Compare::version(own.as_str(), CompareOp::Equal, 0);
    client.txn(Txn::new().when([absent]).and_then([put])).await?;
    calls += 2 + list(&mut client, prefix).await?;
    let watch = client
        .watch(prefix, Some(WatchOptions::new().with_prefix()))
        .await?;
    let time = began.elapsed();
    drop(watch);
    anyhow::ensure!(
        calls as usize > 2 * number,
        "{calls} calls beside {number} leases"
    );
    client.lease_revoke(lease).await?;
    Ok(Start {
        time,
        calls: calls + 1,
    })
}

/// One list as flannel makes it; how many calls that took.
async fn list(client: &mut Client, prefix: &str) -> Result<u64> {
    let all = client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
    for kv in all.kvs() {
        client
            .lease_time_to_live(kv.lease(), None)
            .await
            .context("LeaseTimeToLive")?;
    }
    Ok(1 + all.kvs().len() as u64)
}

/// Calls a node while a network grows from nothing to `nodes`: what it lists when it is its turn (half of the others on average, twice),
/// and one call for each that comes after it.
pub fn calls_to_grow(nodes: f64) -> f64 {
    let own = 6.0; // config, two ranges, grant, transaction, watch
    own + 2.0 * nodes / 2.0 + nodes / 2.0
}

/// Calls a node and hour in rest: its own renewal, and one call for that of every other.
pub fn calls_in_rest(nodes: f64) -> f64 {
    (2.0 + nodes) / RENEWAL_HOURS
}
