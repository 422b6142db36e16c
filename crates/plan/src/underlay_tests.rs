//! The choice of the interface, option by option.

use std::net::Ipv4Addr;

use crate::underlay::{
    CanReach, DefaultRoute, Interface, InterfaceAddress, UnderlayError, UnderlayOptions, choose_underlay,
};

fn address(text: &str) -> InterfaceAddress {
    InterfaceAddress {
        address: text.parse().unwrap(),
        host_scope: text.starts_with("127."),
        permanent: true,
        deprecated: false,
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
        ifindex: 3,
        metric: 200,
    },
    DefaultRoute {
        ifindex: 2,
        metric: 100,
    },
];

fn choose(options: UnderlayOptions) -> Result<(String, String, String), UnderlayError> {
    let chosen = choose_underlay(&node(), &DEFAULTS, &options)?;
    Ok((
        chosen.name,
        chosen.address.to_string(),
        chosen.public_ip.to_string(),
    ))
}

fn chosen(name: &str, address: &str, public_ip: &str) -> Result<(String, String, String), UnderlayError> {
    Ok((name.into(), address.into(), public_ip.into()))
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn without_options_the_best_default_route_decides() {
    assert_eq!(
        choose(UnderlayOptions::default()),
        chosen("eth0", "192.0.2.5", "192.0.2.5")
    );
}

#[test]
fn interfaces_are_tried_in_order_by_name_and_by_address() {
    let options = |list: &[&str]| UnderlayOptions {
        iface: texts(list),
        ..UnderlayOptions::default()
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
        ..UnderlayOptions::default()
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
        target: Ipv4Addr::new(203, 0, 113, 1),
        way: None,
    };
    let options = UnderlayOptions {
        iface: texts(&["eth7", "192.0.2.99", "eth10"]),
        iface_regex: texts(&["[", "^wlan"]),
        iface_can_reach: Some(can_reach),
        public_ip: None,
    };
    let error = choose(options).unwrap_err().to_string();
    let expected = "no interface for the tunnels: --iface eth7: no interface of that name; \
        --iface 192.0.2.99: no interface has that address; --iface eth10: eth10 has no IPv4 address to use; \
        --iface-regex [: not a regular expression; --iface-regex ^wlan: fits no address and no name; \
        --iface-can-reach 203.0.113.1: no route to that address; interfaces here: lo (127.0.0.1), \
        eth0 (192.0.2.5 198.51.100.5), eth1 (10.1.0.5), eth10 (no IPv4 address); name one of them with --iface";
    assert_eq!(error, expected);
}

#[test]
fn the_way_to_an_address_gives_device_and_source() {
    let way = |ifindex, source: Option<[u8; 4]>| UnderlayOptions {
        iface_can_reach: Some(CanReach {
            target: Ipv4Addr::new(203, 0, 113, 1),
            way: Some((ifindex, source.map(Ipv4Addr::from))),
        }),
        ..UnderlayOptions::default()
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
        ..UnderlayOptions::default()
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
        choose_underlay(interfaces, &DEFAULTS, &UnderlayOptions::default())
            .unwrap()
            .address
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
    let error = choose_underlay(&[eth.clone()], &DEFAULTS, &UnderlayOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("default route: eth0 has MTU 0"),
        "{error}"
    );
    let error = choose_underlay(&[eth], &[], &UnderlayOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("default route: there is none"),
        "{error}"
    );
}
