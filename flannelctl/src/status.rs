//! `flannelctl status`: how the flanneld of this node stands.

mod handshakes;

use flannel_model::{NodeReport, UdpReport};
use serde::Serialize;

use crate::cli::SocketArgument;
use crate::failure::Failure;
use crate::output::{Output, printable};
use crate::services::daemon;
use handshakes::Encrypted;

/// Asks it.
pub async fn show(socket: &SocketArgument, output: &mut Output) -> Result<(), Failure> {
    let socket = &socket.status_socket;
    let Some(report) = daemon::node(socket).await? else {
        return Err(Failure::Daemon(format!(
            "no flanneld listens at {}; is it running on this host?",
            socket.display()
        )));
    };
    let view = View {
        encrypted: handshakes::of(&report.devices),
        report,
    };
    output.show(&view, text)
}

/// What the daemon tells, and what the kernel says of its WireGuard devices.
#[derive(Debug, Serialize)]
struct View {
    #[serde(flatten)]
    report: NodeReport,
    /// One for each WireGuard device; none in a network with another backend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    encrypted: Vec<Encrypted>,
}

fn text(view: &View) -> String {
    let report = &view.report;
    let joined = |list: &[String]| match list.is_empty() {
        true => "none".to_owned(),
        false => list.join(", "),
    };
    let public: Vec<String> = report.public_ips.iter().map(ToString::to_string).collect();
    let state = match report.reason.as_str() {
        "" => report.state.clone(),
        reason => format!("{}: {reason}", report.state),
    };
    let mut rows = vec![
        ("State", state),
        ("Subnet", joined(&report.subnets)),
        ("Interface", format!("{} ({})", report.interface, joined(&public))),
        ("MTU of pods", report.mtu.to_string()),
        ("Tunnel devices", joined(&report.devices)),
        ("Peers", report.peers.to_string()),
        ("Records skipped", report.records_skipped.to_string()),
        ("Writes failed", report.writes_failed.to_string()),
    ];
    rows.extend(report.udp.iter().flat_map(udp));
    rows.extend(
        view.encrypted
            .iter()
            .map(|device| ("Encrypted", device.to_string())),
    );
    rows.extend(report.fights.iter().map(|fight| ("Fight", fight.clone())));
    let line = |(name, value): (&str, String)| format!("{name:<16} {}\n", printable(&value));
    rows.into_iter().map(line).collect()
}

/// Peers that are shown; JSON has all.
const PEERS: usize = 10;

fn udp(report: &UdpReport) -> Vec<(&'static str, String)> {
    let names = |used: bool| {
        let names = report.offloads.iter().filter(|(_, is_used)| **is_used == used);
        names.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let (used, missing) = (names(true), names(false));
    let mut offloads = match used.is_empty() {
        true => "none".to_owned(),
        false => used.join(", "),
    };
    if !missing.is_empty() {
        offloads += &format!(" (not in use: {})", missing.join(", "));
    }
    let dropped: Vec<String> = report
        .dropped
        .iter()
        .map(|(reason, packets)| format!("{packets} {reason}"))
        .collect();
    let mut rows = vec![
        (
            "UDP data path",
            format!("{}, {} queues", report.listen, report.queues),
        ),
        ("UDP offloads", offloads),
        (
            "UDP packets",
            format!(
                "{} sent, {} received",
                report.sent_packets, report.received_packets
            ),
        ),
        (
            "UDP dropped",
            match dropped.is_empty() {
                true => "none".to_owned(),
                false => dropped.join(", "),
            },
        ),
    ];
    // Who floods is not to be looked for.
    let mut peers: Vec<_> = report.peers.iter().collect();
    peers.sort_by_key(|peer| std::cmp::Reverse(peer.overload));
    rows.extend(peers.into_iter().take(PEERS).map(|peer| {
        let port = if peer.any_port {
            " (behind a NAT, any port)"
        } else {
            ""
        };
        let overload = match peer.overload {
            0 => String::new(),
            packets => format!("; {packets} packets dropped, more than its share"),
        };
        (
            "UDP peer",
            format!("{}{port}: {}{overload}", peer.address, peer.subnets.join(", ")),
        )
    }));
    if let Some(more) = report.peers.len().checked_sub(PEERS).filter(|more| *more > 0) {
        rows.push(("UDP peer", format!("{more} more; -o json shows them")));
    }
    rows
}

#[cfg(test)]
mod tests {
    use flannel_model::UdpPeerReport;

    use super::*;

    #[test]
    fn the_udp_data_path_says_what_it_uses_drops_and_knows() {
        let peer = |n: u8| UdpPeerReport {
            address: ([192, 0, 2, n], 8285).into(),
            subnets: vec![format!("10.5.{n}.0/24")],
            any_port: n == 1,
            overload: u64::from(n == 2) * 7,
        };
        let report = NodeReport {
            udp: Some(UdpReport {
                listen: "192.0.2.9:8285".parse().unwrap(),
                queues: 2,
                offloads: [("tso".to_owned(), true), ("uso".to_owned(), false)].into(),
                sent_packets: 5,
                received_packets: 6,
                dropped: [("overload".to_owned(), 7)].into(),
                peers: (1..=12).map(peer).collect(),
            }),
            ..NodeReport::default()
        };
        let shown = text(&View {
            report,
            encrypted: Vec::new(),
        });
        for part in [
            "UDP data path    192.0.2.9:8285, 2 queues\n",
            "UDP offloads     tso (not in use: uso)\n",
            "UDP packets      5 sent, 6 received\n",
            "UDP dropped      7 overload\n",
            "UDP peer         192.0.2.1:8285 (behind a NAT, any port): 10.5.1.0/24\n",
            "UDP peer         192.0.2.2:8285: 10.5.2.0/24; 7 packets dropped, more than its share\n",
            "UDP peer         2 more; -o json shows them\n",
        ] {
            assert!(shown.contains(part), "no {part:?} in\n{shown}");
        }
    }

    #[test]
    fn the_reason_and_every_fight_are_shown() {
        let report = NodeReport {
            state: "degraded".into(),
            reason: "etcd cannot be followed".into(),
            interface: "eth0".into(),
            public_ips: vec!["192.0.2.1".parse().unwrap()],
            fights: vec!["somebody undoes `x` again and again".into()],
            ..NodeReport::default()
        };
        let encrypted = Encrypted {
            device: "flannel-wg".into(),
            peers: 3,
            with_handshake: 2,
            last_handshake_seconds_ago: Some(75),
        };
        let shown = text(&View {
            report,
            encrypted: vec![encrypted],
        });
        for part in [
            "State            degraded: etcd cannot be followed\n",
            "Interface        eth0 (192.0.2.1)\n",
            "Tunnel devices   none\n",
            "Encrypted        2 of 3 peers of flannel-wg with a handshake in the last three minutes, the last 1m15s ago\n",
            "Fight            somebody undoes `x` again and again\n",
        ] {
            assert!(shown.contains(part), "no {part:?} in\n{shown}");
        }
    }
}
