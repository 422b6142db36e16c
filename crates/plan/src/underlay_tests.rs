//! The choice of the interface, option by option.

use std::net::{IpAddr, Ipv4Addr};

use flannel_model::{Families, IpFamily};

use crate::underlay::{
    CanReach, DefaultRoute, Interface, InterfaceAddress, UnderlayError, UnderlayOptions, choose_underlay,
};

fn address(text: &str) -> InterfaceAddress {
    InterfaceAddress {
        address: text.parse().unwrap(),
        length: if text.contains(':') { 64 } else { 24 },
        host_scope: text.starts_with("127.") || text == "::1",
        permanent: true,
        deprecated: false,
        temporary: false,
    }
}

fn interface(ifindex: u32, name: &str, addresses: &[&str]) -> Interface {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    Interface {
        ifindex,
        name: name.into(),
        mtu: 1500,
        up: true,
        addresses,
    }
}

fn node() -> Vec<Interface> {
    vec![
        interface(1, "lo", &["127.0.0.1"]),
        interface(2, "eth0", &["192.0.2.5", "198.51.100.5"]),
        interface(3, "eth1", &["10.1.0.5"]),
        interface(4, "eth10", &[]),
    ]
}

const DEFAULTS: [DefaultRoute; 2] = [
    DefaultRoute {
        family: IpFamily::V4,
        ifindex: 3,
        metric: 200,
    },
    DefaultRoute {
        family: IpFamily::V4,
        ifindex: 2,
        metric: 100,
    },
];

fn choose(options: UnderlayOptions) -> Result<(String, String, String), UnderlayError> {
    let chosen = choose_underlay(&node(), &DEFAULTS, &options)?;
    Ok((
        chosen.name,
        chosen.address.ipv4().unwrap().to_string(),
        chosen.public_ip.ipv4().unwrap().to_string(),
    ))
}

fn chosen(name: &str, address: &str, public_ip: &str) -> Result<(String, String, String), UnderlayError> {
    Ok((name.into(), address.into(), public_ip.into()))
}

fn ipv4() -> UnderlayOptions {
    UnderlayOptions::for_families(Families::Ipv4(()))
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn without_options_the_best_default_route_decides() {
    assert_eq!(choose(ipv4()), chosen("eth0", "192.0.2.5", "192.0.2.5"));
}

#[test]
fn interfaces_are_tried_in_order_by_name_and_by_address() {
    let options = |list: &[&str]| UnderlayOptions {
        iface: texts(list),
        ..ipv4()
    };
    assert_eq!(
        choose(options(&["eth7", "eth1"])),
        chosen("eth1", "10.1.0.5", "10.1.0.5")
    );
    assert_eq!(
        choose(options(&["198.51.100.5"])),
        chosen("eth0", "198.51.100.5", "198.51.100.5")
    );
    assert_eq!(
        choose(options(&["eth10", "10.1.0.5"])),
        chosen("eth1", "10.1.0.5", "10.1.0.5")
    );
}

#[test]
fn a_pattern_prefers_addresses_to_names_and_is_not_anchored() {
    let options = |list: &[&str]| UnderlayOptions {
        iface_regex: texts(list),
        ..ipv4()
    };
    // Fits the name eth1, but the address of eth0 as well.
    assert_eq!(
        choose(options(&["eth1|^198"])),
        chosen("eth0", "198.51.100.5", "198.51.100.5")
    );
    assert_eq!(choose(options(&["th1$"])), chosen("eth1", "10.1.0.5", "10.1.0.5"));
    assert_eq!(
        choose(options(&["(", "^10\\."])),
        chosen("eth1", "10.1.0.5", "10.1.0.5")
    );
    // No loopback address is taken for one that peers could send to.
    assert!(choose(options(&["^127\\."])).is_err());
}

#[test]
fn options_that_fail_do_not_fall_back_to_the_default_route() {
    let can_reach = CanReach {
        target: IpAddr::from([203, 0, 113, 1]),
        way: None,
    };
    let options = UnderlayOptions {
        iface: texts(&["eth7", "192.0.2.99", "eth10"]),
        iface_regex: texts(&["[", "^wlan"]),
        iface_can_reach: Some(can_reach),
        ..ipv4()
    };
    let error = choose(options).unwrap_err().to_string();
    let expected = "no interface for the tunnels: --iface eth7: no interface of that name; \
        --iface 192.0.2.99: no interface has that address; --iface eth10: eth10 has no IPv4 address to use; \
        --iface-regex [: not a regular expression; --iface-regex ^wlan: fits no address and no name; \
        --iface-can-reach 203.0.113.1: no route to that address; interfaces here: lo (127.0.0.1), \
        eth0 (192.0.2.5 198.51.100.5), eth1 (10.1.0.5), eth10 (no address); name one of them with --iface";
    assert_eq!(error, expected);
}

#[test]
fn the_way_to_an_address_gives_device_and_source() {
    let way = |ifindex, source: Option<[u8; 4]>| UnderlayOptions {
        iface_can_reach: Some(CanReach {
            target: IpAddr::from([203, 0, 113, 1]),
            way: Some((ifindex, source.map(IpAddr::from))),
        }),
        ..ipv4()
    };
    assert_eq!(
        choose(way(2, Some([198, 51, 100, 5]))),
        chosen("eth0", "198.51.100.5", "198.51.100.5")
    );
    assert_eq!(choose(way(3, None)), chosen("eth1", "10.1.0.5", "10.1.0.5"));
    assert!(
        choose(way(9, None))
            .unwrap_err()
            .to_string()
            .contains("interface 9, which is gone")
    );
}

#[test]
fn a_public_address_decides_or_is_only_published() {
    let options = |ip: [u8; 4], iface: &[&str]| UnderlayOptions {
        public_ip: Some(ip.into()),
        iface: texts(iface),
        ..ipv4()
    };
    assert_eq!(
        choose(options([10, 1, 0, 5], &[])),
        chosen("eth1", "10.1.0.5", "10.1.0.5")
    );
    assert_eq!(
        choose(options([203, 0, 113, 9], &[])),
        chosen("eth0", "192.0.2.5", "203.0.113.9")
    );
    assert_eq!(
        choose(options([203, 0, 113, 9], &["eth1"])),
        chosen("eth1", "10.1.0.5", "203.0.113.9")
    );
}

#[test]
fn the_best_address_of_a_device_is_taken() {
    let mut eth = interface(2, "eth0", &["169.254.3.4", "192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    eth.addresses[1].deprecated = true;
    eth.addresses[2].permanent = false;
    let address = |eth: &Interface| {
        let interfaces = std::slice::from_ref(eth);
        choose_underlay(interfaces, &DEFAULTS, &ipv4())
            .unwrap()
            .address
            .ipv4()
            .unwrap()
            .to_string()
    };
    assert_eq!(address(&eth), "192.0.2.3");
    eth.addresses.pop();
    assert_eq!(address(&eth), "192.0.2.2");
    eth.addresses.pop();
    assert_eq!(address(&eth), "169.254.3.4");
}

#[test]
fn an_mtu_of_zero_and_a_missing_default_route_are_errors() {
    let mut eth = interface(2, "eth0", &["192.0.2.1"]);
    eth.mtu = 0;
    let error = choose_underlay(&[eth.clone()], &DEFAULTS, &ipv4()).unwrap_err();
    assert!(
        error.to_string().contains("default route: eth0 has MTU 0"),
        "{error}"
    );
    let error = choose_underlay(&[eth], &[], &ipv4()).unwrap_err();
    assert!(
        error.to_string().contains("default route: there is none"),
        "{error}"
    );
}

const V6_DEFAULT: DefaultRoute = DefaultRoute {
    family: IpFamily::V6,
    ifindex: 3,
    metric: 1024,
};

fn dual_node() -> Vec<Interface> {
    let mut temporary = address("2001:db8::77");
    temporary.temporary = true;
    let mut eth1 = interface(3, "eth1", &["10.1.0.5", "fe80::1", "2001:db8::5"]);
    eth1.addresses.insert(1, temporary);
    vec![
        interface(1, "lo", &["127.0.0.1", "::1"]),
        interface(2, "eth0", &["192.0.2.5", "fe80::2"]),
        eth1,
    ]
}

fn addresses(defaults: &[DefaultRoute], options: &UnderlayOptions) -> Result<String, String> {
    let chosen = choose_underlay(&dual_node(), defaults, options).map_err(|error| error.to_string())?;
    Ok(format!(
        "{} {:?} {:?}",
        chosen.name, chosen.address, chosen.public_ip
    ))
}

#[test]
fn dual_stack_needs_one_interface_with_both_families() {
    let dual = UnderlayOptions::for_families(Families::Dual((), ()));
    let both = [
        DefaultRoute {
            metric: 1,
            ..DEFAULTS[0]
        },
        V6_DEFAULT,
    ];
    assert_eq!(
        addresses(&both, &dual).unwrap(),
        "eth1 Dual(10.1.0.5, 2001:db8::5) Dual(10.1.0.5, 2001:db8::5)"
    );
    let apart = [DEFAULTS[1], V6_DEFAULT];
    let error = addresses(&apart, &dual).unwrap_err();
    assert!(
        error.contains("IPv4 leaves by eth0, that of IPv6 by eth1"),
        "{error}"
    );
    let named = UnderlayOptions {
        iface: texts(&["eth0", "2001:db8::77"]),
        public_ip: Some(Ipv4Addr::new(203, 0, 113, 9)),
        public_ipv6: Some("2001:db8:9::9".parse().unwrap()),
        ..dual
    };
    // eth0 has but a link-local IPv6 address; the address that was named counts, temporary or not.
    assert_eq!(
        addresses(&[], &named).unwrap(),
        "eth1 Dual(10.1.0.5, 2001:db8::77) Dual(203.0.113.9, 2001:db8:9::9)"
    );
}

#[test]
fn ipv6_alone_goes_by_its_own_default_route_and_flags() {
    let ipv6 = UnderlayOptions::for_families(Families::Ipv6(()));
    let defaults = [DEFAULTS[1], V6_DEFAULT];
    let expected = "eth1 Ipv6(2001:db8::5) Ipv6(2001:db8::5)";
    assert_eq!(addresses(&defaults, &ipv6).unwrap(), expected);
    let by_public = UnderlayOptions {
        public_ip: Some(Ipv4Addr::new(192, 0, 2, 5)),
        public_ipv6: Some("2001:db8::5".parse().unwrap()),
        ..ipv6.clone()
    };
    assert_eq!(addresses(&[], &by_public).unwrap(), expected);
    let by_reach = UnderlayOptions {
        iface_can_reach: Some(CanReach {
            target: "3fff::1".parse().unwrap(),
            way: Some((3, Some("2001:db8::77".parse().unwrap()))),
        }),
        ..ipv6.clone()
    };
    assert!(addresses(&[], &by_reach).unwrap().contains("2001:db8::77"));
    let by_pattern = UnderlayOptions {
        iface_regex: texts(&["^192\\.", "^2001:db8:"]),
        ..ipv6
    };
    // The pattern that fits only an IPv4 address fits nothing here.
    assert_eq!(addresses(&[], &by_pattern).unwrap(), expected);
}
