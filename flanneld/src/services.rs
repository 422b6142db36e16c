//! Programs the Services of the cluster into this node: guard and masquerade rules, a local route for each service CIDR,
//! and virtual servers in IPVS. Synchronous: call it from a thread that may block.

mod memory;
mod routes;
mod sysctls;
mod virtual_servers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_model::Ipv4Subnet;
use flannel_netlink::generic::Ipvs;
use flannel_netlink::route::Route;
use flannel_netlink::{NetlinkError, RouteConn};
use flannel_nft::{Nft, ServicesTable, TableName, services_table};
use flannel_plan::{DesiredServices, ServiceNode, desired_services};

use crate::overlay::Facts;
use crate::said::{Said, chain};
use memory::RecordMemory;

/// How often a kernel without IPVS is asked again.
const PROBE_AGAIN: Duration = Duration::from_secs(60);
/// Failures that are told one by one; of the rest only the number.
const TOLD_FAILURES: usize = 20;

/// A record of the services prefix as etcd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// The value.
    pub value: Vec<u8>,
    /// Revision in which the key was made: the older of two Services that claim one address wins.
    pub create_revision: i64,
}

/// What matters about the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeFacts {
    /// An address of this node: the source of what it sends to Services itself.
    pub address: Ipv4Addr,
    /// The pod network of the cluster.
    pub network: Ipv4Subnet,
    /// The pods of this node.
    pub subnet: Ipv4Subnet,
}

impl From<&Facts> for NodeFacts {
    fn from(facts: &Facts) -> Self {
        Self {
            address: facts.overlay.underlay.address,
            network: facts.overlay.network,
            subnet: facts.own,
        }
    }
}

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Kernel objects that were added or changed: virtual servers, real servers, routes.
    pub added: usize,
    /// Kernel objects that were removed.
    pub removed: usize,
    /// Kernel objects that were as they should be.
    pub unchanged: usize,
    /// What failed, with the kernel's reason.
    pub failed: Vec<String>,
    /// What is not, or not wholly, programmed: the key or Service, and why.
    pub rejects: Vec<(String, String)>,
}

impl Status {
    fn fail(&mut self, error: &dyn std::error::Error) {
        self.failed.push(chain(error));
    }

    /// Gathers the reasons of one subject, in order, and keeps the list of failures readable.
    fn tidy(&mut self) {
        let mut by_subject: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (subject, reason) in self.rejects.drain(..) {
            by_subject.entry(subject).or_default().push(reason);
        }
        self.rejects = by_subject
            .into_iter()
            .map(|(s, reasons)| (s, reasons.join("; ")))
            .collect();
        if self.failed.len() > TOLD_FAILURES {
            let more = self.failed.len() - TOLD_FAILURES;
            self.failed.truncate(TOLD_FAILURES);
            self.failed.push(format!("and {more} more"));
        }
    }
}

/// Programs Services, pass by pass. It remembers records that were good, and whether the kernel has IPVS.
#[derive(Debug, Default)]
pub struct ServiceProgrammer {
    memory: RecordMemory,
    nft: Nft,
    absent_since: Option<Instant>,
    sysctls_said: Said,
}

impl ServiceProgrammer {
    /// Nothing is known yet; what a former process left in the kernel is adopted by the first pass.
    pub fn new() -> Self {
        Self::default()
    }

    /// Brings the kernel to what `records` ask for. They must be complete: what is absent is removed. Keys are those
    /// behind `<prefix>/services/v1/`.
    ///
    /// Without a configured service CIDR nothing is touched, except for what an earlier configuration left. A config that
    /// cannot be read leaves everything as it is.
    pub fn sync(&mut self, records: &BTreeMap<String, RawRecord>, node: &NodeFacts) -> Status {
        let mut status = Status::default();
        let node = ServiceNode {
            address: node.address,
            network: node.network,
            subnet: node.subnet,
        };
        if let Some(facts) = self.memory.facts(records, node, &mut status.rejects) {
            let desired = desired_services(&facts);
            let notes = desired.notes.iter().map(|n| (n.subject.clone(), n.text.clone()));
            status.rejects.extend(notes);
            if let Err(error) = self.programme(&desired, &node, &mut status) {
                status.fail(&error);
            }
        }
        status.tidy();
        status
    }

    /// The order of the steps: the guard before the route that it guards, and both before the virtual servers; on the way
    /// out the other way round. An error ends the pass, because nothing can be read from the kernel.
    fn programme(
        &mut self,
        desired: &DesiredServices,
        node: &ServiceNode,
        status: &mut Status,
    ) -> Result<(), NetlinkError> {
        let mut conn = RouteConn::open()?;
        let present = routes::ours(&mut conn)?;
        if desired.cidrs.is_empty() && present.is_empty() {
            return Ok(());
        }
        let Some(mut ipvs) = self.ipvs()? else {
            return Ok(());
        };
        let standing = self.deliver(&mut conn, desired, &present, node, status)?;
        // Without its route a virtual server would get no packet, and nothing would tell us later that it is ours.
        let owned: BTreeSet<Ipv4Subnet> = present
            .iter()
            .map(|r| r.destination)
            .chain(standing.clone())
            .collect();
        let owned: Vec<Ipv4Subnet> = owned.into_iter().collect();
        let emptied = virtual_servers::programme(&mut ipvs, &desired.servers, &owned, status)?;
        if emptied && standing.len() == desired.cidrs.len() {
            routes::remove_stale(&mut conn, &desired.cidrs, &present, status);
        }
        if desired.cidrs.is_empty() && status.failed.is_empty() {
            // The guard outlives the route.
            if let Err(error) = self.nft.remove(TableName::SERVICES) {
                status.fail(&error);
            }
        }
        Ok(())
    }

    /// Settings, guard and routes. Answers the CIDRs whose route stands.
    fn deliver(
        &mut self,
        conn: &mut RouteConn,
        desired: &DesiredServices,
        present: &[Route],
        node: &ServiceNode,
        status: &mut Status,
    ) -> Result<Vec<Ipv4Subnet>, NetlinkError> {
        if desired.cidrs.is_empty() {
            return Ok(Vec::new());
        }
        self.set_sysctls(status);
        let guarded = self.guard(desired, node, status);
        routes::add(conn, &desired.cidrs, present, node.address, guarded, status)
    }

    /// IPVS, unless the kernel has none, which is said once and asked again every minute.
    fn ipvs(&mut self) -> Result<Option<Ipvs>, NetlinkError> {
        if self
            .absent_since
            .is_some_and(|since| since.elapsed() < PROBE_AGAIN)
        {
            return Ok(None);
        }
        let ipvs = Ipvs::open()?;
        match (&ipvs, self.absent_since) {
            (None, None) => tracing::warn!(
                "the kernel has no IPVS, so Services are not programmed and everything else goes on: load it with \
                 `modprobe ip_vs`, or run a kernel with CONFIG_IP_VS; it is looked for again every {} s",
                PROBE_AGAIN.as_secs()
            ),
            (Some(_), Some(_)) => tracing::info!("the kernel has IPVS now; Services are programmed"),
            _ => {}
        }
        self.absent_since = ipvs.is_none().then(Instant::now);
        Ok(ipvs)
    }

    fn set_sysctls(&mut self, status: &mut Status) {
        let missing = sysctls::set(&mut status.failed);
        if missing.is_empty() {
            self.sysctls_said.clear();
        } else if self.sysctls_said.is_news(&missing.join("; ")) {
            for sentence in missing {
                tracing::warn!("{sentence}");
            }
        }
    }

    /// Whether the table with the guard stands.
    fn guard(&self, desired: &DesiredServices, node: &ServiceNode, status: &mut Status) -> bool {
        let table = services_table(&ServicesTable {
            cidrs: desired.cidrs.clone(),
            network: node.network,
            local_endpoints: desired.local_endpoints.clone(),
            fully_random: true,
        });
        match self.nft.apply(&table) {
            Ok(_) => true,
            Err(error) => {
                status.fail(&error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
