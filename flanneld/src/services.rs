//! Programs the Services of the cluster into this node. Synchronous: call it from a thread that may block.
//!
//! Records of any source go through [`flannel_plan::ServiceTable`], which says what the node should do; a [`Programmer`]
//! translates that for its part of the kernel.

mod cost;
mod counts;
mod host;
mod ipvs;
mod memory;
mod mode;
mod nftables;
mod node;
mod programmer;
mod records;
mod report;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use flannel_plan::{FrontendChanges, HealthCheck, ServiceFacts, ServiceNode, ServiceTable};
use flannel_telemetry::ServiceCheck;

pub use cost::Cost;
pub use host::{Conntrack, HostSettings};
use ipvs::IpvsProgrammer;
pub use ipvs::{DRAINS, leftovers};
pub use mode::{ServiceMode, programmer};
use nftables::NftProgrammer;
pub use node::{server_addresses, service_node};
pub use programmer::{Programmer, Scope, Status, View};
use records::RecordMemory;
pub use records::{CONFIG, Record};

/// Programs Services, pass by pass. It remembers records that were good, and what stands in the kernel.
pub struct Services {
    memory: RecordMemory,
    table: ServiceTable,
    programmer: Box<dyn Programmer>,
    /// Changes that the programmer has not carried out; `None` while all must be looked at.
    due: Option<FrontendChanges>,
    audit: bool,
    /// A look at everything left memory that nobody needs.
    swollen: bool,
}

impl Services {
    /// Nothing is known yet; what a former process left in the kernel is adopted by the first pass.
    pub fn new(programmer: Box<dyn Programmer>) -> Self {
        Self {
            memory: RecordMemory::default(),
            table: ServiceTable::new(ServiceFacts::default()),
            programmer,
            due: None,
            audit: false,
            swollen: false,
        }
    }

    /// Whether somebody else changed what was written, as far as the kernel tells. Never blocks.
    pub fn disturbed(&mut self) -> bool {
        self.programmer.disturbed()
    }

    /// The next pass looks at what others may have done.
    pub fn verify(&mut self) {
        self.audit = true;
    }

    /// When a pass is due at the latest, even if nothing changes.
    pub fn wake(&self) -> Option<Duration> {
        self.programmer.wake()
    }

    /// A record came or changed.
    pub fn put(&mut self, record: Record) {
        self.memory.put(record, &mut self.table);
    }

    /// The record that its source calls `name` is gone.
    pub fn gone(&mut self, name: &str) {
        self.memory.gone(name, &mut self.table);
    }

    /// Where load balancers ask for endpoints of this node, and what to answer, as of the last pass.
    pub fn health_checks(&self, programmed: bool) -> BTreeMap<SocketAddr, ServiceCheck> {
        let frontends = self.table.frontends();
        let check = |check: &HealthCheck| ServiceCheck {
            namespace: check.service.namespace().to_owned(),
            name: check.service.name().to_owned(),
            local_endpoints: check.local_endpoints,
            programmed,
        };
        let addresses = || frontends.node_addresses.iter().filter(|ip| !ip.is_loopback());
        let at = |(port, asked): (&u16, &HealthCheck)| {
            let (port, answer) = (*port, check(asked));
            addresses().map(move |ip| (SocketAddr::new(*ip, port), answer.clone()))
        };
        frontends.health_checks.iter().flat_map(at).collect()
    }

    /// Brings the kernel to what the records ask for. They must be complete: what is absent is removed.
    ///
    /// Without a configured service CIDR nothing is touched, except for what an earlier configuration left. A config that
    /// cannot be read leaves everything as it is.
    pub fn pass(&mut self, node: &ServiceNode) -> Status {
        let mut status = Status::default();
        let mut node = node.clone();
        if let Err(error) = node::add_kernel_addresses(&mut node) {
            status.fail(&error);
            return status;
        }
        status.rejects.extend(self.memory.faults());
        if self.memory.is_usable() {
            self.programme(node, &mut status);
        }
        status.tidy();
        status
    }

    /// Works out what the records of so far ask for. Of the kernel only that is touched which takes nothing away.
    pub fn prepare(&mut self, mut node: ServiceNode) {
        if node::add_kernel_addresses(&mut node).is_ok() && self.memory.is_usable() {
            self.refresh(node);
            self.programmer.prepare(&View {
                frontends: self.table.frontends(),
                node: &self.table.facts().node,
            });
        }
    }

    fn refresh(&mut self, node: ServiceNode) {
        self.table.set_node(node);
        let changes = self.table.refresh();
        if let Some(due) = &mut self.due {
            due.merge(changes);
        }
    }

    fn programme(&mut self, node: ServiceNode, status: &mut Status) {
        self.refresh(node);
        let notes = self.table.notes().into_iter().map(|n| (n.subject, n.text));
        status.rejects.extend(notes);
        let view = View {
            frontends: self.table.frontends(),
            node: &self.table.facts().node,
        };
        let due = self.due.take();
        let scope = due.as_ref().map_or(Scope::All, Scope::Changed);
        self.programmer.programme(&view, scope, status);
        if std::mem::take(&mut self.audit) && due.is_some() && status.failed.is_empty() {
            self.programmer.programme(&view, Scope::Audit, status);
            // not by the pass that left it, for which Services wait
            if std::mem::take(&mut self.swollen) {
                memory::give_back();
            }
        }
        self.swollen |= due.is_none();
        if status.failed.is_empty() {
            self.due = Some(FrontendChanges::default());
        } else {
            tracing::debug!(mode = self.programmer.name(), "the next pass looks at everything");
        }
    }
}
