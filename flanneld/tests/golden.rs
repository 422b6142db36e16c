//! What our nodes publish for each backend is what nodes of flannel publish, byte for byte, but for the identity behind it. The files are
//! those of crates/model/tests/golden.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use flannel_daemon::publish::{Published, Publisher, Vtep};
use flannel_lease::Identity;
use flannel_model::{BackendSettings, LeaseValue, Mac, NetworkConfig, NodeId, UdpLeaseData};

const KEY: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=";

fn golden(name: &str) -> String {
    let path = format!(
        "{}/../crates/model/tests/golden/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().nth(1).unwrap().to_owned()
}

/// What a node with this backend publishes at its first start.
fn published(backend: &str, dual: bool, node: Option<NodeId>) -> LeaseValue {
    let families = match dual {
        false => "",
        true => r#""EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56","#,
    };
    let text = format!(r#"{{{families}"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    let config = NetworkConfig::parse(text.as_bytes()).unwrap();
    let vtep = |address: &str| Vtep::new(None, address.parse::<Mac>().unwrap());
    let backend = match config.backend.settings {
        BackendSettings::Vxlan(options) => Published::Vxlan {
            vni: options.vni,
            ipv4: vtep("8a:55:6f:01:02:03"),
            ipv6: vtep("7e:11:22:33:44:55"),
        },
        BackendSettings::Wireguard(options) => Published::wireguard(KEY.parse().unwrap(), &options),
        BackendSettings::HostGw => Published::Name("host-gw"),
        BackendSettings::Ipip(_) => Published::Name("ipip"),
        BackendSettings::Udp(_) => Published::Udp(UdpLeaseData {
            port: None,
            ecn: true,
        }),
        BackendSettings::Alloc | BackendSettings::Unread => Published::Nothing,
    };
    let identity = Identity {
        public_ip: "192.168.50.11".parse().unwrap(),
        public_ipv6: dual.then(|| "fd00:50::11".parse().unwrap()),
        node,
    };
    Publisher::new(identity, config.pools, backend).value(None)
}

const BACKENDS: [(&str, &str, bool); 8] = [
    ("alloc", r#"{"Type":"alloc"}"#, false),
    ("host-gw", r#"{"Type":"host-gw"}"#, false),
    ("host-gw-dual", r#"{"Type":"host-gw"}"#, true),
    ("ipip", r#"{"Type":"ipip"}"#, false),
    ("vxlan", r#"{"Type":"vxlan"}"#, false),
    ("vxlan-dual", r#"{"Type":"vxlan"}"#, true),
    ("wireguard", r#"{"Type":"wireguard"}"#, false),
    ("wireguard-dual", r#"{"Type":"wireguard"}"#, true),
];

#[test]
fn every_backend_publishes_flannels_bytes() {
    for (name, backend, dual) in BACKENDS {
        assert_eq!(published(backend, dual, None).to_json(), golden(name), "{name}");
    }
}

#[test]
fn the_identity_comes_behind_them() {
    for (name, backend, dual) in BACKENDS {
        let flannels = golden(name);
        let ours = published(backend, dual, Some(NodeId::new(7))).to_json();
        let expected = format!(
            r#"{},"NodeID":"00000000000000000000000000000007"}}"#,
            flannels.strip_suffix('}').unwrap()
        );
        assert_eq!(ours, expected, "{name}");
    }
}

/// Nodes of flannel write no BackendData in udp, and read none: what ours say there is for each other.
#[test]
fn udp_names_no_type_as_flannels_does_not() {
    let ours = published(r#"{"Type":"udp"}"#, false, None);
    let without = LeaseValue {
        backend_data: None,
        ..ours.clone()
    };
    assert!(ours.backend_data.is_some());
    assert_eq!(without.to_json(), golden("udp"));
}
