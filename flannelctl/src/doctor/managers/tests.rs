use super::*;
use crate::findings::Level;

const NETWORK: &str = include_str!("../../../../etc/networkd/90-flannel.network");
const PODS: &str = include_str!("../../../../etc/networkd/91-flannel-pods.network");
const CONF: &str = include_str!("../../../../etc/networkd/90-flannel.conf");
const MANAGER: &str = include_str!("../../../../etc/NetworkManager/90-flannel.conf");
const DEVICES: [&str; 7] = [
    "flannel.1",
    "flannel-v6.1",
    "flannel0",
    "flannel-wg",
    "flannel-wg-v6",
    "flannel.ipip",
    "cni0",
];

fn both() -> Seen {
    Seen {
        networkd: true,
        network_manager: true,
        ..Seen::default()
    }
}

#[test]
fn the_files_that_we_ship_keep_both_off() {
    let seen = Seen {
        networks: vec![NETWORK.into(), PODS.into()],
        networkd_conf: vec![CONF.into()],
        manager_conf: vec![MANAGER.into()],
        ..both()
    };
    let found = judge(&seen, &DEVICES);
    assert_eq!(found.level, Level::Ok, "{}", found.text);
    for device in ["eth0", "docker0", "veth0"] {
        assert!(!leaves(NETWORK, device), "{device}");
        assert_eq!(is_unmanaged(MANAGER, device), device == "veth0");
    }
    assert!(leaves(PODS, "veth12ab"));
}

#[test]
fn what_is_missing_is_named_where_the_service_runs() {
    assert_eq!(judge(&Seen::default(), &DEVICES).level, Level::Skipped);
    let found = judge(&both(), &DEVICES);
    assert_eq!(found.level, Level::Warning);
    for part in ["may configure flannel.1", "deletes routes", "NetworkManager may"] {
        assert!(found.text.contains(part), "{}", found.text);
    }
    // A later file may turn it on again, and a commented line says nothing.
    let conf = |more: &str| Seen {
        network_manager: false,
        networks: vec![NETWORK.into()],
        networkd_conf: vec![CONF.into(), more.into()],
        ..both()
    };
    assert_eq!(
        judge(&conf("#ManageForeignRoutes=yes"), &DEVICES).level,
        Level::Ok
    );
    assert_eq!(
        judge(&conf("ManageForeignRoutes = yes"), &DEVICES).level,
        Level::Warning
    );
}

#[test]
fn files_are_found_where_the_services_look() {
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("proc/17/comm", "systemd-network\n");
    put("proc/18/comm", "NetworkManager\n");
    put(
        "usr/lib/systemd/network/90-flannel.network",
        "[Match]\nName=other\n",
    );
    put("etc/systemd/network/90-flannel.network", NETWORK);
    put("etc/systemd/networkd.conf.d/90-flannel.conf", CONF);
    put("etc/NetworkManager/conf.d/90-flannel.conf", MANAGER);
    let seen = Seen::look(dir.path());
    assert_eq!(seen.networks, [NETWORK], "that of /etc hides the other");
    assert_eq!(judge(&seen, &DEVICES).level, Level::Ok);
}

#[test]
fn patterns_are_those_of_the_shell() {
    for (pattern, name, expected) in [
        ("flannel.*", "flannel.1", true),
        ("flannel.*", "flannel0", false),
        ("*", "x", true),
        ("cni?", "cni0", true),
        ("cni?", "cni", false),
        ("a*b*c", "a--b--c", true),
        ("a*b*c", "a--b--", false),
    ] {
        assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
    }
}
