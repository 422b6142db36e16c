//! The Kubernetes API as a source of Services: lists and watches Services, EndpointSlices, ServiceCIDRs and the own Node, and
//! turns each object into the record that etcd would hold for it.
//!
//! [`Client`] reaches one API server with the credentials of a kubeconfig or of the pod; [`follow`](follow()) gives the
//! [`Event`]s of one [`Resource`] for ever. Objects are read one at a time as they arrive and only what a node needs of
//! them is kept, so memory follows the number of Services and endpoints and not the size of their JSON.

mod access;
mod backoff;
mod client;
mod error;
mod follow;
mod list;
mod object;
mod resource;
mod split;
mod watch;

#[cfg(feature = "fixture")]
pub mod fixture;

pub use access::{Access, AccessError, KubeOptions};
pub use client::{Client, Patience};
pub use error::ApiError;
pub use follow::{Event, LostReason, follow};
pub use object::{Content, NodeObject, Object, ObjectName};
pub use resource::Resource;
