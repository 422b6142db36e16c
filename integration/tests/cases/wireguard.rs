//! WireGuard: what travels between nodes is encrypted, always.

use anyhow::{Result, ensure};
use flannel_lab::capture::Capture;
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Lab, LabOptions, Node, eventually, limit};

use super::backend::{Pair, config, subnet_env};

const KEY_FILE: &str = "/var/lib/flannel/wgkey";

/// Restarts included, nothing of the pods is seen on the wire in the clear; keys and device stay the same.
pub fn every_packet_is_encrypted_and_no_restart_is_felt() -> Result<()> {
    let mut pair = Pair::start(r#"{"Type":"wireguard","PersistentKeepaliveInterval":25}"#)?;
    assert_eq!(pair.way()?, ("flannel-wg".to_owned(), String::new()));
    let (before, file, index) = {
        let node = pair.lab.node(1)?;
        let env = subnet_env(node)?;
        ensure!(env.contains("FLANNEL_MTU=1420"), "{env}");
        assert_eq!(node.file_mode(KEY_FILE)?, "600");
        let links = node.ip_json(&["link", "show", "dev", "flannel-wg"])?;
        let leases = pair.lab.etcd().list(SUBNETS_PREFIX)?;
        (leases, node.read_file(KEY_FILE)?, links[0]["ifindex"].clone())
    };
    let secret = file.trim();
    for lease in &before {
        ensure!(lease.value.contains("PublicKey"), "no key: {lease:?}");
        ensure!(!lease.value.contains(secret), "the private key is in etcd");
    }
    let capture = Capture::headers(pair.lab.node(1)?, "eth0")?;
    pair.carries(1420)?;
    pair.restarts_unfelt()?;
    without_the_device(&mut pair)?;
    let node = pair.lab.node(1)?;
    let counted = capture.count(&["net 10.5.0.0/16", "udp port 51820"])?;
    assert_eq!(counted[0], 0, "packets of pods in the clear");
    ensure!(
        counted[1] > 1000,
        "only {} packets through the tunnel",
        counted[1]
    );
    let after = pair.lab.etcd().list(SUBNETS_PREFIX)?;
    let values = |leases: &[flannel_lab::etcd::Entry]| -> Vec<String> {
        leases.iter().map(|lease| lease.value.clone()).collect()
    };
    assert_eq!(
        values(&before),
        values(&after),
        "a node has another key or subnet"
    );
    let again = node.ip_json(&["link", "show", "dev", "flannel-wg"])?;
    assert_ne!(
        again[0]["ifindex"], index,
        "the device was not taken away after all"
    );
    Ok(())
}

/// Somebody takes the device away: with the daemon it comes back, and without the daemon nothing gets out.
fn without_the_device(pair: &mut Pair) -> Result<()> {
    let take_away = |pair: &Pair| pair.lab.node(1)?.run(&["ip", "link", "del", "flannel-wg"]);
    let ping = |pair: &Pair| pair.pods[0].ping(pair.pods[1].ip());
    take_away(pair)?;
    eventually(limit(10), "the device that was taken away", || ping(pair))?;
    pair.without_daemon(1, |pair| {
        take_away(pair)?;
        ensure!(ping(pair).is_err(), "an answer without the device");
        let node = pair.lab.node(1)?;
        let hole = node.ip_json(&["route", "show", "type", "blackhole"])?;
        assert_eq!(hole[0]["dst"], "10.5.0.0/16");
        Ok(())
    })?;
    eventually(limit(10), "the device that was missing at the start", || {
        ping(pair)
    })
}

/// A peer whose lease has no key, or whose preshared key is another, gets and gives nothing: never in the clear.
pub fn peers_without_a_key_get_nothing() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).config(&config(r#"{"Type":"wireguard"}"#)))?;
    let psk = "/var/lib/flannel/psk";
    let keys = ["one", "one", "two"].map(|name| format!("{:=<44}", format!("{:A<43}", name)));
    let flag = format!("--wireguard-psk-file={psk}");
    let write = |node: &Node, key: &str, mode: &str| {
        node.shell(&format!(
            "mkdir -p /var/lib/flannel; printf %s {key} > {psk}; chmod {mode} {psk}"
        ))
    };
    let (one, two) = (lab.node(1)?, lab.node(2)?);
    // A key that others can read is refused, and so is none.
    let mut refused = one.start_flanneld(&[&flag])?;
    ensure!(!refused.wait_exit()?.success(), "goes on without the key");
    ensure!(refused.log()?.contains("wg genpsk"), "{}", refused.log()?);
    write(one, &keys[0], "644")?;
    let mut refused = one.start_flanneld(&[&flag])?;
    ensure!(!refused.wait_exit()?.success(), "goes on with an open key");
    ensure!(refused.log()?.contains("chmod 600"), "{}", refused.log()?);
    write(one, &keys[0], "600")?;
    write(two, &keys[2], "600")?;
    let first = one.start_ready_flanneld(&[&flag])?;
    let second = two.start_ready_flanneld(&[&flag])?;
    let pods = [one.add_pod("one")?, two.add_pod("two")?];
    let capture = Capture::headers(one, "eth0")?;
    // A node that has no key in its lease.
    let keyless =
        r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"wireguard","BackendData":{}}"#;
    lab.etcd()
        .put("/coreos.com/network/subnets/10.5.250.0-24", keyless)?;
    for address in [pods[1].ip(), "10.5.250.9"] {
        ensure!(pods[0].ping(address).is_err(), "{address} answers");
    }
    let counted = capture.count(&["net 10.5.0.0/16"])?;
    assert_eq!(counted, [0], "packets of pods in the clear");
    for log in [first.log()?, second.log()?] {
        ensure!(
            !keys.iter().any(|key| log.contains(key.as_str())),
            "a secret in the log"
        );
    }
    // With the right key it works.
    write(two, &keys[1], "600")?;
    second.kill()?;
    let _second = two.start_ready_flanneld(&[&flag])?;
    eventually(limit(20), "an answer with the same key on both", || {
        pods[0].ping(pods[1].ip())
    })
}

pub fn both_families_in_devices_of_their_own() -> Result<()> {
    carries_both(
        "separate",
        &["flannel-wg", "flannel-wg-v6"],
        "ip6 and udp port 51821",
    )
}

pub fn both_families_in_one_device_over_ipv6() -> Result<()> {
    carries_both("ipv6", &["flannel-wg"], "ip6 and udp port 51820")
}

/// The lab's IPv6 addresses are not global, so that mode auto stays with IPv4.
pub fn both_families_in_one_device_over_what_is_there() -> Result<()> {
    carries_both("auto", &["flannel-wg"], "ip and udp port 51820")
}

/// Pods reach each other in both families; full-size packets of IPv6 are carried in packets that match `filter`.
fn carries_both(mode: &str, devices: &[&str], filter: &str) -> Result<()> {
    let config = format!(
        r#"{{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{{"Type":"wireguard","Mode":"{mode}"}}}}"#
    );
    let lab = Lab::new(&LabOptions::nodes(2).ipv6().config(&config))?;
    let mut daemons = Vec::new();
    for node in lab.nodes() {
        daemons.push(node.start_ready_flanneld(&[])?);
    }
    let pods = [lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?];
    let capture = Capture::headers(lab.node(1)?, "eth0")?;
    for (from, to) in [(0, 1), (1, 0)] {
        for address in pods[to].addresses()? {
            eventually(limit(10), &format!("an answer of {address}"), || {
                pods[from].ping(&address)
            })?;
            // ICMP payload: MTU 1420 less 40 bytes of IPv6 and 8 of ICMP.
            pods[from].run(&[
                "ping", "-c", "9", "-i", "0.01", "-W", "2", "-M", "do", "-s", "1372", &address,
            ])?;
        }
    }
    let counted = capture.count(&[filter, "net 10.5.0.0/16 or net fd00:5::/48"])?;
    ensure!(counted[0] >= 36, "{} packets are {filter}", counted[0]);
    assert_eq!(counted[1], 0, "packets of pods in the clear");
    let mut links = lab.node(1)?.link_names()?;
    links.retain(|name| name.starts_with("flannel"));
    links.sort();
    assert_eq!(links, devices);
    Ok(())
}

/// A kernel without WireGuard: said at once with what to do, and nothing goes in the clear.
pub fn a_kernel_without_it_is_named() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).config(&config(r#"{"Type":"wireguard"}"#)))?;
    let mut daemon = lab.node(1)?.start_flanneld(&[])?;
    daemon.wait_log("WireGuard")?;
    let log = daemon.log()?;
    ensure!(log.contains("module wireguard"), "{log}");
    ensure!(!daemon.is_ready(), "ready without its device");
    Ok(())
}
