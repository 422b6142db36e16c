//! Single peers exchanged, beside the same made of all peers anew.

use flannel_lease::{Peer as LeasePeer, Revisions};
use flannel_model::{Families, LeaseKey, LeaseValue, VxlanOptions, WireguardOptions};
use proptest::prelude::*;

use super::wireguard::KEY;
use super::*;
use crate::backend::{Backend, FamilyFacts, HostGw, Ipip, Reject, Vxlan, Wireguard};
use crate::diff::exchange_ops;
use crate::exchange::Exchange;
use crate::overlay::Carrier;

const NAMES: [&str; 4] = ["vxlan", "host-gw", "ipip", "wireguard"];

fn backends() -> Vec<Box<dyn Backend>> {
    let vxlan = |direct_routing| Vxlan {
        options: VxlanOptions {
            direct_routing,
            ..VxlanOptions::default()
        },
        macs: Families::Ipv4(mac(1)),
        udp_checksum: true,
    };
    let wireguard = Wireguard {
        options: WireguardOptions::default(),
        private: WireguardSecret::private([7; 32]),
        public: KEY,
        global_ipv6: false,
    };
    vec![
        Box::new(vxlan(false)),
        Box::new(vxlan(true)),
        Box::new(HostGw),
        Box::new(Ipip { direct_routing: true }),
        Box::new(wireguard),
    ]
}

/// What a lease says; where it is read by another backend than its own it is of no use.
#[derive(Debug, Clone)]
struct Says {
    node: u8,
    station: u8,
    backend: usize,
    created: i64,
}

fn lease(n: u8, says: &Says) -> LeasePeer {
    // Every third node is behind a router.
    let link = if says.node.is_multiple_of(3) { 60 } else { 50 };
    let data = match NAMES[says.backend] {
        "vxlan" => format!(r#","BackendData":{{"VNI":1,"VtepMAC":"{}"}}"#, mac(says.station)),
        "wireguard" => {
            let key = WireguardPublicKey([says.station; 32]);
            format!(r#","BackendData":{{"PublicKey":"{key}","Port":51820}}"#)
        }
        _ => String::new(),
    };
    let text = format!(
        r#"{{"PublicIP":"192.168.{link}.{}","PublicIPv6":null,"BackendType":"{}"{data}}}"#,
        says.node, NAMES[says.backend]
    );
    LeasePeer {
        key: format!("10.5.{n}.0-24").parse().unwrap(),
        value: LeaseValue::parse(text.as_bytes()).unwrap(),
        revisions: Revisions {
            created: says.created,
            modified: says.created,
        },
    }
}

fn says(backend: usize) -> impl Strategy<Value = Says> {
    // Mostly everybody has an address of their own, sometimes not; and sometimes another backend.
    let backends = prop_oneof![9 => Just(backend), 1 => 0..NAMES.len()];
    (2u8..9, 2u8..40, backends, 1i64..9).prop_map(|(node, station, backend, created)| Says {
        node,
        station,
        backend,
        created,
    })
}

type Known = BTreeMap<LeaseKey, LeasePeer>;

fn overlay(backend: &dyn Backend, peers: &Known) -> (DesiredOverlay, Vec<(LeaseKey, Reject)>) {
    let facts = FamilyFacts {
        network: "10.5.0.0/16".parse().unwrap(),
        own_subnet: subnet(1),
        carrier: Carrier {
            ifindex: 2,
            mtu: 1500,
            address: IpAddr::from([192, 168, 50, 1]),
        },
        connected: &["192.168.50.0/24".parse().unwrap()],
    };
    backend.overlay(&facts, &peers.values().collect::<Vec<_>>())
}

/// A kernel that has all that is wanted.
fn kernel_with(desired: &DesiredOverlay) -> ObservedOverlay {
    let mut kernel = ObservedOverlay::default();
    let ops = diff_overlay(desired, &kernel);
    for op in ops {
        apply(&mut kernel, &op).unwrap();
    }
    kernel
}

/// One lease is written or deleted. Answers whether that could be done by itself.
fn step(
    backend: &dyn Backend,
    known: &mut Known,
    key: LeaseKey,
    new: Option<LeasePeer>,
) -> Result<bool, TestCaseError> {
    let (old, useless) = overlay(backend, known);
    let part = |peer: Option<&LeasePeer>| {
        overlay(
            backend,
            &peer.iter().map(|peer| (peer.key, (*peer).clone())).collect(),
        )
    };
    let (before, useless_before) = part(known.get(&key));
    let (after, useless_after) = part(new.as_ref());
    match new {
        Some(new) => drop(known.insert(key, new)),
        None => drop(known.remove(&key)),
    }
    let contested = useless.iter().any(|(_, reject)| reject.is_because_of_another());
    if contested || !useless_before.is_empty() || !useless_after.is_empty() {
        return Ok(false);
    }
    let (anew, useless_anew) = overlay(backend, known);
    let exchange = Exchange { before, after };
    if !old.admits(&exchange) {
        return Ok(false);
    }
    let mut whole = old.clone();
    whole.exchange(&exchange);
    prop_assert_eq!(&whole, &anew);
    prop_assert_eq!(useless, useless_anew);
    let Some(ops) = exchange_ops(&exchange) else {
        return Ok(false);
    };
    let mut kernel = kernel_with(&old);
    for op in &ops {
        prop_assert_eq!(apply(&mut kernel, op), Ok(()), "{}", op);
    }
    prop_assert_eq!(diff_overlay(&anew, &kernel), [], "after {:?}", ops);
    Ok(true)
}

proptest! {
    #[test]
    fn step_by_step_is_the_same_as_made_anew(
        kind in 0usize..5,
        steps in proptest::collection::vec((2u8..8, proptest::option::weighted(0.7, says(0))), 1..12),
    ) {
        let backends = backends();
        let names = [0, 0, 1, 2, 3];
        let mut known = Known::new();
        for (n, says) in steps {
            let new = says.map(|says| {
                // Of the generator's first backend are those of the one that is tested.
                let backend = if says.backend == 0 { names[kind] } else { says.backend };
                lease(n, &Says { backend, ..says })
            });
            step(&*backends[kind], &mut known, format!("10.5.{n}.0-24").parse().unwrap(), new)?;
        }
    }
}

#[test]
fn peers_that_meet_nobody_come_change_and_go_by_themselves() {
    for (backend, name) in backends().iter().zip([0, 0, 1, 2, 3]) {
        let mut known = Known::new();
        let of = |node, station| Says {
            node,
            station,
            backend: name,
            created: 1,
        };
        // The last is another station under the same address, so that no route has to be replaced.
        let steps = [
            (2, Some(of(4, 2))),
            (3, Some(of(5, 3))),
            (2, Some(of(4, 9))),
            (3, None),
        ];
        for (n, says) in steps {
            let key = format!("10.5.{n}.0-24").parse().unwrap();
            let new = says.as_ref().map(|says| lease(n, says));
            assert!(
                step(&**backend, &mut known, key, new).unwrap(),
                "{backend:?} {n} {says:?}"
            );
        }
    }
}

#[test]
fn who_meets_another_is_left_to_the_backend() {
    let backends = backends();
    let says = |node, station| Says {
        node,
        station,
        backend: 0,
        created: 1,
    };
    // With and without a route past the tunnel: the second has the first one's Ethernet address.
    for backend in &backends[..2] {
        let mut known = Known::new();
        for (n, node, alone) in [(2, 4, true), (3, 5, false)] {
            let key = format!("10.5.{n}.0-24").parse().unwrap();
            let new = Some(lease(n, &says(node, 7)));
            assert_eq!(
                step(&**backend, &mut known, key, new).unwrap(),
                alone,
                "{backend:?} {n}"
            );
        }
    }
}

#[test]
fn a_route_that_changes_is_looked_at_first() {
    let (backend, mut known) = (HostGw, Known::new());
    for (node, alone) in [(4, true), (5, false)] {
        let says = Says {
            node,
            station: 2,
            backend: 1,
            created: 1,
        };
        let key = "10.5.2.0-24".parse().unwrap();
        assert_eq!(
            step(&backend, &mut known, key, Some(lease(2, &says))).unwrap(),
            alone
        );
    }
}

#[test]
fn a_wireguard_peer_that_moves_is_written_with_its_new_endpoint() {
    let backend = &backends()[4];
    let part = |node| {
        let says = Says {
            node,
            station: 9,
            backend: 3,
            created: 1,
        };
        let lease = lease(2, &says);
        overlay(&**backend, &BTreeMap::from([(lease.key, lease)])).0
    };
    let ops = exchange_ops(&Exchange {
        before: part(4),
        after: part(5),
    });
    let ops = ops.unwrap();
    assert!(
        matches!(&ops[..], [Op::WireguardPeerSet { endpoint: true, .. }]),
        "{ops:?}"
    );
}
