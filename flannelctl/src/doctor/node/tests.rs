use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{EtcdPrefix, IpFamily, Mac, WireguardPublicKey};
use flannel_netlink::generic::{PeerState, WireguardDevice};
use flannel_netlink::route::Route;
use flannel_plan::{Interface, InterfaceAddress};
use flannel_store::memory::MemoryStore;
use flannel_store::{NewLease, Store};

use super::*;

const ENV: &str =
    "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
/// Indices of the interface below and of the tunnel device.
const BELOW: u32 = 2;
const TUNNEL: u32 = 7;

fn mac(n: u8) -> Mac {
    format!("8a:55:6f:01:02:{n:02x}").parse().unwrap()
}

fn key(n: u8) -> WireguardPublicKey {
    WireguardPublicKey([n; 32])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two nodes with a backend, seen from the first.
struct Network {
    config: NetworkConfig,
    listing: Listing,
}

impl Network {
    async fn of(backend: &str, data: impl Fn(u8) -> String) -> Self {
        let store = MemoryStore::new();
        let kind = backend.split('"').nth(3).unwrap();
        for n in [1, 2] {
            let named = match kind {
                "udp" => String::new(),
                _ => format!(r#","BackendType":"{kind}""#),
            };
            let value = format!(r#"{{"PublicIP":"192.168.50.{n}"{named}{}}}"#, data(n));
            let key = format!("/n/subnets/10.5.{n}.0-24");
            let lease = NewLease::any(86_400);
            store.create(&key, &value, lease, &[]).await.unwrap();
        }
        let listing = crate::subnets::read(&store, &EtcdPrefix::new("/n"))
            .await
            .unwrap();
        let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
        let config = NetworkConfig::parse(text.as_bytes()).unwrap();
        Self { config, listing }
    }

    async fn vxlan() -> Self {
        Self::of(r#"{"Type":"vxlan"}"#, |n| {
            format!(r#","BackendData":{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n))
        })
        .await
    }

    fn device(&self) -> Option<Device> {
        expected::devices(&self.config).pop()
    }

    /// The checks that find fault.
    fn bad(&self, seen: &Seen) -> Vec<&'static str> {
        let env = SubnetEnv::parse(ENV).unwrap();
        let found = judge_node(&env, &self.config, &self.listing, seen);
        let bad = found.iter().filter(|found| found.level > Level::Ok);
        bad.map(|found| found.check).collect()
    }
}

fn interface(ifindex: u32, name: &str, address: &str, length: u8, mtu: u32) -> Interface {
    let address = InterfaceAddress {
        address: ip(address),
        length,
        host_scope: false,
        permanent: true,
        deprecated: false,
        temporary: false,
    };
    Interface {
        ifindex,
        name: name.to_owned(),
        mtu,
        up: true,
        addresses: vec![address],
    }
}

fn tunnel(mtu: u32) -> Tunnel {
    Tunnel {
        ifindex: TUNNEL,
        mac: Some(mac(1)),
        mtu,
        up: true,
        addresses: BTreeSet::from([ip("10.5.1.0")]),
        underlay: Some(BELOW),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
        wireguard: None,
    }
}

fn seen(device: Option<(Device, Tunnel)>, routes: Vec<Route>) -> Seen {
    let mut interfaces = vec![interface(BELOW, "eth0", "192.168.50.1", 24, 1500)];
    interfaces.extend(
        device
            .iter()
            .map(|(device, tunnel)| interface(TUNNEL, &device.to_string(), "10.5.1.0", 32, tunnel.mtu)),
    );
    Seen {
        interfaces,
        tunnels: device.into_iter().collect(),
        routes,
    }
}

fn peer_subnet() -> flannel_model::IpSubnet {
    flannel_model::IpSubnet::around(ip("10.5.2.0"), 24).unwrap()
}

fn network() -> flannel_model::IpSubnet {
    flannel_model::IpSubnet::around(ip("10.5.0.0"), 16).unwrap()
}

fn sound_vxlan(device: Device) -> Seen {
    let tunnel = Tunnel {
        neighbours: [(ip("10.5.2.0"), mac(2))].into(),
        fdb: [(mac(2), ip("192.168.50.2"))].into(),
        ..tunnel(1450)
    };
    let route = Route::via_onlink(peer_subnet(), ip("10.5.2.0"), TUNNEL);
    seen(Some((device, tunnel)), vec![route])
}

#[tokio::test(start_paused = true)]
async fn a_sound_vxlan_node_has_no_findings_and_each_loss_has_one() {
    let network = Network::vxlan().await;
    let device = network.device().unwrap();
    assert_eq!(network.bad(&sound_vxlan(device)), [""; 0]);
    let with = |change: fn(&mut Seen)| {
        let mut seen = sound_vxlan(device);
        change(&mut seen);
        network.bad(&seen)
    };
    assert_eq!(with(|seen| seen.routes.clear()), ["peer-routes"]);
    assert_eq!(with(|seen| seen.routes[0].ifindex = Some(BELOW)), ["peer-routes"]);
    let shadow: fn(&mut Seen) = |seen| {
        seen.routes[0].metric = 10;
        seen.routes
            .push(Route::via(peer_subnet(), ip("192.168.50.9"), BELOW));
    };
    assert_eq!(
        with(shadow),
        ["peer-routes"],
        "a route of somebody else comes first"
    );
    assert_eq!(with(|seen| seen.tunnels.clear())[0], "tunnel-device");
    let on_device = |change: fn(&mut Tunnel)| {
        let mut seen = sound_vxlan(device);
        seen.tunnels.values_mut().for_each(change);
        network.bad(&seen)
    };
    assert_eq!(on_device(|there| there.up = false), ["tunnel-device"]);
    assert_eq!(on_device(|there| there.mac = Some(mac(9))), ["tunnel-device"]);
    assert_eq!(on_device(|there| there.addresses.clear()), ["tunnel-device"]);
    assert_eq!(on_device(|there| there.mtu = 1500), ["tunnel-device"]);
    assert_eq!(on_device(|there| there.fdb.clear()), ["peer-entries"]);
    assert_eq!(on_device(|there| there.neighbours.clear()), ["peer-entries"]);
}

#[tokio::test(start_paused = true)]
async fn leases_that_are_gone_or_lost_are_errors() {
    let network = Network::vxlan().await;
    let device = network.device().unwrap();
    let mut elsewhere = sound_vxlan(device);
    elsewhere.interfaces[0].addresses[0].address = ip("192.168.50.77");
    assert_eq!(network.bad(&elsewhere), ["own-lease"], "it may be behind a NAT");
    let mut stranded = sound_vxlan(device);
    stranded
        .interfaces
        .push(interface(9, "cni0", "10.5.2.1", 24, 1450));
    assert_eq!(network.bad(&stranded), ["stranded-pods"]);
    let gone = Network {
        listing: Listing {
            records: Vec::new(),
            ..network.listing
        },
        ..network
    };
    assert_eq!(gone.bad(&sound_vxlan(device)), ["own-lease"]);
}

#[tokio::test(start_paused = true)]
async fn routes_of_host_gw_and_ipip_lead_to_the_nodes() {
    let direct = Route::via(peer_subnet(), ip("192.168.50.2"), BELOW);
    let host_gw = Network::of(r#"{"Type":"host-gw"}"#, |_| String::new()).await;
    assert_eq!(host_gw.bad(&seen(None, vec![direct.clone()])), [""; 0]);
    assert_eq!(host_gw.bad(&seen(None, Vec::new())), ["peer-routes"]);
    let elsewhere = Route::via(peer_subnet(), ip("192.168.50.3"), BELOW);
    assert_eq!(host_gw.bad(&seen(None, vec![elsewhere])), ["peer-routes"]);

    let ipip = Network::of(r#"{"Type":"ipip"}"#, |_| String::new()).await;
    let there = (ipip.device().unwrap(), tunnel(1480));
    let through = Route::via_onlink(peer_subnet(), ip("192.168.50.2"), TUNNEL);
    assert_eq!(ipip.bad(&seen(Some(there.clone()), vec![through])), [""; 0]);
    assert_eq!(
        ipip.bad(&seen(Some(there.clone()), vec![direct.clone()])),
        ["peer-routes"]
    );
    let plain = Network::of(r#"{"Type":"ipip","DirectRouting":true}"#, |_| String::new()).await;
    assert_eq!(plain.bad(&seen(Some(there), vec![direct])), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn udp_has_one_route_into_its_device() {
    let udp = Network::of(r#"{"Type":"udp"}"#, |_| String::new()).await;
    let there = (udp.device().unwrap(), tunnel(1472));
    let whole = Route::on_link(network(), TUNNEL);
    assert_eq!(udp.bad(&seen(Some(there.clone()), vec![whole.clone()])), [""; 0]);
    assert_eq!(udp.bad(&seen(Some(there), Vec::new())), ["peer-routes"]);
    assert_eq!(
        udp.bad(&seen(None, vec![whole])),
        ["tunnel-device", "peer-routes"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_wireguard_device_knows_keys_and_addresses() {
    let wireguard = Network::of(r#"{"Type":"wireguard"}"#, |n| {
        format!(r#","BackendData":{{"PublicKey":"{}","Port":51820}}"#, key(n))
    })
    .await;
    let device = Device::Wireguard { family: IpFamily::V4 };
    let with = |change: fn(&mut WireguardDevice)| {
        let state = PeerState {
            endpoint: None,
            preshared: None,
            keepalive: 0,
            allowed: BTreeSet::from([(ip("10.5.2.0"), 24)]),
            handshake: None,
            received: 0,
            sent: 0,
        };
        let mut knows = WireguardDevice {
            public_key: Some(key(1)),
            port: 51820,
            peers: [(key(2), state)].into(),
        };
        change(&mut knows);
        let there = Tunnel {
            wireguard: Some(knows),
            ..tunnel(1420)
        };
        wireguard.bad(&seen(
            Some((device, there)),
            vec![Route::on_link(network(), TUNNEL)],
        ))
    };
    assert_eq!(with(|_| {}), [""; 0]);
    assert_eq!(with(|knows| knows.peers.clear()), ["peer-keys"]);
    let others: fn(&mut WireguardDevice) =
        |knows| knows.peers.values_mut().for_each(|peer| peer.allowed.clear());
    assert_eq!(with(others), ["peer-keys"]);
    assert_eq!(with(|knows| knows.public_key = Some(key(9))), ["tunnel-device"]);
}

#[tokio::test(start_paused = true)]
async fn records_that_a_node_skips_are_named() {
    let network = Network::of(r#"{"Type":"vxlan"}"#, |n| {
        format!(r#","BackendData":{{"VNI":{n},"VtepMAC":"{}"}}"#, mac(n))
    })
    .await;
    let device = network.device().unwrap();
    assert_eq!(network.bad(&sound_vxlan(device)), ["peers"], "another VNI");
}

#[test]
fn a_host_without_subnet_env_is_no_node() {
    let config = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
    let listing = Listing {
        records: Vec::new(),
        rejected: Vec::new(),
        pools: None,
        notes: BTreeMap::new(),
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("subnet.env");
    let paths = Paths {
        subnet_file: &file,
        state_dir: dir.path(),
    };
    assert_eq!(findings(paths, &config, &listing)[0].level, Level::Skipped);
    std::fs::write(&file, "FLANNEL_NETWORK=10.5.0.0/16\n").unwrap();
    assert_eq!(findings(paths, &config, &listing)[0].level, Level::Error);
}

#[tokio::test]
async fn a_default_route_elsewhere_is_told_and_no_fault() {
    let network = Network::vxlan().await;
    let own = &network.listing.records[0];
    let device = network.device().unwrap();
    let mut seen = sound_vxlan(device);
    let default = |ifindex, metric| Route {
        metric,
        ..Route::via(
            flannel_model::IpSubnet::around(ip("0.0.0.0"), 0).unwrap(),
            ip("192.168.50.254"),
            ifindex,
        )
    };
    seen.routes.push(default(BELOW, 50));
    assert_eq!(another_way_out(own, &seen), None);
    seen.interfaces.push(interface(9, "eth9", "10.77.0.2", 24, 1500));
    seen.routes.push(default(9, 5));
    let told = another_way_out(own, &seen).unwrap();
    assert_eq!(told.level, Level::Ok);
    assert!(
        told.text.contains("is on eth0, the default route leaves by eth9"),
        "{}",
        told.text
    );
    assert_eq!(network.bad(&seen), Vec::<&str>::new());
}
