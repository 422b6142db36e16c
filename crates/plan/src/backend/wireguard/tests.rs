//! Who becomes a peer of the WireGuard device, with which endpoint, and who does not.

use crate::Out;
use flannel_lease::Revisions;
use flannel_model::LeaseValue;

use super::*;
use crate::overlay::Carrier;

fn key(n: u8) -> WireguardPublicKey {
    WireguardPublicKey([n; 32])
}

fn lease(n: u8, created: i64, value: &str) -> LeasePeer {
    let text =
        format!(r#"{{"PublicIP":"192.168.50.{n}","PublicIPv6":null,"BackendType":"wireguard"{value}}}"#);
    LeasePeer {
        key: format!("10.5.{n}.0-24").parse().unwrap(),
        value: LeaseValue::parse(text.as_bytes()).unwrap(),
        revisions: Revisions {
            created,
            modified: created,
        },
    }
}

fn data(name: &str, of: u8, port: u16) -> String {
    format!(r#","{name}":{{"PublicKey":"{}","Port":{port}}}"#, key(of))
}

fn backend(mode: WireguardMode) -> Wireguard {
    Wireguard {
        options: WireguardOptions {
            mode,
            keepalive: 25,
            psk: Some(WireguardSecret::preshared([7; 32])),
            ..WireguardOptions::default()
        },
        private: WireguardSecret::private([1; 32]),
        public: key(1),
        global_ipv6: true,
    }
}

fn run(backend: Wireguard, leases: &[LeasePeer]) -> (DesiredOverlay, Vec<Useless>) {
    let facts = FamilyFacts {
        network: "10.5.0.0/16".parse().unwrap(),
        own_subnet: "10.5.1.0/24".parse().unwrap(),
        carrier: Carrier {
            ifindex: 2,
            mtu: 1500,
            address: [192, 168, 50, 1].into(),
        },
        connected: &[],
    };
    let leases: Vec<&LeasePeer> = leases.iter().collect();
    backend.overlay(&facts, &leases)
}

fn peers(overlay: &DesiredOverlay) -> BTreeMap<WireguardPublicKey, WireguardPeer> {
    let tunnel = overlay.tunnel.as_ref().and_then(|t| t.wireguard.as_ref());
    tunnel.unwrap().peers.clone()
}

#[test]
fn a_peer_has_its_subnet_its_endpoint_and_the_options() {
    let (overlay, useless) = run(
        backend(WireguardMode::Separate),
        &[
            lease(2, 2, &data("BackendData", 2, 51_999)),
            lease(3, 3, &data("BackendData", 3, 0)),
        ],
    );
    assert_eq!((useless, overlay.peers, overlay.mtu), (Vec::new(), 2, 1420));
    let tunnel = overlay.tunnel.as_ref().unwrap();
    assert_eq!(tunnel.link.device.to_string(), "flannel-wg");
    // The whole network leads into the device: what nobody holds is dropped there, never sent in the clear.
    let network = "10.5.0.0/16".parse().unwrap();
    assert_eq!(overlay.routes.keys().collect::<Vec<_>>(), [&network]);
    assert_eq!(overlay.routes[&network].out, Out::Tunnel);
    assert_eq!(overlay.blackholes, [network].into());
    let peers = peers(&overlay);
    let second = &peers[&key(2)];
    assert_eq!(second.endpoint, "192.168.50.2:51999".parse().unwrap());
    assert_eq!(second.allowed, ["10.5.2.0/24".parse().unwrap()].into());
    assert_eq!(second.keepalive, 25);
    assert!(second.preshared == Some(WireguardSecret::preshared([7; 32])));
    // A lease without a port: ours (flannel's leases before 0.16 had none).
    assert_eq!(peers[&key(3)].endpoint, "192.168.50.3:51820".parse().unwrap());
}

#[test]
fn a_key_belongs_to_who_had_it_first() {
    let stolen = lease(9, 5, &data("BackendData", 2, 51_820));
    let first = lease(2, 2, &data("BackendData", 2, 51_820));
    let (overlay, useless) = run(backend(WireguardMode::Separate), &[stolen, first.clone()]);
    let peers = peers(&overlay);
    assert_eq!(peers[&key(2)].endpoint, "192.168.50.2:51820".parse().unwrap());
    assert_eq!(peers[&key(2)].allowed, ["10.5.2.0/24".parse().unwrap()].into());
    let holder = first.key;
    assert_eq!(
        useless,
        [("10.5.9.0-24".parse().unwrap(), Reject::SharedKey { holder })]
    );
}

#[test]
fn a_node_with_two_subnets_is_one_peer() {
    let mut second = lease(4, 5, &data("BackendData", 2, 51_820));
    second.value.public_ip = [192, 168, 50, 2].into();
    let first = lease(2, 2, &data("BackendData", 2, 51_820));
    let (overlay, useless) = run(backend(WireguardMode::Separate), &[first, second]);
    assert_eq!(useless, []);
    let expected = ["10.5.2.0/24", "10.5.4.0/24"].map(|text| text.parse().unwrap());
    assert_eq!(peers(&overlay)[&key(2)].allowed, expected.into());
}

#[test]
fn who_cannot_be_a_peer_is_named_and_harms_nobody() {
    let zero = data("BackendData", 0, 51_820);
    let own = data("BackendData", 1, 51_820);
    let bad = r#","BackendData":{"PublicKey":"hello"}"#;
    let mut other = lease(6, 6, "");
    other.value.backend_type = Some("vxlan".into());
    let leases = [
        lease(2, 2, &zero),
        lease(3, 3, &own),
        lease(4, 4, bad),
        lease(5, 5, ""),
        other,
        lease(7, 7, &data("BackendData", 7, 51_820)),
    ];
    let (overlay, useless) = run(backend(WireguardMode::Separate), &leases);
    assert_eq!(peers(&overlay).keys().collect::<Vec<_>>(), [&key(7)]);
    let texts: Vec<String> = useless.iter().map(|(_, why)| why.to_string()).collect();
    let parts = ["all zeros", "own", "PublicKey", "missing", "vxlan"];
    assert_eq!(texts.len(), parts.len(), "{texts:?}");
    for (text, part) in texts.iter().zip(parts) {
        assert!(text.contains(part), "{text:?} does not name {part}");
    }
}

#[test]
fn modes_choose_the_underlay_and_the_devices() {
    let both = |public_ip: [u8; 4]| {
        let mut lease = lease(2, 2, &data("BackendData", 2, 51_820));
        lease.value.public_ip = public_ip.into();
        lease.value.public_ipv6 = Some("2001:db8::2".parse().unwrap());
        lease
    };
    let endpoint = |mode, lease: LeasePeer| {
        let (overlay, _) = run(backend(mode), &[lease]);
        peers(&overlay)[&key(2)].endpoint.to_string()
    };
    let private = [192, 168, 50, 2];
    let public = [203, 0, 113, 2];
    let cases = [
        (WireguardMode::Separate, private, "192.168.50.2:51820"),
        (WireguardMode::Ipv4, private, "192.168.50.2:51820"),
        (WireguardMode::Ipv6, private, "[2001:db8::2]:51820"),
        (WireguardMode::Auto, private, "[2001:db8::2]:51820"),
        (WireguardMode::Auto, public, "203.0.113.2:51820"),
    ];
    for (mode, address, expected) in cases {
        assert_eq!(endpoint(mode, both(address)), expected, "{mode:?}");
    }
    let without = lease(2, 2, &data("BackendData", 2, 51_820));
    let (_, useless) = run(backend(WireguardMode::Ipv6), &[without]);
    assert_eq!(useless[0].1, Reject::NoPublicIpv6);
}
