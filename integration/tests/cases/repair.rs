//! Whatever others take away or change comes back by itself, and who goes on doing it is named.

use anyhow::{Result, ensure};
use flannel_lab::{Flanneld, Lab, LabOptions, Node, eventually, limit, sandbox};
use rustix::process::Signal;

use super::backend::Pair;
use super::common::{await_ping, lease_of, start_all};

/// All that is ours on the node, without the indices that a device gets anew.
fn state(node: &Node, device: &str) -> Result<String> {
    node.shell(&format!(
        "ip -d link show {device} | sed 's/^[0-9]*: //'; ip -o address show dev {device} | sed 's/^[0-9]*: //'; \
         ip route show proto 70; ip neigh show dev {device} nud permanent; bridge fdb show dev {device} | grep dst || true; \
         wg show {device} allowed-ips 2>/dev/null | sort || true; \
         nft -s list table ip flannel-ipv4; cat /proc/sys/net/ipv6/conf/{device}/accept_ra"
    ))
}

/// The state once the kernel has checked the addresses, which it shows as tentative until then.
fn settled(node: &Node, device: &str) -> Result<String> {
    eventually(limit(20), "a state that has settled", || {
        let state = state(node, device)?;
        ensure!(!state.contains("tentative"), "not yet");
        Ok(state)
    })
}

/// Each damage by itself, and how it looks afterwards.
fn mends_each(lab: &Lab, device: &str, damages: &[String], works: impl Fn() -> Result<()>) -> Result<()> {
    let node = lab.node(1)?;
    let before = settled(node, device)?;
    for damage in damages {
        node.shell(damage)?;
        eventually(limit(20), &format!("what `{damage}` took away"), || {
            let now = state(node, device)?;
            ensure!(now == before, "it is\n{now}\nand was\n{before}");
            works()
        })?;
    }
    Ok(())
}

pub fn every_kind_of_object_comes_back() -> Result<()> {
    let pair = Pair::start(r#"{"Type":"vxlan"}"#)?;
    let node = pair.lab.node(1)?;
    let peer = lease_of(&pair.lab, pair.lab.node(2)?)?;
    let (subnet, base, mac, address) = (&peer.subnet, peer.base(), &peer.vtep, &peer.public_ip);
    let damages = [
        format!("ip route del {subnet}"),
        "ip route flush proto 70".into(),
        format!("ip neigh del {base} dev flannel.1"),
        format!("ip neigh replace {base} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent"),
        "ip neigh flush dev flannel.1 nud permanent".into(),
        format!("bridge fdb del {mac} dev flannel.1 dst {address} self"),
        format!("bridge fdb replace {mac} dev flannel.1 dst 192.168.50.99 self permanent"),
        "bridge fdb append 02:00:00:00:00:98 dev flannel.1 dst 192.168.50.98 self permanent".into(),
        "ip neigh add 10.5.253.0 lladdr 02:00:00:00:00:97 dev flannel.1 nud permanent".into(),
        "ip route add 10.5.252.0/24 via 192.168.50.1 proto 70".into(),
        "ip address flush dev flannel.1 scope global".into(),
        "ip link set flannel.1 mtu 1300".into(),
        "ip link set flannel.1 address 02:00:00:00:00:96".into(),
        "ip link set flannel.1 type vxlan learning".into(),
        "ip link set flannel.1 down".into(),
        "ip link set flannel.1 down; ip link set flannel.1 up".into(),
        "ip link del flannel.1".into(),
        "nft delete table ip flannel-ipv4".into(),
        "nft flush chain ip flannel-ipv4 postrtg".into(),
        "nft add rule ip flannel-ipv4 forward drop".into(),
        "nft flush ruleset".into(),
        "echo 1 > /proc/sys/net/ipv6/conf/flannel.1/accept_ra".into(),
    ];
    mends_each(&pair.lab, "flannel.1", &damages, || {
        pair.pods[0].ping(pair.pods[1].ip())
    })?;
    ensure!(
        !pair.daemons[0].log()?.contains("again and again"),
        "it takes these for a fight"
    );
    // The lease says what it said, too: peers know the device by its address.
    assert_eq!(
        lease_of(&pair.lab, node)?.entry.version,
        1,
        "the lease was written again"
    );
    Ok(())
}

pub fn every_kind_of_object_of_wireguard_comes_back() -> Result<()> {
    let pair = Pair::start(r#"{"Type":"wireguard"}"#)?;
    let node = pair.lab.node(1)?;
    let peer = node
        .run(&["wg", "show", "flannel-wg", "peers"])?
        .trim()
        .to_owned();
    let damages = [
        format!("wg set flannel-wg peer {peer} remove"),
        format!("wg set flannel-wg peer {peer} allowed-ips 10.9.0.0/24"),
        "wg set flannel-wg listen-port 51999".into(),
        "ip address flush dev flannel-wg; ip link set flannel-wg mtu 1300; ip link set flannel-wg down"
            .into(),
        "ip link del flannel-wg".into(),
    ];
    mends_each(&pair.lab, "flannel-wg", &damages, || {
        pair.pods[0].ping(pair.pods[1].ip())
    })
}

/// More changes at once than the kernel keeps for a reader: the loss is told, and everything is looked at.
pub fn a_storm_of_changes_hides_nothing() -> Result<()> {
    let (lab, daemons) = two_nodes()?;
    let node = lab.node(1)?;
    let peer = lease_of(&lab, lab.node(2)?)?;
    let device = "flannel.1";
    let before = settled(node, device)?;
    daemons[0].signal(Signal::STOP)?;
    let storm: Vec<String> = (0..30_000)
        .map(|n| {
            let verb = if n % 2 == 0 { "add" } else { "del" };
            format!("route {verb} 172.30.{}.0/24 via 192.168.50.1", n / 2 % 250)
        })
        .collect();
    node.ip_batch(&storm)?;
    node.run(&["ip", "route", "del", &peer.subnet])?;
    node.shell(&format!("ip neigh del {} dev {device}", peer.base()))?;
    node.ip_batch(&storm)?;
    daemons[0].signal(Signal::CONT)?;
    eventually(limit(20), "what went in the storm", || {
        let now = state(node, device)?;
        ensure!(now == before, "it is\n{now}\nand was\n{before}");
        Ok(())
    })
}

/// Somebody takes a route away whenever it is there. We give way for a while, name it, and win in the end.
pub fn who_goes_on_fighting_is_named() -> Result<()> {
    let (lab, daemons) = two_nodes()?;
    let node = lab.node(1)?;
    let peer = lease_of(&lab, lab.node(2)?)?;
    let there = || node.run(&["ip", "route", "show", "proto", "70", &peer.subnet]);
    for round in 0..11 {
        eventually(limit(20), &format!("the route in round {round}"), || {
            ensure!(!there()?.is_empty(), "it is not there");
            Ok(())
        })?;
        node.run(&["ip", "route", "del", &peer.subnet])?;
    }
    eventually(limit(20), "somebody who is named", || {
        let log = daemons[0].log()?;
        ensure!(
            log.contains("again and again") && log.contains(&peer.subnet),
            "{log}"
        );
        let told = daemons[0].notifications();
        ensure!(told.contains("again and again"), "the status says {told}");
        let program = format!("{}/flannelctl", sandbox::BINARIES);
        let shown = node.run(&[&program, "status"])?;
        ensure!(
            shown.contains("again and again") && shown.contains("ready"),
            "{shown}"
        );
        Ok(())
    })?;
    eventually(limit(20), "the route after the pause", || {
        ensure!(!there()?.is_empty(), "it is not there");
        Ok(())
    })
}

fn two_nodes() -> Result<(Lab, Vec<Flanneld>)> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let daemons = start_all(&lab, &["--ip-masq"])?;
    let pods = [lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?];
    await_ping(&pods[0], pods[1].ip())?;
    Ok((lab, daemons))
}

/// The path of a setting of flannel.1, below /proc/sys/net.
const SETTINGS: [&str; 4] = [
    "ipv6/conf/flannel.1/accept_ra",
    "ipv6/conf/flannel.1/accept_redirects",
    "ipv4/conf/flannel.1/accept_redirects",
    "ipv4/conf/flannel.1/send_redirects",
];

/// A write to a setting of ours is told and undone, also on a device that was made anew; who goes on is named.
pub fn settings_come_back_by_event() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let daemon = start_all(&lab, &[])?.remove(0);
    let node = lab.node(1)?;
    for _ in 0..2 {
        for setting in SETTINGS {
            eventually(
                limit(20),
                &format!("{setting} undone because it was told"),
                || undone_by_event(node, &daemon, setting),
            )?;
        }
        let gone = node.shell("cat /sys/class/net/flannel.1/ifindex")?;
        node.run(&["ip", "link", "del", "flannel.1"])?;
        eventually(limit(20), "another device with settings of its own", || {
            let now = node.shell("cat /sys/class/net/flannel.1/ifindex")?;
            ensure!(now != gone, "it is still there");
            SETTINGS.iter().try_for_each(|setting| is_off(node, setting))
        })?;
    }
    let fought = "ipv4/conf/flannel.1/accept_redirects";
    // 10 times within a minute are no fight yet; those from before may count or not.
    eventually(limit(60), "somebody who is named", || {
        is_off(node, fought)?;
        node.shell(&format!("echo 1 > /proc/sys/net/{fought}"))?;
        let log = daemon.log()?;
        let name = "somebody undoes `sysctl net.ipv4.conf.flannel/1.accept_redirects=0` again and again";
        ensure!(log.contains(name), "{log}");
        Ok(())
    })?;
    eventually(limit(40), "the setting after the pause", || is_off(node, fought))
}

fn is_off(node: &Node, setting: &str) -> Result<()> {
    let value = node.read_file(&format!("/proc/sys/net/{setting}"))?;
    ensure!(value.trim() == "0", "{setting} is {value}");
    Ok(())
}

/// A pass that happens to come between is faster at times, and then it is tried again.
fn undone_by_event(node: &Node, daemon: &Flanneld, setting: &str) -> Result<()> {
    let swapped = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    let name: String = setting.chars().map(swapped).collect();
    let line = format!("repaired: sysctl net.{name}=0 (somebody wrote to it)");
    let told = |log: &str| log.matches(&line).count();
    let before = told(&daemon.log()?);
    node.shell(&format!("echo 1 > /proc/sys/net/{setting}"))?;
    eventually(limit(20), &format!("{setting} is off"), || is_off(node, setting))?;
    eventually(limit(4), "a word of it", || {
        let log = daemon.log()?;
        ensure!(told(&log) > before, "{log}");
        Ok(())
    })
}
