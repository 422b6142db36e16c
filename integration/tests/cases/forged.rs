//! Forged packets for the tunnel, of all kinds: none gets through, each is counted, and what peers send is not touched.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use flannel_lab::capture::Capture;
use flannel_lab::datagrams::{Datagram, send};
use flannel_lab::{Lab, LabOptions, Node, Pinger, Place, Pod, eventually, http, limit};

use super::backend::{Pair, config};
use super::common::{await_ping, lease_of, list, put_peer, text};

const DUAL: &str =
    r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
const FLAGS: [&str; 2] = ["--ip-masq", "--healthz-port=9009"];
/// Of each kind.
const EACH: u32 = 50;
/// The port to which forged packets go inside, by which a capture knows them.
const MARK: u16 = 9999;
const BROADCAST_MAC: &str = "ff:ff:ff:ff:ff:ff";
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

/// A UDP packet to [`MARK`], without a checksum.
fn packet(source: &str, destination: &str) -> Result<Vec<u8>> {
    let udp = [
        &MARK.to_be_bytes()[..],
        &MARK.to_be_bytes(),
        &[0, 16, 0, 0],
        b"forged!!",
    ]
    .concat();
    Ok(match (source.parse()?, destination.parse()?) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            [header, udp].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = vec![0x60, 0, 0, 0, 0, 16, 17, 64];
            [header, source.octets().into(), destination.octets().into(), udp].concat()
        }
        _ => anyhow::bail!("{source} and {destination} are of two families"),
    })
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn mac(text: &str) -> Result<Vec<u8>> {
    text.split(':')
        .map(|byte| Ok(u8::from_str_radix(byte, 16)?))
        .collect()
}

/// RFC 7348: the VXLAN header with VNI 1, and an Ethernet frame.
fn vxlan(destination: &str, ethertype: u16, inner: &[u8]) -> Result<Vec<u8>> {
    let header = [0x08, 0, 0, 0, 0, 0, 1, 0];
    let source = mac("02:00:00:00:00:66")?;
    Ok([
        &header[..],
        &mac(destination)?,
        &source,
        &ethertype.to_be_bytes(),
        inner,
    ]
    .concat())
}

/// What a forger needs to know of the node that is attacked.
struct Victim {
    target: String,
    vtep: String,
    /// A pod of it, and what is not its.
    pod: String,
    ethertype: u16,
}

impl Victim {
    /// A frame that is right in all but the addresses inside.
    fn forged(&self, source: &str, destination: &str) -> Result<Datagram> {
        self.frame(&self.vtep, self.ethertype, &packet(source, destination)?)
    }

    fn frame(&self, mac: &str, ethertype: u16, inner: &[u8]) -> Result<Datagram> {
        Ok(Datagram {
            target: format!("udp {}", self.target),
            count: EACH,
            bytes: vxlan(mac, ethertype, inner)?,
        })
    }
}

/// How many of each reason the node counted, at /metrics.
fn counted(node: &Node, reason: &str) -> Result<u64> {
    let (_, metrics) = http::get(&format!("{}:9009", node.address()), "/metrics")?;
    let name = format!("flannel_encap_drops_total{{reason=\"{reason}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.with_context(|| format!("no {name} in {metrics}"))?
        .parse()
        .context("no number")
}

fn counts_are(node: &Node, expected: &[(&str, u32)]) -> Result<()> {
    eventually(limit(10), "every packet to be counted", || {
        for (reason, kinds) in expected {
            let (count, expected) = (counted(node, reason)?, u64::from(kinds * EACH));
            ensure!(count == expected, "{reason}: {count} of {expected}");
        }
        Ok(())
    })
}

/// Nothing that was forged comes out of the device, nor to the pod.
fn nothing_arrives(node: &Node, device: &str, pod: &Pod, forge: impl FnOnce() -> Result<()>) -> Result<()> {
    let at = [Capture::headers(node, device)?, Capture::headers(pod, "eth0")?];
    forge()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    for capture in at {
        let there = capture.count(&[&format!("udp port {MARK}")])?;
        ensure!(there == [0], "{there:?} forged packets arrived");
    }
    Ok(())
}

pub fn vxlan_packets_reach_nobody() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3).ipv6().config(DUAL))?;
    let mut daemons = Vec::new();
    for node in lab.nodes() {
        daemons.push(node.start_ready_flanneld(&FLAGS)?);
    }
    let node = lab.node(1)?;
    let pods = [
        lab.node(1)?.add_pod("one")?,
        lab.node(2)?.add_pod("two")?,
        lab.node(3)?.add_pod("three")?,
    ];
    for other in &pods[1..] {
        await_ping(&pods[0], other.ip())?;
    }
    let streams = [
        Pinger::start(&pods[0], &pods[1])?,
        Pinger::start(&pods[2], &pods[0])?,
    ];
    // A node's own address is its, too.
    let third = lab.node(3)?;
    third.run(&[
        "ping",
        "-n",
        "-q",
        "-c",
        "1",
        "-W",
        "2",
        "-I",
        third.address(),
        pods[0].ip(),
    ])?;
    let device = |name: &str| -> Result<String> {
        let link = node.ip_json(&["link", "show", name])?;
        Ok(text(&link[0]["address"]))
    };
    let victim = Victim {
        target: format!("{}:8472", node.address()),
        vtep: device("flannel.1")?,
        pod: pods[0].ip().to_owned(),
        ethertype: IPV4,
    };
    let victim_v6 = Victim {
        target: format!("[{}]:8472", node.ipv6_address()),
        vtep: device("flannel-v6.1")?,
        pod: ipv6_of(&pods[0])?,
        ethertype: IPV6,
    };
    nothing_arrives(node, "any", &pods[0], || {
        from_strangers(&victim, &victim_v6, &pods, &lab)?;
        from_a_peer(&victim, &pods, &lab)?;
        from_a_peer_over_ipv6(&victim_v6, &pods, third)
    })?;
    counts_are(
        node,
        &[
            ("outer_source", 3),
            ("inner_source", 4),
            ("loopback", 2),
            ("link_local", 2),
            ("multicast", 4),
            ("foreign", 4),
            ("inner_protocol", 1),
            ("malformed", 1),
            ("outer_destination", 1),
        ],
    )?;
    for stream in streams {
        let report = stream.stop()?;
        ensure!(report.sent >= 100 && report.lost.is_empty(), "{report:?}");
    }
    Ok(())
}

fn ipv6_of(pod: &Pod) -> Result<String> {
    let link = pod.ip_json(&["-6", "address", "show", "dev", "eth0", "scope", "global"])?;
    let addresses = list(&link[0]["addr_info"]);
    Ok(text(&addresses.first().context("no IPv6 address")?["local"]))
}

/// Who is no peer may send what it wants: also to a group, for which no Ethernet address has to be known.
fn from_strangers(victim: &Victim, victim_v6: &Victim, pods: &[Pod; 3], lab: &Lab) -> Result<()> {
    let gateway = lease_of_v4(&victim.pod);
    let datagrams = [
        victim.forged(pods[1].ip(), &victim.pod)?,
        victim.frame(BROADCAST_MAC, IPV4, &packet(pods[1].ip(), &gateway)?)?,
    ];
    send(&lab.operator(), &datagrams)?;
    let over_ipv6 = victim_v6.forged(&ipv6_of(&pods[1])?, &victim_v6.pod)?;
    send(&Place::netns("router"), &[over_ipv6])
}

/// The address of the tunnel device: the first of the subnet.
fn lease_of_v4(pod: &str) -> String {
    let base = pod.rsplit_once('.').map_or(pod, |(base, _)| base);
    format!("{base}.0")
}

/// A node that has a lease sends what is not its own, and to where nothing is.
fn from_a_peer(victim: &Victim, pods: &[Pod; 3], lab: &Lab) -> Result<()> {
    let third = lab.node(3)?;
    let (own, pod) = (pods[2].ip(), victim.pod.as_str());
    let right = packet(own, pod)?;
    let mut datagrams = vec![
        victim.forged(pods[1].ip(), pod)?,
        victim.forged(lab.node(2)?.address(), pod)?,
        victim.forged("192.0.2.10", pod)?,
        victim.forged(own, "127.0.0.1")?,
        victim.forged(own, "169.254.1.1")?,
        victim.forged(own, "224.0.0.1")?,
        victim.forged(own, "255.255.255.255")?,
        victim.frame(BROADCAST_MAC, IPV4, &right)?,
        victim.forged(own, "192.0.2.10")?,
        victim.forged(own, lab.node(1)?.address())?,
        victim.forged(own, pods[1].ip())?,
        victim.frame(&victim.vtep, ARP, &right)?,
        // It ends within the inner header.
        victim.frame(&victim.vtep, IPV4, right.get(..15).unwrap_or_default())?,
    ];
    let broadcast = Datagram {
        target: "udp 192.168.50.255:8472".into(),
        ..victim.forged(own, pod)?
    };
    datagrams.push(broadcast);
    send(third, &datagrams)
}

fn from_a_peer_over_ipv6(victim: &Victim, pods: &[Pod; 3], third: &Node) -> Result<()> {
    let (own, pod) = (ipv6_of(&pods[2])?, victim.pod.as_str());
    let datagrams = [
        victim.forged(&ipv6_of(&pods[1])?, pod)?,
        victim.forged(&own, "::1")?,
        victim.forged(&own, "fe80::1")?,
        victim.forged(&own, "ff02::1")?,
        victim.forged(&own, "2001:db8:2::10")?,
    ];
    send(third, &datagrams)
}

/// The same packets arrive where there is no filter, so that they are right; and there is none afterwards.
pub fn without_the_filter_they_arrive() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let mut daemons = Vec::new();
    for node in lab.nodes() {
        daemons.push(node.start_ready_flanneld(&FLAGS)?);
    }
    let node = lab.node(1)?;
    let table = || node.run(&["nft", "list", "table", "ip", "flannel-encap"]);
    eventually(limit(10), "the filter", || table().map(drop))?;
    daemons.remove(0).terminate()?;
    let _daemon = node.start_ready_flanneld(&[&FLAGS[..], &["--encap-filter=false"]].concat())?;
    eventually(limit(10), "no filter", || {
        ensure!(table().is_err(), "{}", table()?);
        Ok(())
    })?;
    let pods = [lab.node(1)?.add_pod("one")?, lab.node(2)?.add_pod("two")?];
    await_ping(&pods[0], pods[1].ip())?;
    let victim = Victim {
        target: format!("{}:8472", node.address()),
        vtep: lease_of(&lab, node)?.vtep,
        pod: pods[0].ip().to_owned(),
        ethertype: IPV4,
    };
    let capture = Capture::headers(&pods[0], "eth0")?;
    send(&lab.operator(), &[victim.forged(pods[1].ip(), &victim.pod)?])?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let arrived = capture.count(&[&format!("udp dst port {MARK}")])?;
    ensure!(arrived == [EACH as usize], "{arrived:?}");
    Ok(())
}

/// Peers come, change and go, somebody takes the table away or adds to it, the daemon is killed: the sets are those of the peers.
pub fn the_filter_follows_the_peers() -> Result<()> {
    let pair = Pair::start(r#"{"Type":"vxlan"}"#)?;
    let node = pair.lab.node(1)?;
    let senders = || -> Result<Vec<String>> {
        let shown = node.nft_json(&["list", "set", "ip", "flannel-encap", "paths"])?;
        let sets = list(&shown["nftables"]);
        let elements = sets.iter().flat_map(|part| list(&part["set"]["elem"]));
        let pairs = elements.map(|element| {
            let pair = list(&element["concat"]);
            pair.iter().map(text).collect::<Vec<_>>().join(" ")
        });
        let mut pairs: Vec<String> = pairs.collect();
        pairs.sort();
        Ok(pairs)
    };
    let second = lease_of(&pair.lab, pair.lab.node(2)?)?;
    let own = lease_of(&pair.lab, node)?;
    let peer = format!("{} {}", second.public_ip, second.base());
    let holds = |expected: &[&str]| {
        let all = expected.iter().copied().chain([peer.as_str()]);
        let mut expected: Vec<String> = all.map(|sender| format!("{sender} {}", own.base())).collect();
        expected.sort_unstable();
        eventually(limit(20), "the senders", || {
            ensure!(senders()? == expected, "{:?} and not {expected:?}", senders()?);
            Ok(())
        })
    };
    holds(&[])?;
    put_peer(&pair.lab, "10.5.250.0-24", "192.168.50.77", "8a:00:00:00:00:77")?;
    holds(&["192.168.50.77 10.5.250.0"])?;
    put_peer(&pair.lab, "10.5.250.0-24", "192.168.50.78", "8a:00:00:00:00:77")?;
    holds(&["192.168.50.78 10.5.250.0"])?;
    let whole = || node.run(&["nft", "-s", "list", "table", "ip", "flannel-encap"]);
    let before = whole()?;
    for damage in [
        "nft delete table ip flannel-encap",
        "nft flush ruleset",
        &format!(
            "nft add element ip flannel-encap paths '{{ 192.168.50.66 . 10.5.66.0 . {} }}'",
            own.base()
        ),
        &format!(
            "nft delete element ip flannel-encap paths '{{ 192.168.50.78 . 10.5.250.0 . {} }}'",
            own.base()
        ),
        "nft flush chain ip flannel-encap outer",
        "nft insert rule ip flannel-encap input accept",
        "nft chain ip flannel-encap input '{ policy drop ; }'",
        "nft add chain ip flannel-encap else '{ type filter hook prerouting priority -400 ; policy drop ; }'",
        "nft 'flush chain ip flannel-encap input; delete chain ip flannel-encap input; \
         add chain ip flannel-encap input { type filter hook input priority 5 ; }'",
    ] {
        node.shell(damage)?;
        eventually(limit(20), &format!("what `{damage}` changed"), || {
            let (now, then) = (sorted(&whole()?), sorted(&before));
            ensure!(now == then, "{now:?} and not {then:?}");
            pair.pods[0].ping(pair.pods[1].ip())
        })?;
    }
    Ok(())
}

/// Lines, and within them elements, in an order of their own: that of a set says nothing.
fn sorted(text: &str) -> Vec<String> {
    let mut words: Vec<String> = text
        .split(['\n', ',', '{', '}'])
        .map(|word| word.trim().replace("elements = ", ""))
        .filter(|word| !word.is_empty())
        .collect();
    words.sort();
    words
}

pub fn ipip_packets_reach_nobody() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3).config(&config(r#"{"Type":"ipip"}"#)))?;
    let mut daemons = Vec::new();
    for node in lab.nodes() {
        daemons.push(node.start_ready_flanneld(&FLAGS)?);
    }
    let [one, two, three] = [
        lab.node(1)?.add_pod("one")?,
        lab.node(2)?.add_pod("two")?,
        lab.node(3)?.add_pod("three")?,
    ];
    await_ping(&one, two.ip())?;
    await_ping(&three, one.ip())?;
    let node = lab.node(1)?;
    let forged = |source: &str, destination: &str| -> Result<Datagram> {
        Ok(Datagram {
            target: format!("ipip {}", node.address()),
            count: EACH,
            bytes: packet(source, destination)?,
        })
    };
    nothing_arrives(node, "cni0", &one, || {
        send(
            &lab.operator(),
            &[forged(two.ip(), one.ip())?, forged("192.0.2.10", one.ip())?],
        )?;
        send(
            lab.node(3)?,
            &[
                forged(two.ip(), one.ip())?,
                forged(three.ip(), "127.0.0.1")?,
                forged(three.ip(), "169.254.1.1")?,
                forged(three.ip(), "224.0.0.1")?,
                forged(three.ip(), "192.0.2.10")?,
            ],
        )
    })?;
    counts_are(
        node,
        &[
            ("outer_source", 2),
            ("inner_source", 1),
            ("loopback", 1),
            ("link_local", 1),
            ("multicast", 1),
            ("foreign", 1),
        ],
    )?;
    // nft shows what it did not write.
    let shown = node.run(&["nft", "list", "table", "ip", "flannel-encap"])?;
    ensure!(
        shown.contains("outer_source") && shown.contains("goto scope"),
        "{shown}"
    );
    await_ping(&one, two.ip())
}
