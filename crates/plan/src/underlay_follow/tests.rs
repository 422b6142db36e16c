use super::*;
use crate::underlay::{CanReach, InterfaceAddress};

const NO_TIME: Duration = Duration::ZERO;

fn address(text: &str) -> InterfaceAddress {
    InterfaceAddress {
        address: text.parse().unwrap(),
        length: if text.contains(':') { 64 } else { 24 },
        host_scope: false,
        permanent: true,
        deprecated: false,
        temporary: false,
    }
}

fn interface(ifindex: u32, name: &str, addresses: &[&str]) -> Interface {
    Interface {
        ifindex,
        name: name.into(),
        mtu: 1500,
        up: true,
        addresses: addresses.iter().map(|text| address(text)).collect(),
    }
}

fn default_by(ifindex: u32) -> DefaultRoute {
    DefaultRoute {
        family: IpFamily::V4,
        ifindex,
        metric: 100,
    }
}

fn ipv4() -> UnderlayOptions {
    UnderlayOptions::for_families(Families::Ipv4(()))
}

fn dual() -> UnderlayOptions {
    UnderlayOptions::for_families(Families::Dual((), ()))
}

/// What a node with these flags chose when it started on eth0, of index 2.
fn start(options: &UnderlayOptions, addresses: &[&str]) -> Underlay {
    let there = [interface(2, "eth0", addresses)];
    let v6 = DefaultRoute {
        family: IpFamily::V6,
        ..default_by(2)
    };
    choose_underlay(&there, &[default_by(2), v6], options).unwrap()
}

fn follow(now: &Underlay, there: &[Interface], options: &UnderlayOptions, lost_for: Duration) -> Followed {
    let defaults: Vec<DefaultRoute> = there.iter().map(|i| default_by(i.ifindex)).collect();
    let host = Host {
        interfaces: there,
        defaults: &defaults,
        options,
    };
    follow_underlay(now, &host, lost_for)
}

fn addresses(followed: &Followed) -> Vec<String> {
    both(&followed.underlay.address).map(|a| a.to_string()).collect()
}

fn published(followed: &Followed) -> Vec<String> {
    both(&followed.underlay.public_ip)
        .map(|a| a.to_string())
        .collect()
}

#[test]
fn what_stays_as_it_is_is_left_as_it_is() {
    let now = start(&ipv4(), &["192.0.2.5"]);
    let there = [interface(2, "eth0", &["192.0.2.5"])];
    let followed = follow(&now, &there, &ipv4(), NO_TIME);
    assert_eq!(
        (followed.underlay, followed.missing, followed.other),
        (now, None, None)
    );
}

#[test]
fn an_address_is_kept_while_it_is_there_and_then_the_next_one_is_taken() {
    let now = start(&ipv4(), &["192.0.2.5"]);
    // The new one first, the old one gone later.
    let there = [interface(2, "eth0", &["198.51.100.9", "192.0.2.5"])];
    assert_eq!(addresses(&follow(&now, &there, &ipv4(), NO_TIME)), ["192.0.2.5"]);
    let there = [interface(2, "eth0", &["198.51.100.9"])];
    let followed = follow(&now, &there, &ipv4(), NO_TIME);
    assert_eq!(addresses(&followed), ["198.51.100.9"]);
    assert_eq!(published(&followed), ["198.51.100.9"]);
    let connected: Vec<String> = followed
        .underlay
        .connected
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(connected, ["198.51.100.0/24"]);
    // With a gap in between nothing is known but that it is missing, and all stays as it was.
    let gap = follow(&now, &[interface(2, "eth0", &[])], &ipv4(), NO_TIME);
    assert_eq!(gap.underlay, now);
    assert!(gap.missing.unwrap().starts_with("eth0 has no IPv4 address"));
}

#[test]
fn another_mtu_and_another_index_are_taken() {
    let now = start(&ipv4(), &["192.0.2.5"]);
    let there = [Interface {
        mtu: 9000,
        ..interface(7, "eth0", &["192.0.2.5"])
    }];
    let followed = follow(&now, &there, &ipv4(), NO_TIME);
    assert_eq!((followed.underlay.ifindex, followed.underlay.mtu), (7, 9000));
    assert_eq!(followed.missing, None);
    // Another name is the same interface as long as the index is.
    let renamed = [interface(2, "lan0", &["192.0.2.5"])];
    assert_eq!(follow(&now, &renamed, &ipv4(), NO_TIME).underlay.name, "lan0");
}

#[test]
fn a_better_default_route_elsewhere_moves_nobody() {
    let now = start(&ipv4(), &["192.0.2.5"]);
    let there = [
        interface(2, "eth0", &["192.0.2.5"]),
        interface(3, "eth1", &["10.1.0.5"]),
    ];
    let better = DefaultRoute {
        metric: 10,
        ..default_by(3)
    };
    let options = ipv4();
    let host = Host {
        interfaces: &there,
        defaults: &[default_by(2), better],
        options: &options,
    };
    let followed = follow_underlay(&now, &host, NO_TIME);
    assert_eq!(followed.underlay, now);
    assert_eq!(followed.other.as_deref(), Some("eth1"));
    // Nor does it when the address changes at the same time.
    let there = [interface(2, "eth0", &["192.0.2.6"]), there[1].clone()];
    let host = Host {
        interfaces: &there,
        ..host
    };
    let followed = follow_underlay(&now, &host, NO_TIME);
    assert_eq!(
        (followed.underlay.ifindex, addresses(&followed)),
        (2, vec!["192.0.2.6".to_owned()])
    );
}

#[test]
fn an_interface_that_is_gone_is_waited_for_and_then_another_one_is_taken() {
    let now = start(&ipv4(), &["192.0.2.5"]);
    for there in [
        vec![interface(3, "eth1", &["10.1.0.5"])],
        vec![interface(3, "eth1", &["10.1.0.5"]), interface(2, "eth0", &[])],
    ] {
        let waiting = follow(&now, &there, &ipv4(), PATIENCE - Duration::from_millis(1));
        assert_eq!(waiting.underlay, now);
        assert!(waiting.missing.unwrap().contains("waited for"));
        let then = follow(&now, &there[..1], &ipv4(), PATIENCE);
        assert_eq!((then.underlay.name.as_str(), then.missing), ("eth1", None));
    }
    let nothing = follow(&now, &[], &ipv4(), PATIENCE);
    assert_eq!(nothing.underlay, now);
    let missing = nothing.missing.unwrap();
    assert!(
        missing.contains("eth0 is gone") && missing.contains("name one of them"),
        "{missing}"
    );
}

#[test]
fn addresses_that_went_to_a_bridge_are_followed_at_once() {
    let now = start(&dual(), &["192.0.2.5", "fd00::5"]);
    let there = [
        interface(2, "eth0", &[]),
        interface(3, "eth1", &["10.1.0.5", "fd01::5"]),
        interface(4, "br0", &["192.0.2.5", "fd00::5"]),
    ];
    let followed = follow(&now, &there, &dual(), NO_TIME);
    assert_eq!((followed.underlay.name.as_str(), followed.missing), ("br0", None));
    assert_eq!(
        addresses(&Followed {
            missing: None,
            ..follow(&now, &there, &dual(), NO_TIME)
        }),
        ["192.0.2.5", "fd00::5"]
    );
    // Not where the operator named the interface.
    let named = UnderlayOptions {
        iface: vec!["eth0".into()],
        ..dual()
    };
    let followed = follow(&now, &there, &named, NO_TIME);
    assert_eq!((followed.underlay.ifindex, followed.missing.is_some()), (2, true));
}

#[test]
fn what_the_flags_pin_stays() {
    let public = UnderlayOptions {
        public_ip: Some(Ipv4Addr::new(203, 0, 113, 7)),
        ..ipv4()
    };
    let now = start(&public, &["192.0.2.5"]);
    let there = [interface(2, "eth0", &["192.0.2.6"])];
    let followed = follow(&now, &there, &public, NO_TIME);
    assert_eq!(
        (addresses(&followed), published(&followed)),
        (vec!["192.0.2.6".into()], vec!["203.0.113.7".into()])
    );

    // An address that was named is the only one, until there is none for it at all.
    let named = UnderlayOptions {
        iface: vec!["192.0.2.5".into()],
        ..ipv4()
    };
    let now = start(&named, &["192.0.2.5"]);
    let there = [interface(2, "eth0", &["192.0.2.6"])];
    let followed = follow(&now, &there, &named, PATIENCE * 2);
    assert_eq!(followed.underlay, now);
    assert!(followed.missing.unwrap().contains("--iface 192.0.2.5"));

    let pattern = UnderlayOptions {
        iface_regex: vec!["^192\\.0\\.".into(), "^eth".into()],
        ..ipv4()
    };
    let now = start(&pattern, &["10.9.9.9", "192.0.2.5"]);
    let there = [
        interface(1, "wan0", &["192.0.3.1"]),
        interface(2, "eth0", &["10.9.9.9", "192.0.2.8"]),
    ];
    // The pattern fits there as well, but the node stays where it is.
    assert_eq!(addresses(&follow(&now, &there, &pattern, NO_TIME)), ["192.0.2.8"]);
    let there = [interface(2, "eth0", &["10.9.9.9"])];
    assert_eq!(addresses(&follow(&now, &there, &pattern, NO_TIME)), ["10.9.9.9"]);
}

#[test]
fn the_way_to_an_address_decides_where_it_was_asked_for() {
    let reach = |way| UnderlayOptions {
        iface_can_reach: Some(CanReach {
            target: "192.0.2.1".parse().unwrap(),
            way,
        }),
        ..ipv4()
    };
    let now = start(&reach(Some((2, None))), &["192.0.2.5"]);
    let there = [
        interface(2, "eth0", &["192.0.2.6"]),
        interface(3, "eth1", &["10.1.0.5"]),
    ];
    let found = |way, lost_for| follow(&now, &there, &reach(way), lost_for);
    let source = Some("192.0.2.6".parse().unwrap());
    assert_eq!(addresses(&found(Some((2, source)), NO_TIME)), ["192.0.2.6"]);
    // Before the route is back, or while it leads elsewhere, the interface is waited for.
    assert!(found(None, NO_TIME).missing.is_some());
    assert_eq!(found(Some((3, None)), NO_TIME).underlay, now);
    assert_eq!(found(Some((3, None)), PATIENCE).underlay.name, "eth1");
}

#[test]
fn each_family_is_followed_by_itself() {
    let now = start(&dual(), &["192.0.2.5", "fd00::5"]);
    let there = [interface(2, "eth0", &["192.0.2.6"])];
    let followed = follow(&now, &there, &dual(), PATIENCE * 2);
    assert_eq!(addresses(&followed), ["192.0.2.6", "fd00::5"]);
    assert!(followed.missing.unwrap().starts_with("eth0 has no IPv6 address"));
    let there = [interface(2, "eth0", &["192.0.2.6", "fd00::6"])];
    let then = follow(&followed.underlay, &there, &dual(), NO_TIME);
    assert_eq!(published(&then), ["192.0.2.6", "fd00::6"]);
    assert_eq!(then.missing, None);
}

#[test]
fn a_deprecated_address_serves_until_there_is_another() {
    let now = start(&dual(), &["192.0.2.5", "fd00::5"]);
    let mut eth0 = interface(2, "eth0", &["192.0.2.5", "fd00::5"]);
    eth0.addresses[1].deprecated = true;
    let alone = follow(&now, std::slice::from_ref(&eth0), &dual(), NO_TIME);
    assert_eq!((alone.underlay, alone.missing), (now.clone(), None));
    eth0.addresses.push(address("fd00::6"));
    let both = follow(&now, &[eth0], &dual(), NO_TIME);
    assert_eq!(addresses(&both), ["192.0.2.5", "fd00::6"]);
}
