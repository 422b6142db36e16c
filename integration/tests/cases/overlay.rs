//! The overlay: devices, peers, pods, masquerade, and that a restart or a crash is not felt.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::{OUTSIDE_ADDRESS, OUTSIDE_PORT};
use flannel_lab::pod::CNI_CONFIG;
use flannel_lab::{Flanneld, Lab, LabOptions, Pinger, Pod, eventually, limit};

use super::common::{await_ping, lease_of, link, programmed, start_all};

pub fn three_nodes_converge() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3))?;
    let _daemons = start_all(&lab, &[])?;
    for node in lab.nodes() {
        for peer in lab.nodes().iter().filter(|p| p.address() != node.address()) {
            node.ping(lease_of(&lab, peer)?.base())?;
        }
    }
    Ok(())
}

/// Two pods a node: every one reaches every other.
pub fn every_pod_reaches_every_pod() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3))?;
    let _daemons = start_all(&lab, &["--ip-masq"])?;
    let pods = two_pods_each(&lab)?;
    for from in &pods {
        for to in &pods {
            await_ping(from, to.ip()).with_context(|| format!("from {} to {}", from.name(), to.name()))?;
        }
    }
    // across nodes the source is the pod, not its node
    let _responder = pods[5].respond(80)?;
    let answer = pods[0].ask("tcp", &format!("{}:80", pods[5].ip()))?;
    assert_eq!(answer, format!("{} {}", pods[5].name(), pods[0].ip()));
    Ok(())
}

fn two_pods_each(lab: &Lab) -> Result<Vec<Pod>> {
    let names = |node: &str| ["a", "b"].map(|p| format!("{node}-{p}"));
    lab.nodes()
        .iter()
        .flat_map(|node| names(node.name()).map(|name| node.add_pod(&name)))
        .collect()
}

pub fn tcp_flows_across_nodes() -> Result<()> {
    let (lab, _daemons, one, two) = pods_on_two_nodes(&[])?;
    let bytes = flannel_lab::transfer(&one, &two, 2)?.bytes;
    ensure!(bytes > 1e6, "only {bytes} bytes in two seconds");
    // A full-sized segment fits: nothing had to be cut up on the way.
    let fragments = lab
        .node(1)?
        .shell("awk '/^Ip:/ { n = $NF; c = $19 } END { print c }' /proc/net/snmp")?;
    assert_eq!(fragments.trim(), "0", "fragments were made");
    Ok(())
}

fn pods_on_two_nodes(arguments: &[&str]) -> Result<(Lab, Vec<Flanneld>, Pod, Pod)> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let daemons = start_all(&lab, arguments)?;
    let one = lab.node(1)?.add_pod("one")?;
    let two = lab.node(2)?.add_pod("two")?;
    await_ping(&one, two.ip())?;
    Ok((lab, daemons, one, two))
}

pub fn masquerade_hides_pods_from_outside() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let _daemons = start_all(&lab, &["--ip-masq"])?;
    let (one, two) = (lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?);
    for protocol in ["tcp", "udp"] {
        let answer = eventually(limit(10), "an answer from outside", || {
            one.ask(protocol, &outside())
        })?;
        assert_eq!(
            answer.trim(),
            format!("outside {}", lab.node(1)?.address()),
            "{protocol}"
        );
    }
    let file = lab.node(1)?.read_file("/run/flannel/subnet.env")?;
    ensure!(file.contains("FLANNEL_IPMASQ=true"), "{file}");
    // Between pods nothing is masqueraded.
    let _responder = two.respond(80)?;
    let answer = eventually(limit(10), "the other pod", || {
        one.ask("tcp", &format!("{}:80", two.ip()))
    })?;
    assert_eq!(answer, format!("two {}", one.ip()));
    Ok(())
}

/// Destinations that are exempt see the pod itself: the one outside has no way back to it, the node's own router does.
pub fn exempt_destinations_see_the_pod_and_nobody_else_does() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let daemon = node.start_ready_flanneld(&["--ip-masq", "--ip-masq-exempt=192.0.2.0/24"])?;
    let pod = node.add_pod("one")?;
    await_ping(&pod, node.address())?;
    ensure!(
        pod.ask("tcp", &outside()).is_err(),
        "an exempt destination answers, so it was masqueraded"
    );
    daemon.terminate()?;
    let _daemon = node.start_ready_flanneld(&["--ip-masq", "--ip-masq-exempt=198.51.100.0/24"])?;
    let answer = eventually(limit(10), "an answer from outside", || pod.ask("tcp", &outside()))?;
    assert_eq!(answer, format!("outside {}", node.address()));
    Ok(())
}

/// A packet to an address of the node's subnet that no pod has ends on the node, also where there is no bridge yet.
pub fn a_blackhole_keeps_strays_on_the_node() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let daemon = node.start_ready_flanneld(&["--ip-blackhole-route"])?;
    let subnet = lease_of(&lab, node)?.subnet;
    let blackholes = || node.run(&["ip", "route", "show", "type", "blackhole"]);
    ensure!(blackholes()?.contains(&subnet), "{}", blackholes()?);
    let stray = subnet.replace(".0/24", ".200");
    let refused = node.exec(&["ip", "route", "get", &stray])?;
    ensure!(!refused.success(), "it would leave the node: {}", refused.stdout);
    node.run(&["ip", "route", "flush", "type", "blackhole"])?;
    eventually(limit(10), "the blackhole that was taken away", || {
        ensure!(blackholes()?.contains(&subnet), "it is not there");
        Ok(())
    })?;
    // Pods are reached as ever.
    let pod = node.add_pod("one")?;
    await_ping(&pod, &subnet.replace(".0/24", ".1"))?;
    node.ping(pod.ip())?;
    daemon.terminate()?;
    let _daemon = node.start_ready_flanneld(&[])?;
    eventually(limit(10), "no blackhole without the flag", || {
        ensure!(blackholes()?.is_empty(), "{}", blackholes()?);
        Ok(())
    })
}

pub(super) fn outside() -> String {
    format!("{OUTSIDE_ADDRESS}:{OUTSIDE_PORT}")
}

/// Without `--ip-masq` the plugin masquerades, unless the conflist says that nobody shall: then there is no way back from outside,
/// which shows that the answers elsewhere are masquerade's work.
pub fn without_ip_masq_the_plugin_masquerades() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let _daemon = node.start_ready_flanneld(&[])?;
    let masked = node.add_pod("masked")?;
    let answer = eventually(limit(10), "an answer from outside", || {
        masked.ask("tcp", &outside())
    })?;
    assert_eq!(answer, format!("outside {}", node.address()));
    let config = CNI_CONFIG.replace("\"hairpinMode\"", "\"ipMasq\":false,\"hairpinMode\"");
    let bare = node.add_pod_with("bare", &config)?;
    await_ping(&bare, node.address())?;
    ensure!(
        bare.ask("tcp", &outside()).is_err(),
        "a pod was answered without masquerade"
    );
    let ip = masked.ip().to_owned();
    node.del_pod(masked)?;
    let rules = node.run(&["nft", "list", "ruleset"])?;
    ensure!(
        !rules.contains(&ip),
        "rules are left of a pod that is gone: {rules}"
    );
    Ok(())
}

pub fn rules_live_in_our_own_table() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    node.shell("nft add table ip theirs; nft 'add chain ip theirs c { type filter hook forward priority 10; }'; nft add rule ip theirs c counter")?;
    let theirs = node.run(&["nft", "list", "table", "ip", "theirs"])?;
    let daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    let table = || node.run(&["nft", "list", "table", "ip", "flannel-ipv4"]);
    let rules = table()?;
    for part in ["hook postrouting", "masquerade", "hook forward", "10.5.0.0/16"] {
        ensure!(rules.contains(part), "no {part:?} in: {rules}");
    }
    daemon.kill()?;
    let _daemon = node.start_ready_flanneld(&["--ip-masq"])?;
    assert_eq!(table()?, rules, "the rules changed with a restart");
    // Somebody flushes everything: what is ours comes back.
    node.shell("nft flush ruleset")?;
    eventually(limit(20), "the rules to come back", || {
        ensure!(table()? == rules, "not the same");
        Ok(())
    })?;
    node.shell("nft add table ip theirs; nft 'add chain ip theirs c { type filter hook forward priority 10; }'; nft add rule ip theirs c counter")?;
    assert_eq!(node.run(&["nft", "list", "table", "ip", "theirs"])?, theirs);
    Ok(())
}

/// Device, addresses, lease and entries are the same objects afterwards, and no one was taken away for a moment.
pub fn restart_adopts() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3))?;
    let mut daemons = start_all(&lab, &["--ip-masq"])?;
    let node = lab.node(1)?;
    let identity = || -> Result<_> {
        let device = link(node, "flannel.1")?;
        let lease = lease_of(&lab, node)?;
        Ok((
            device["ifindex"].clone(),
            device["address"].clone(),
            lease.subnet,
            lease.entry.value,
            programmed(node)?,
        ))
    };
    let before = identity()?;
    for end in ["crash", "stop"] {
        let monitor = node.spawn(
            "monitor",
            &["ip", "monitor", "link", "address", "route", "neigh"],
            &Default::default(),
        )?;
        let daemon = daemons.remove(0);
        if end == "crash" {
            daemon.kill()?
        } else {
            ensure!(daemon.terminate()?.success(), "SIGTERM is a clean end")
        }
        assert_eq!(identity()?, before, "right after the {end}");
        daemons.insert(0, node.start_ready_flanneld(&["--ip-masq"])?);
        assert_eq!(identity()?, before, "after the {end} and a start");
        let events = monitor.log_text()?;
        let ours: Vec<&str> = events
            .lines()
            .filter(|l| l.contains("Deleted") && l.contains("flannel.1"))
            .collect();
        ensure!(
            ours.is_empty(),
            "taken away during the {end} and the start: {ours:?}"
        );
    }
    Ok(())
}

/// 100 packets a second through a crash and the start after it.
pub fn crash_loses_no_packet() -> Result<()> {
    let (lab, mut daemons, one, two) = pods_on_two_nodes(&["--ip-masq"])?;
    let there = Pinger::start(&one, &two)?;
    let back = Pinger::start(&two, &one)?;
    std::thread::sleep(Duration::from_secs(1));
    for number in [1, 2] {
        daemons.remove(0).kill()?;
        std::thread::sleep(Duration::from_millis(1500));
        daemons.push(lab.node(number)?.start_ready_flanneld(&["--ip-masq"])?);
        std::thread::sleep(Duration::from_secs(2));
    }
    for report in [there.stop()?, back.stop()?] {
        ensure!(report.sent >= 600, "too few packets to mean anything: {report:?}");
        ensure!(report.lost.is_empty(), "lost: {report:?}");
    }
    Ok(())
}

pub fn stop_leaves_the_data_path() -> Result<()> {
    let (lab, mut daemons, one, two) = pods_on_two_nodes(&[])?;
    let stream = Pinger::start(&one, &two)?;
    for daemon in daemons.drain(..) {
        ensure!(daemon.terminate()?.success(), "SIGTERM is a clean end");
    }
    std::thread::sleep(Duration::from_secs(2));
    let report = stream.stop()?;
    ensure!(report.sent >= 100 && report.lost.is_empty(), "lost: {report:?}");
    ensure!(
        lab.node(1)?
            .read_file("/run/flannel/subnet.env")?
            .contains("FLANNEL_SUBNET="),
        "subnet.env is gone"
    );
    lease_of(&lab, lab.node(1)?).map(drop)
}

/// What somebody takes away comes back without a restart.
pub fn removed_objects_come_back() -> Result<()> {
    let (lab, _daemons, one, two) = pods_on_two_nodes(&[])?;
    let node = lab.node(1)?;
    let before = programmed(node)?;
    let peer = lease_of(&lab, lab.node(2)?)?;
    let damages = [
        format!("ip route del {} dev flannel.1", peer.subnet),
        format!("ip neigh del {} dev flannel.1", peer.base()),
        format!(
            "bridge fdb del {} dev flannel.1 dst {} self",
            peer.vtep, peer.public_ip
        ),
        "ip link set flannel.1 down; ip link set flannel.1 up".into(),
        "ip link del flannel.1".into(),
    ];
    for damage in damages {
        node.shell(&damage)?;
        eventually(limit(20), &format!("what `{damage}` took away"), || {
            ensure!(programmed(node)? == before, "{:?}", programmed(node)?);
            one.ping(two.ip())
        })?;
    }
    Ok(())
}

/// A route, a neighbour, an address of somebody else's on the node.
pub fn foreign_objects_stay() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let node = lab.node(1)?;
    node.shell("ip route add 172.30.0.0/16 via 192.168.50.1; ip route add blackhole 10.5.251.0/24; ip neigh add 192.168.50.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")?;
    let foreign = || {
        node.shell("ip route show 172.30.0.0/16; ip route show type blackhole; ip neigh show 192.168.50.77")
    };
    let before = foreign()?;
    let daemons = start_all(&lab, &["--ip-masq"])?;
    for daemon in daemons {
        daemon.terminate()?;
    }
    let _daemons = start_all(&lab, &["--ip-masq"])?;
    assert_eq!(foreign()?, before);
    Ok(())
}

/// flannel's device has checksums in its outer packets. One that is made with `--vxlan-udp-checksum=false` has none, and both kinds of node
/// reach each other; a device that stands stays as it is.
pub fn outer_checksums_are_a_choice() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let _usual = lab.node(1)?.start_ready_flanneld(&[])?;
    let other = lab
        .node(2)?
        .start_ready_flanneld(&["--vxlan-udp-checksum=false"])?;
    let has_checksum = |number: usize| -> Result<bool> {
        let device = lab.node(number)?.ip_json(&["-d", "link", "show", "flannel.1"])?;
        let checksum = &device[0]["linkinfo"]["info_data"]["udp_csum"];
        checksum
            .as_bool()
            .with_context(|| format!("no udp_csum in {device}"))
    };
    assert_eq!([has_checksum(1)?, has_checksum(2)?], [true, false]);
    let (one, two) = (lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?);
    await_ping(&one, two.ip())?;
    ensure!(flannel_lab::transfer(&two, &one, 1)?.bytes > 1e6, "too little");
    ensure!(other.terminate()?.success(), "flanneld ended with an error");
    let _other = lab.node(2)?.start_ready_flanneld(&[])?;
    ensure!(!has_checksum(2)?, "the device was made anew");
    two.ping(one.ip())
}
