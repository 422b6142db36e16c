//! `flannelctl status`: how the flanneld of this node stands.

use flannel_model::NodeReport;

use crate::cli::SocketArgument;
use crate::failure::Failure;
use crate::output::{Output, printable};
use crate::services::daemon;

/// Asks it.
pub async fn show(socket: &SocketArgument, output: &mut Output) -> Result<(), Failure> {
    let socket = &socket.status_socket;
    let Some(report) = daemon::node(socket).await? else {
        return Err(Failure::Daemon(format!(
            "no flanneld listens at {}; is it running on this host?",
            socket.display()
        )));
    };
    output.show(&report, text)
}

fn text(report: &NodeReport) -> String {
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
    rows.extend(report.fights.iter().map(|fight| ("Fight", fight.clone())));
    let line = |(name, value): (&str, String)| format!("{name:<16} {}\n", printable(&value));
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let shown = text(&report);
        for part in [
            "State            degraded: etcd cannot be followed\n",
            "Interface        eth0 (192.0.2.1)\n",
            "Tunnel devices   none\n",
            "Fight            somebody undoes `x` again and again\n",
        ] {
            assert!(shown.contains(part), "no {part:?} in\n{shown}");
        }
    }
}
