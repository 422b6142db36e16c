//! Services: from facts of any origin to one neutral value, which programmers translate for their part of the kernel.
//!
//! [`ServiceTable`] takes records in and keeps [`Frontends`] up to date; [`frontends`] does the same at once. Which endpoints
//! answer whom (readiness, traffic policies, topology hints) is settled here, and so is which addresses may be delivered and
//! which of two rivals has one. A programmer only translates.

mod build;
mod counted;
mod endpoints;
mod explain;
mod facts;
mod frontend;
mod ipvs;
mod ipvs_diff;
mod ipvs_marks;
pub mod nft;
mod node;
mod ranges;
mod real_servers;
mod status;
mod table;
#[cfg(test)]
mod tests;

pub use counted::Counted;
pub use explain::{Explained, Unused};
pub use facts::{EndpointFacts, ServiceFacts, SpecFact};
pub use frontend::{
    Backend, Backends, Frontend, FrontendKey, FrontendKind, Frontends, HealthCheck, NodePort, ServiceNote,
};
pub use ipvs::{Surroundings, VirtualServer, VirtualServers, drains, servers_of};
pub use ipvs_diff::{ServiceOp, Settings, carry_out, diff_server};
pub use ipvs_marks::{KEEP_SOURCE, MARK_MASK, MASQUERADE, Marks};
pub use node::ServiceNode;
pub use real_servers::{RealServer, RealServers};
pub use status::frontend_status;
pub use table::{FrontendChanges, ServiceTable, frontends};
