//! From facts to changes of the kernel: what the overlay and the Services of a node should be, and how to get there.
//!
//! Nothing here does I/O. [`choose_underlay`] picks the interface, [`desired_overlay`] says what should be there,
//! [`diff_overlay`] compares it with what is there and gives [`Op`]s: plain data that can be printed, tested and applied.
//! Services go the same way.

mod diff;
#[cfg(test)]
mod diff_tests;
mod op;
mod service;
mod underlay;
#[cfg(test)]
mod underlay_tests;
mod vxlan;
mod vxlan_peers;

pub use diff::{OUR_PROTOCOL, ObservedLink, ObservedOverlay, ObservedRoute, ObservedVxlan, diff_overlay};
pub use op::Op;
pub use service::nft;
pub use service::{
    Backend, Backends, Counted, EndpointFacts, Frontend, FrontendChanges, FrontendKey, FrontendKind,
    Frontends, HealthCheck, NodePort, RealServer, ServiceFacts, ServiceNode, ServiceNote, ServiceOp,
    ServiceTable, SpecFact, VirtualServer, VirtualServers, diff_services, frontends, is_inside,
    virtual_servers,
};
pub use underlay::{
    CanReach, DefaultRoute, Interface, InterfaceAddress, Underlay, UnderlayError, UnderlayOptions,
    choose_underlay,
};
pub use vxlan::{
    Carrier, DesiredOverlay, Device, OverlayFacts, Peer, VxlanLink, desired_overlay, overlay_mtu,
};
pub use vxlan_peers::{VxlanReject, vxlan_peers};
