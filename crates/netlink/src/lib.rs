//! The kernel's network configuration over netlink.
//!
//! [`Conn`] carries serialised requests for any family, [`RouteConn`] typed ones for rtnetlink. Each kind of object
//! has its module with builder functions (`fn …(…) -> RouteRequest`, to be batched) and functions that ask:
//! [`link`], [`address`], [`route`], [`neighbour`], [`fdb`]; [`netns`] opens other network namespaces.
//!
//! Everything here is synchronous except the module `monitor`, which is behind a feature of that name because the
//! CNI plugin has no runtime.

pub mod address;
pub mod conn;
pub mod conntrack;
pub mod duplicate;
mod error;
mod family;
pub mod fdb;
#[cfg(feature = "generic")]
pub mod generic;
pub mod ipset;
pub mod link;
pub mod local_route;
#[cfg(feature = "monitor")]
pub mod monitor;
#[cfg(feature = "monitor")]
mod multicast;
pub mod neighbour;
pub mod netns;
pub mod nftables;
#[cfg(feature = "overlay")]
pub mod overlay;
pub mod pod;
pub mod route;
mod route_conn;
pub mod sysctl;
mod watch;
mod wire;

pub use conn::{Conn, Protocol, Reply, Request};
pub use error::{Failure, NetlinkError};
pub use flannel_model::IpFamily;
pub use netns::{Netns, NetnsError};
pub use route::OUR_PROTOCOL;
pub use route_conn::{RouteConn, RouteOutcome, RouteRequest};
