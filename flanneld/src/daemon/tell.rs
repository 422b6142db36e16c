//! What the running node says of itself: subnet.env for the plugin, its status for the service manager, the probes and the log.

use std::net::IpAddr;

use flannel_lease::Standing;
use flannel_model::{NodeReport, SubnetEnv};
use flannel_telemetry::{notify_ready, notify_status};

use super::Node;
use crate::filter::FilterState;
use crate::reconciler::Report;
use crate::subnet_file;

impl Node<'_> {
    /// Why no pod may be added although there is a subnet.
    fn objection(&self) -> Option<String> {
        let status = self.lease.borrow();
        match status.as_ref().map_or(Standing::None, |status| status.standing) {
            Standing::None | Standing::Adopted | Standing::Confirmed => None,
            Standing::Unconfirmed => Some(
                "etcd did not confirm the lease for its whole lifetime, so another node may have the subnet by now; \
                 pods stay, none is added"
                    .to_owned(),
            ),
            Standing::Taken(by) if by.is_surely(&self.identity) => Some(format!(
                "the lease of this node says {by} again after it was put right: does another node have a copy of this one's \
                 --state-dir? Pods stay, none is added until it is put right again"
            )),
            Standing::Taken(by) => Some(format!(
                "the subnet belongs to {by} now; pods stay, new ones wait for another subnet"
            )),
            Standing::Revoked => Some(
                "the subnet was revoked (its lease was deleted twice within a minute); pods stay, none is added; \
                 restart flanneld to claim a subnet again"
                    .to_owned(),
            ),
        }
    }

    /// Writes subnet.env and tells the service manager and the probes how it stands.
    pub(super) fn tell(&mut self) {
        if let Some(objection) = self.objection() {
            // Without the file the CNI plugin adds no pod and asks the runtime to try again later.
            if let Err(error) = subnet_file::remove(&self.options.subnet_file) {
                tracing::error!(file = %self.options.subnet_file.display(), %error, "cannot be removed; pods may be added to a subnet that is not ours");
            }
            return self.waiting(&objection);
        }
        let host_problem = self.host_problem.clone();
        let udp_problem = self.udp.borrow().clone();
        if let Some(problem) = udp_problem {
            return self.waiting(&problem);
        }
        let report = self.reports.borrow().clone();
        let Some(report) = report.filter(|report| report.devices_up) else {
            return self.waiting(host_problem.as_deref().unwrap_or("bringing up the tunnel device"));
        };
        if let Err(error) = subnet_file::write(&self.options.subnet_file, &self.subnet_env(&report)) {
            let file = self.options.subnet_file.display();
            return self.waiting(&format!(
                "cannot write {file} ({error}); pods cannot be added until it is there"
            ));
        }
        if let Some(problem) = host_problem {
            return self.waiting(&problem);
        }
        let filter = self.filter.borrow().clone();
        match (filter, &self.lost) {
            (FilterState::Failed(problem), _) => self.waiting(&format!("masquerade rules: {problem}")),
            (FilterState::Pending, _) => self.waiting("installing masquerade rules"),
            (FilterState::Done, Some(reason)) => {
                let status = format!("etcd cannot be followed: {reason}");
                self.serve_offline(&status);
                self.waiting(&status);
            }
            (FilterState::Done, None) => self.ready(&report),
        }
    }

    /// A node with the state of its earlier run does all that a node does in an outage: who waits for it may go on.
    fn serve_offline(&mut self, reason: &str) {
        if self.offline && !self.announced {
            notify_ready(&format!("degraded: {reason}"));
            self.announced = true;
        }
    }

    fn waiting(&mut self, reason: &str) {
        self.health.set_waiting(reason);
        let state = if self.announced { "degraded" } else { "waiting" };
        let status = format!("{state}: {reason}");
        self.state = (state, reason.to_owned());
        if self.said.is_news(&status) {
            tracing::info!("{status}");
            notify_status(&status);
        }
    }

    fn ready(&mut self, report: &Report) {
        self.health.set_ready();
        self.state = ("ready", String::new());
        let recovered = self.said.clear();
        let fights = report.fights.iter().map(|fight| format!("; {fight}"));
        let unfiltered = self.encap.borrow().clone();
        let unfiltered =
            unfiltered.map(|problem| format!("; encapsulated packets are not filtered: {problem}"));
        let status = format!(
            "subnet {}, {} peers, {} records skipped, {} kernel writes failed{}{}{}",
            report.own,
            report.peers,
            self.rejects.len(),
            report.failed,
            self.config.note(),
            fights.collect::<String>(),
            unfiltered.unwrap_or_default()
        );
        if self.announced {
            notify_status(&status);
            if recovered {
                tracing::info!("ready again: {status}");
            }
        } else {
            notify_ready(&status);
            tracing::info!("ready: {status}");
            self.announced = true;
        }
    }

    /// What flannelctl on this node is told.
    pub(super) fn tell_status(&self) {
        let report = self.reports.borrow();
        let public = &self.underlay.public_ip;
        let ipv4 = public.ipv4().map(|ip| IpAddr::from(*ip));
        let ipv6 = public.ipv6().map(|ip| IpAddr::from(*ip));
        let held = self.lease.borrow().as_ref().and_then(|status| status.held);
        let subnets = held.map(|held| {
            let ipv4 = held.key.ipv4().map(|subnet| subnet.to_string());
            ipv4.into_iter()
                .chain(held.key.ipv6().map(|subnet| subnet.to_string()))
        });
        let mut told = NodeReport {
            state: self.state.0.to_owned(),
            reason: self.state.1.clone(),
            interface: self.underlay.name.clone(),
            public_ips: ipv4.into_iter().chain(ipv6).collect(),
            subnets: subnets.into_iter().flatten().collect(),
            mtu: report.as_ref().map_or(0, |report| report.mtu),
            devices: report
                .iter()
                .flat_map(|report| &report.devices)
                .map(|(device, _)| device.to_string())
                .collect(),
            peers: report.as_ref().map_or(0, |report| report.peers),
            records_skipped: self.rejects.len(),
            writes_failed: report.as_ref().map_or(0, |report| report.failed),
            fights: report
                .as_ref()
                .map(|report| report.fights.clone())
                .unwrap_or_default(),
            udp: None,
        };
        self.node_report.send_if_modified(|old| {
            // The udp data path tells of itself.
            told.udp = old.as_mut().and_then(|old| old.udp.take());
            old.replace(told.clone()).as_ref() != Some(&told)
        });
    }

    fn subnet_env(&self, report: &Report) -> SubnetEnv {
        let pools = &self.usable.pools;
        let ipv4 = pools.ipv4().map(|pool| vec![pool.network]);
        let ipv6 = pools.ipv6().map(|pool| vec![pool.network]);
        SubnetEnv {
            ipv4: ipv4.zip(report.own.ipv4()),
            ipv6: ipv6.zip(report.own.ipv6()),
            mtu: report.mtu,
            ip_masq: self.options.ip_masq,
        }
    }
}
