//! Differences between WireGuard devices.

use super::*;

pub const KEY: WireguardPublicKey = WireguardPublicKey([1; 32]);

/// A peer as the kernel shows it once it is written, with the packets for it going to `endpoint`.
pub fn heard(peer: &WireguardPeer, endpoint: Option<SocketAddr>) -> ObservedWireguardPeer {
    ObservedWireguardPeer {
        endpoint,
        written: Some(peer.endpoint),
        is_live: true,
        preshared: peer.preshared,
        keepalive: peer.keepalive,
        allowed: peer.allowed.clone(),
    }
}

/// A WireGuard overlay with peers that have these subnets.
fn wireguard(peers: &[(u8, &[u8])]) -> DesiredOverlay {
    let peer = |(key, subnets): &(u8, &[u8])| {
        let peer = WireguardPeer {
            endpoint: SocketAddr::from(([192, 0, 2, *key], 51820)),
            preshared: None,
            keepalive: 0,
            allowed: subnets.iter().map(|n| subnet(*n)).collect(),
        };
        (WireguardPublicKey([*key; 32]), peer)
    };
    let mut desired = wanted(&[]);
    desired.routes.insert(desired.network, Way::device());
    desired.blackholes.insert(desired.network);
    desired.tunnel = Some(Tunnel {
        link: TunnelLink {
            device: Device::Wireguard { family: IpFamily::V4 },
            mtu: 1420,
            kind: LinkKind::Wireguard,
        },
        wireguard: Some(WireguardTunnel {
            private: WireguardSecret::private([7; 32]),
            public: KEY,
            port: 51820,
            peers: peers.iter().map(peer).collect(),
        }),
        ..tunnel(&desired).clone()
    });
    desired
}

#[test]
fn a_wireguard_device_gets_its_key_its_peers_and_one_route_for_all() {
    let desired = wireguard(&[(2, &[2, 22])]);
    let ops = texts(&diff_overlay(&desired, &ObservedOverlay::default()));
    let key = WireguardPublicKey([2; 32]);
    let expected = [
        "link add flannel-wg mtu 1420 type wireguard".to_owned(),
        "link set flannel-wg up".to_owned(),
        "wg set flannel-wg listen-port 51820 private-key (not shown)".to_owned(),
        format!(
            "wg set flannel-wg peer {key} endpoint 192.0.2.2:51820 persistent-keepalive 0 allowed-ips 10.5.2.0/24,10.5.22.0/24"
        ),
        "route add blackhole 10.5.0.0/16 metric 4000000000".to_owned(),
        "address add 10.5.1.0/32 dev flannel-wg".to_owned(),
        "route add 10.5.0.0/16 dev flannel-wg".to_owned(),
    ];
    assert_eq!(ops, expected);
    let mut kernel = settled(&desired);
    assert_eq!(diff_overlay(&desired, &kernel), []);
    // What flannel left: the same device, its route unmarked.
    kernel.routes[0].protocol = 3;
    let adopted = texts(&diff_overlay(&desired, &kernel));
    assert_eq!(adopted, ["route replace 10.5.0.0/16 dev flannel-wg"]);
}

#[test]
fn without_the_device_packets_are_dropped_until_another_backend_takes_over() {
    let desired = wireguard(&[(2, &[2])]);
    let mut kernel = settled(&desired);
    let device = desired.device().unwrap();
    let reason = String::new();
    apply(&mut kernel, &Op::LinkDelete { device, reason }).unwrap();
    assert_eq!(kernel.blackholes, [desired.network].into());
    let ops = texts(&diff_overlay(&wanted(&[peer(2, 12, 2)]), &kernel));
    assert_eq!(
        ops.last().unwrap(),
        "route delete blackhole 10.5.0.0/16 metric 4000000000"
    );
}

#[test]
fn a_subnet_goes_over_to_another_key_after_the_old_one_is_gone() {
    let mut kernel = settled(&wireguard(&[(2, &[2]), (3, &[3])]));
    let desired = wireguard(&[(3, &[3]), (4, &[2])]);
    let ops = diff_overlay(&desired, &kernel);
    let (gone, new) = (WireguardPublicKey([2; 32]), WireguardPublicKey([4; 32]));
    assert_eq!(
        ops[0].to_string(),
        format!("wg set flannel-wg peer {gone} remove")
    );
    assert!(
        ops[1]
            .to_string()
            .starts_with(&format!("wg set flannel-wg peer {new} ")),
        "{}",
        ops[1]
    );
    assert_eq!(ops.len(), 2);
    ops.iter().for_each(|op| apply(&mut kernel, op).unwrap());
    assert_eq!(diff_overlay(&desired, &kernel), []);
}

#[test]
fn a_peer_behind_a_nat_stays_where_it_was_heard_from_until_its_lease_changes() {
    let desired = wireguard(&[(2, &[2])]);
    let mut kernel = settled(&desired);
    let elsewhere = Some(SocketAddr::from(([203, 0, 113, 9], 40_000)));
    let peer = |kernel: &mut ObservedOverlay, change: &dyn Fn(&mut ObservedWireguardPeer)| {
        kernel
            .wireguard
            .as_mut()
            .unwrap()
            .peers
            .values_mut()
            .for_each(change);
    };
    peer(&mut kernel, &|p| p.endpoint = elsewhere);
    assert_eq!(diff_overlay(&desired, &kernel), []);
    // A new process does not know what the old one wrote, but hears the peer.
    peer(&mut kernel, &|p| p.written = None);
    assert_eq!(diff_overlay(&desired, &kernel), []);
    peer(&mut kernel, &|p| p.is_live = false);
    assert_eq!(diff_overlay(&desired, &kernel).len(), 1);
    peer(&mut kernel, &|p| p.written = elsewhere);
    let text = diff_overlay(&desired, &kernel)[0].to_string();
    assert!(text.contains("endpoint 192.0.2.2:51820"), "{text}");
    // Other changes leave it where it is.
    peer(&mut kernel, &|p| {
        (p.written, p.keepalive) = (Some(([192, 0, 2, 2], 51820).into()), 25)
    });
    let text = diff_overlay(&desired, &kernel)[0].to_string();
    assert!(!text.contains("endpoint"), "{text}");
}
