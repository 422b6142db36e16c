//! Which collections of the API are read.

use std::fmt;

/// Leaves out what kube-proxy leaves out: headless Services and those of another service proxy.
const SELECTOR: &str =
    "labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name";

/// One collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// `v1` Services that have a virtual address.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlices.
    EndpointSlices,
    /// `networking.k8s.io/v1` ServiceCIDRs; API servers before 1.33 have none.
    ServiceCidrs,
    /// The one `v1` Node of this name.
    Node(String),
}

impl Resource {
    /// Path of the collection, and what narrows it down, ready for a URL.
    pub(crate) fn target(&self) -> (&'static str, String) {
        match self {
            Self::Services => ("/api/v1/services", SELECTOR.to_owned()),
            Self::EndpointSlices => ("/apis/discovery.k8s.io/v1/endpointslices", SELECTOR.to_owned()),
            Self::ServiceCidrs => ("/apis/networking.k8s.io/v1/servicecidrs", String::new()),
            // A node name is a DNS name: nothing in it needs escaping.
            Self::Node(name) => ("/api/v1/nodes", format!("fieldSelector=metadata.name%3D{name}")),
        }
    }

    /// Whether an API server without this collection is a sound one.
    pub(crate) fn may_be_absent(&self) -> bool {
        match self {
            Self::ServiceCidrs => true,
            Self::Services | Self::EndpointSlices | Self::Node(_) => false,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Services => f.write_str("Services"),
            Self::EndpointSlices => f.write_str("EndpointSlices"),
            Self::ServiceCidrs => f.write_str("ServiceCIDRs"),
            Self::Node(name) => write!(f, "Node {name}"),
        }
    }
}
