//! What is told of differences.

use super::*;
use crate::diff::{Difference, DifferenceKind, Object, differences};

fn told(desired: &DesiredOverlay, kernel: &ObservedOverlay) -> Vec<String> {
    let lines = differences(desired, kernel, &|index| format!("eth{index}"));
    let text = |d: &Difference| {
        let or_nothing = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        format!(
            "{} {}: {} | {}",
            d.kind,
            d.object,
            or_nothing(&d.wanted),
            or_nothing(&d.found)
        )
    };
    lines.iter().map(text).collect()
}

#[test]
fn a_settled_kernel_does_not_differ() {
    let direct = Peer {
        direct: true,
        ..peer(4, 14, 4)
    };
    let desired = wanted(&[peer(2, 12, 2), direct]);
    assert_eq!(told(&desired, &settled(&desired)), Vec::<String>::new());
}

#[test]
fn what_is_missing_wrong_or_too_much_is_told_by_object() {
    let desired = wanted(&[peer(2, 12, 2), peer(3, 13, 3)]);
    let mut kernel = settled(&wanted(&[peer(2, 77, 2), peer(3, 13, 3), peer(9, 19, 9)]));
    kernel.neighbours.remove(&subnet(3).network());
    kernel.routes.retain(|route| route.destination != subnet(3));
    kernel.link.as_mut().unwrap().mtu = 1500;
    assert_eq!(
        told(&desired, &kernel),
        [
            "wrong device flannel.1: mtu 1450 | mtu 1500",
            "extra route 10.5.9.0/24: - | via 10.5.9.0 dev flannel.1 onlink proto 70",
            "extra fdb 8a:00:00:00:00:09: - | dst 192.0.2.19",
            "extra neighbour 10.5.9.0: - | lladdr 8a:00:00:00:00:09",
            "wrong fdb 8a:00:00:00:00:02: dst 192.0.2.12 | dst 192.0.2.77",
            "missing neighbour 10.5.3.0: lladdr 8a:00:00:00:00:03 | -",
            "missing route 10.5.3.0/24: via 10.5.3.0 dev flannel.1 onlink | -",
        ]
    );
}

#[test]
fn routes_of_others_are_foreign_where_they_take_packets_of_peers() {
    let desired = wanted(&[peer(2, 12, 2), peer(3, 13, 3)]);
    let mut kernel = settled(&desired);
    kernel.routes.retain(|route| route.destination != subnet(2));
    let elsewhere = Way {
        onlink: false,
        ..Way::direct(5, [192, 0, 2, 254].into())
    };
    let foreign = |destination: &str, protocol, metric| ObservedRoute {
        destination: destination.parse().unwrap(),
        way: elsewhere,
        protocol,
        metric,
    };
    kernel.routes.extend([
        foreign("10.5.2.0/24", 4, 0),
        foreign("10.5.3.128/25", 186, 20),
        // Behind ours, outside of what peers have, and the containers' bridge: none of them takes anything.
        foreign("10.5.3.0/24", 4, 300),
        foreign("10.5.3.0/24", 4, 0),
        foreign("10.5.200.0/24", 4, 0),
        foreign("10.5.1.0/24", 2, 0),
    ]);
    let via = "via 192.0.2.254 dev eth5";
    assert_eq!(
        told(&desired, &kernel),
        [
            format!("foreign route 10.5.2.0/24: via 10.5.2.0 dev flannel.1 onlink | {via} proto 4"),
            format!("foreign route 10.5.3.128/25: - | {via} proto 186 metric 20"),
        ]
    );
}

#[test]
fn what_comes_back_with_another_change_is_no_difference_of_its_own() {
    let desired = wanted(&[peer(2, 12, 2)]);
    let mut kernel = settled(&desired);
    kernel.link.as_mut().unwrap().mac = Some(mac(99));
    assert_eq!(
        told(&desired, &kernel),
        ["wrong device flannel.1: address 8a:00:00:00:00:01 | address 8a:00:00:00:00:63"]
    );
    let mut kernel = settled(&desired);
    vxlan_of(kernel.link.as_mut().unwrap()).id = 7;
    assert_eq!(
        told(&desired, &kernel),
        ["wrong device flannel.1: another one | VNI is 7, not 1"]
    );
    // A route of flannel's own leads the right way and lacks the mark alone.
    let mut kernel = settled(&desired);
    kernel.routes[0].protocol = 3;
    let way = "via 10.5.2.0 dev flannel.1 onlink";
    assert_eq!(
        told(&desired, &kernel),
        [format!("wrong route 10.5.2.0/24: {way} proto 70 | {way} proto 3")]
    );
}

#[test]
fn a_device_that_is_not_there_is_told_once() {
    let desired = wanted(&[]);
    let all = differences(&desired, &ObservedOverlay::default(), &|_| String::new());
    let devices = all.iter().filter(|d| matches!(d.object, Object::Device(_)));
    assert_eq!(
        devices.map(|d| d.kind).collect::<Vec<_>>(),
        [DifferenceKind::Missing]
    );
    let tun = DesiredOverlay {
        tunnel: Some(Tunnel {
            link: TunnelLink {
                device: Device::Tun,
                mtu: 1472,
                kind: LinkKind::Tun,
            },
            ..tunnel(&desired).clone()
        }),
        ..desired
    };
    assert_eq!(
        told(&tun, &ObservedOverlay::default()),
        ["missing device flannel0: tun device, mtu 1472 | -"]
    );
}

#[test]
fn a_setting_of_the_device_that_differs_is_told() {
    let desired = wanted(&[]);
    let mut kernel = settled(&desired);
    kernel.settings = BTreeMap::from([
        (crate::Setting::AcceptRa, "2".to_owned()),
        (crate::Setting::SendRedirects, "0".to_owned()),
    ]);
    let told = told(&desired, &kernel);
    assert_eq!(told, ["wrong sysctl net.ipv6.conf.flannel/1.accept_ra: 0 | 2"]);
}
