//! Elements follow from frontends, and changes lead from one to the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flannel_model::{ServiceName, ServiceProtocol, VirtualAddress};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;
use crate::service::frontend::{Backend, Frontend, FrontendKey, FrontendKind, NodePort};

fn key(n: u8) -> FrontendKey {
    let protocol = ServiceProtocol::Tcp;
    match n {
        0 => FrontendKey::NodePort(NodePort {
            ipv4: true,
            protocol,
            port: 30080,
        }),
        _ => FrontendKey::Address(VirtualAddress {
            protocol,
            address: IpAddr::from([10, 96, 0, n]),
            port: 80,
        }),
    }
}

fn backends(list: &BTreeMap<u8, u32>) -> std::sync::Arc<[Backend]> {
    let one = |(n, weight): (&u8, &u32)| Backend {
        address: SocketAddr::from(([10, 5, 1, *n], 8080)),
        weight: *weight,
        local: *n < 3,
    };
    list.iter().map(one).collect()
}

fn frontend(scheduler: &str, inside: &[u8], outside: &[u8]) -> Frontend {
    let list = |numbers: &[u8]| backends(&numbers.iter().map(|n| (*n, 1)).collect());
    Frontend {
        service: ServiceName::new("shop", "web").unwrap(),
        port_name: String::new(),
        kind: FrontendKind::LoadBalancer,
        scheduler: scheduler.parse().unwrap(),
        flags: flannel_model::SchedulerFlags::default(),
        affinity: None,
        source_ranges: None,
        inside: list(inside),
        outside: list(outside),
        keep_source: inside != outside,
    }
}

prop_compose! {
    fn any_frontend()(
        scheduler in prop_oneof![Just("rr"), Just("wrr"), Just("sh"), Just("fo")],
        (inside, outside) in (btree_map(1u8..7, 0u32..4, 0..6), btree_map(1u8..7, 0u32..4, 0..6)),
        split in any::<bool>(),
        affinity in prop_oneof![Just(None), Just(Some(600))],
        restricted in any::<bool>(),
        cluster_ip in any::<bool>(),
    ) -> Frontend {
        let ranges = ["192.0.2.0/24", "10.0.0.0/8", "10.1.0.0/16", "fd00::/8"].map(|r| r.parse().unwrap());
        Frontend {
            kind: if cluster_ip { FrontendKind::ClusterIp } else { FrontendKind::LoadBalancer },
            affinity,
            source_ranges: restricted.then(|| ranges.into()),
            inside: backends(&inside),
            outside: backends(if split { &outside } else { &inside }),
            keep_source: split,
            ..frontend(scheduler, &[], &[])
        }
    }
}

/// A table as the kernel keeps it: one element a key, and no two ranges that overlap.
#[derive(Default, Clone)]
struct Kernel(BTreeMap<(NftSet, Vec<u8>, bool), NftElement>);

impl Kernel {
    fn carry_out(&mut self, (delete, add): (Vec<NftElement>, Vec<NftElement>)) {
        for e in delete {
            assert!(
                self.0.remove(&(e.set, e.key.clone(), e.interval_end)).is_some(),
                "no {e:?}"
            );
        }
        for e in add {
            assert_eq!(
                self.0.insert((e.set, e.key.clone(), e.interval_end), e.clone()),
                None,
                "{e:?}"
            );
        }
        let allowed: Vec<_> = self.0.values().filter(|e| e.set == NftSet::Allowed).collect();
        for pair in allowed.windows(2) {
            assert!(
                pair[0].key_end.as_ref().unwrap() < &pair[1].key,
                "ranges overlap: {pair:?}"
            );
        }
    }

    fn listing(&self) -> KernelElements {
        let mut out = KernelElements::default();
        self.0.values().for_each(|e| out.add(e.clone()));
        out
    }

    fn elements(&self) -> BTreeSet<NftElement> {
        self.0.values().cloned().collect()
    }
}

proptest! {
    #[test]
    fn changes_lead_there_and_a_second_process_finds_nothing_to_do(
        n in 0u8..2, states in proptest::collection::vec(proptest::option::of(any_frontend()), 1..6)
    ) {
        let key = key(n);
        let mut kernel = Kernel::default();
        let mut before = None;
        for frontend in &states {
            let after = frontend.as_ref().map(|f| translate(f, before.as_ref()));
            kernel.carry_out(changes(&key, before.as_ref(), after.as_ref()));
            let wanted = after.as_ref().map(|t| elements(&key, t)).unwrap_or_default();
            prop_assert_eq!(&kernel.elements(), &wanted);
            before = after;
        }
        let mut listing = kernel.listing();
        if let Some(Some(frontend)) = states.last() {
            let adopted = translate(frontend, listing.frontend(&key).as_ref());
            prop_assert_eq!(Some(&adopted), before.as_ref());
            prop_assert_eq!(listing.settle(elements(&key, &adopted)), (vec![], vec![]));
        }
        prop_assert_eq!(listing.rest(), vec![]);
    }

    /// Whatever number is drawn, something stands in its slot.
    #[test]
    fn every_chain_that_is_named_finds_its_slots(n in 0u8..2, frontend in any_frontend()) {
        let key = key(n);
        let translated = translate(&frontend, None);
        let elements = elements(&key, &translated);
        let chains: Vec<PickChain> = translated.chains(&key).collect();
        let named: BTreeSet<String> = elements.iter().filter_map(|e| match (&e.data, e.set) {
            (Some(NftData::Goto(chain)), NftSet::Frontends | NftSet::FrontendsOutside | NftSet::NodePorts | NftSet::NodePortsOutside) => Some(chain.clone()),
            _ => None,
        }).collect();
        prop_assert_eq!(named, chains.iter().map(PickChain::name).collect::<BTreeSet<_>>());
        for chain in &chains {
            let first = if chain.outside { OUTSIDE_SLOTS } else { 0 };
            for slot in first..first + chain.slots {
                let found = elements.iter().any(|e| matches!(e.set, NftSet::Backends | NftSet::NodePortBackends) && e.key.ends_with(&slot.to_ne_bytes()));
                prop_assert!(found, "nothing in slot {slot} of {chain:?}");
            }
        }
    }
}

fn count(elements: &[NftElement], set: NftSet) -> usize {
    elements.iter().filter(|e| e.set == set).count()
}

#[test]
fn one_endpoint_replaced_is_one_slot() {
    let before = translate(&frontend("rr", &[1, 2, 3, 4], &[1, 2, 3, 4]), None);
    let after = translate(&frontend("rr", &[1, 2, 4, 5], &[1, 2, 4, 5]), Some(&before));
    let (delete, add) = changes(&key(1), Some(&before), Some(&after));
    assert_eq!((delete.len(), add.len()), (1, 1), "{delete:?} {add:?}");
    assert_eq!(count(&add, NftSet::Backends), 1);
}

#[test]
fn one_endpoint_more_is_one_slot_and_another_chain() {
    let before = translate(&frontend("rr", &[1, 2], &[1, 2]), None);
    let after = translate(&frontend("rr", &[1, 2, 3], &[1, 2, 3]), Some(&before));
    let (delete, add) = changes(&key(1), Some(&before), Some(&after));
    assert_eq!((delete.len(), add.len()), (1, 2), "{delete:?} {add:?}");
    assert_eq!(
        (count(&delete, NftSet::Frontends), count(&add, NftSet::Frontends)),
        (1, 1)
    );
}

#[test]
fn nobody_for_clients_outside_is_refused_and_not_sent_inside() {
    let translated = translate(&frontend("rr", &[1, 2], &[]), None);
    let all: Vec<NftElement> = elements(&key(1), &translated).into_iter().collect();
    let outside: Vec<_> = all.iter().filter(|e| e.set == NftSet::FrontendsOutside).collect();
    assert_eq!(outside[0].data, Some(NftData::Accept));
    assert_eq!(count(&all, NftSet::RefusedOutside), 1);
    assert_eq!(count(&all, NftSet::Refused), 0);
    assert_eq!(count(&all, NftSet::Backends), 2);
    // node ports have sets of their own
    let all: Vec<NftElement> = elements(&key(0), &translated).into_iter().collect();
    assert_eq!(
        (
            count(&all, NftSet::RefusedPortsOutside),
            count(&all, NftSet::NodePortBackends)
        ),
        (1, 2)
    );
}

#[test]
fn what_holds_for_all_is_in_the_sets_of_its_family() {
    let frontends = crate::service::Frontends {
        cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        node_addresses: ["192.0.2.1", "127.0.0.1", "2001:db8::1"]
            .map(|a| a.parse().unwrap())
            .into(),
        ..crate::service::Frontends::default()
    };
    let pods = ["10.5.0.0/16".parse().unwrap(), "255.0.0.0/8".parse().unwrap()];
    let four: Vec<NftElement> = general_elements(&frontends, &pods, true).into_iter().collect();
    assert_eq!(
        count(&four, NftSet::Cidrs),
        2,
        "first address, and the first behind"
    );
    assert_eq!(
        count(&four, NftSet::Pods),
        3,
        "nothing lies behind the last address"
    );
    assert_eq!(count(&four, NftSet::NodeAddresses), 1, "loopback is not one");
    let six = general_elements(&frontends, &pods, false);
    assert_eq!(six.len(), 3);
}
