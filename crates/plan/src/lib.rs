//! From facts to changes of the kernel: what the overlay and the Services of a node should be, and how to get there.
//!
//! Nothing here does I/O. [`choose_underlay`] picks the interface, a [`backend`] says what should be there, [`diff_overlay`] compares
//! it with what is there and gives [`Op`]s: plain data that can be printed, tested and applied. Services go the same way.

pub mod backend;
mod device;
mod diff;
mod exchange;
mod observed;
mod op;
mod overlay;
pub mod packet_filter;
mod service;
mod setting;
mod underlay;
mod underlay_follow;
#[cfg(test)]
mod underlay_tests;

pub use device::Device;
pub use diff::{
    Difference, DifferenceKind, Object, device_setting_ops, diff_overlay, differences, exchange_ops,
};
pub use exchange::Exchange;
pub use observed::{
    OUR_PROTOCOL, ObservedIpip, ObservedKind, ObservedLink, ObservedOverlay, ObservedRoute, ObservedVxlan,
    ObservedWireguard, ObservedWireguardPeer,
};
pub use op::{METRIC_OF_LAST_RESORT, Op};
pub use overlay::{
    Carrier, DesiredOverlay, IpipLink, LinkKind, Out, Sender, Tunnel, TunnelLink, VxlanLink, Way,
    WireguardPeer, WireguardTunnel,
};
/// Services through IPVS: frontends as virtual servers, and the changes that lead there.
pub mod ipvs {
    pub use crate::service::{
        KEEP_SOURCE, MARK_MASK, MASQUERADE, Marks, RealServer, RealServers, ServiceOp, Settings,
        Surroundings, VirtualServer, VirtualServers, carry_out, diff_server, drains, servers_of,
    };
}
pub use service::nft;
pub use service::{
    Backend, Backends, Counted, EndpointFacts, Explained, Frontend, FrontendChanges, FrontendKey,
    FrontendKind, Frontends, HealthCheck, NodePort, ServiceFacts, ServiceNode, ServiceNote, ServiceTable,
    SpecFact, Unused, frontend_status, frontends,
};
pub use setting::{Setting, setting_ops};
pub use underlay::{
    CanReach, DefaultRoute, Interface, InterfaceAddress, Underlay, UnderlayError, UnderlayOptions,
    choose_underlay,
};
pub use underlay_follow::{Followed, Host, PATIENCE, follow_underlay};
