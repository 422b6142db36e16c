//! An exchange with a peer of flannel's algorithm, captured at the pod and on the wire: ICMP, UDP alone and in trains, TCP, in both
//! directions, and every byte of every packet is what the model computes.

use anyhow::{Context, Result, ensure};
use flannel_lab::capture::Capture;
use flannel_lab::command::Environment;
use flannel_lab::{Place, eventually, limit, sandbox};

use super::model::{Compared, compare};
use super::{Mixed, PLAIN, mixed};

/// The pod's node takes one from the TTL, and the tunnel's sender another one.
const OUTWARD: i16 = 2;
/// The pod's node takes one on the way in; the tunnel's receiver none.
const INWARD: i16 = -1;
/// IP and UDP in front of an inner packet.
const OUTER: usize = 28;

pub fn every_byte_beside_a_plain_peer_is_the_models() -> Result<()> {
    let mixed = mixed()?;
    // The wire cuts what one call sends, as the cards of most machines do not.
    for place in [&mixed.node, &mixed.peer] {
        place.shell("ethtool -K eth0 tx-udp-segmentation off gro off && ip link set eth0 gso_max_segs 1")?;
    }
    let wire = Capture::start(&mixed.peer, "eth0", "udp port 8285")?;
    let pod = Capture::start(&mixed.pod, "eth0", "ip and (icmp or tcp or udp)")?;
    exchange(&mixed)?;
    let (at_pod, on_wire) = (pod.stop()?, wire.stop()?);
    let inner = on_wire
        .iter()
        .map(|outer| outer.get(OUTER..).map(<[u8]>::to_vec).context("no datagram"))
        .collect::<Result<Vec<_>>>()?;
    let source = |packets: &[Vec<u8>], ours: bool| -> Vec<Vec<u8>> {
        let of_peer = PLAIN.parse::<std::net::Ipv4Addr>().map(|a| a.octets());
        let is_theirs = |packet: &&Vec<u8>| packet.get(12..16) == of_peer.as_ref().ok().map(|a| &a[..]);
        packets
            .iter()
            .filter(|packet| is_theirs(packet) != ours)
            .cloned()
            .collect()
    };
    let out = compare(&source(&at_pod, true), &source(&inner, true), OUTWARD).context("from the pod")?;
    let back = compare(&source(&at_pod, false), &source(&inner, false), INWARD).context("to the pod")?;
    for Compared { packets, parts } in [out, back] {
        ensure!(
            packets > 1500 && parts > 500,
            "{out:?} out, {back:?} back: too few to mean something"
        );
    }
    Ok(())
}

fn exchange(mixed: &Mixed) -> Result<()> {
    let (pod, peer) = (&mixed.pod, &mixed.peer);
    let file = format!("{}/some", sandbox::SCRATCH);
    Place::sandbox().shell(&format!("head -c 1500000 /dev/urandom > {file}"))?;
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    for (from, to, address) in [(&**pod, peer, PLAIN), (peer, &**pod, pod.ip())] {
        for size in ["0", "57", "1444"] {
            from.run(&[
                "ping", "-n", "-q", "-c", "2", "-i", "0.05", "-W", "2", "-s", size, address,
            ])?;
        }
        let copy = format!("{file}.copy");
        let sink = [
            "socat",
            "-u",
            "TCP-LISTEN:9001,reuseaddr",
            &format!("CREATE:{copy}"),
        ];
        let mut receiver = to.spawn("socat", &sink, &Environment::default())?;
        eventually(limit(10), "a receiver", || {
            from.run(&[
                "socat",
                "-u",
                &format!("OPEN:{file}"),
                &format!("TCP:{address}:9001"),
            ])
        })?;
        receiver.wait(limit(10))?;
        Place::sandbox().run(&["cmp", &file, &copy])?;
        let udp = to.spawn(
            "socat",
            &["socat", "-u", "UDP-RECV:9002", "OPEN:/dev/null"],
            &Environment::default(),
        )?;
        eventually(limit(10), "the UDP receiver", || {
            let sockets = to.run(&["ss", "-Hlun", "sport", "=", "9002"])?;
            ensure!(!sockets.is_empty(), "not yet");
            Ok(())
        })?;
        for segment in ["8", "100", "999", "1400"] {
            from.run(&[&program, "train", &format!("{address}:9002"), segment, "10"])?;
        }
        drop(udp);
    }
    Ok(())
}
