use std::collections::BTreeSet;

use flannel_lease::{Identity, Settings};
use flannel_model::{NetworkConfig, NodeId};
use flannel_store::memory::MemoryStore;

use super::*;
use crate::publish::Published;

/// 1,023 subnets.
const CONFIG: &str = r#"{"Network":"10.5.0.0/16","SubnetLen":26}"#;

fn settings() -> Settings {
    Settings {
        ttl: Duration::from_secs(86_400),
        renew_margin: Duration::from_secs(3_600),
        grace: Duration::from_secs(300),
    }
}

/// Another node takes a subnet.
async fn acquire(store: &MemoryStore, prefix: &EtcdPrefix, number: u8) -> LeaseKey {
    let pools = NetworkConfig::parse(CONFIG.as_bytes()).unwrap().pools;
    let identity = Identity {
        public_ip: std::net::Ipv4Addr::new(192, 168, 50, number),
        public_ipv6: None,
        node: Some(NodeId::new(random_bits().into())),
    };
    let machine = LeaseMachine::new(settings(), pools, identity, None);
    let publisher = Publisher::new(identity, pools, Published::Name("host-gw"));
    let driver = LeaseDriver::new(machine, store.clone(), prefix.clone(), publisher);
    let (status, mut held) = watch::channel(None);
    let (_news, own) = mpsc::channel(1);
    let task = tokio::spawn(driver.run(own, status));
    let holds = |status: &Option<LeaseStatus>| status.as_ref().is_some_and(|status| status.held.is_some());
    let key = tokio::time::timeout(Duration::from_secs(60), held.wait_for(holds))
        .await
        .unwrap()
        .unwrap()
        .as_ref()
        .and_then(|status| status.held)
        .unwrap()
        .key;
    task.abort();
    key
}

/// Who comes after others gets none of their subnets within the hold-down, although all of them are free.
#[tokio::test]
async fn five_hundred_leases_in_a_row_have_five_hundred_subnets() {
    let (store, prefix) = (MemoryStore::new(), EtcdPrefix::new("/n"));
    let mut given = BTreeSet::new();
    for number in 0..500_usize {
        let key = acquire(&store, &prefix, u8::try_from(number % 250).unwrap()).await;
        assert!(given.insert(key.to_string()), "{key} again, as number {number}");
        store.delete(&prefix.lease(&key)).await.unwrap();
    }
    assert!(store.list(&prefix.subnets()).await.unwrap().kvs.is_empty());
}
