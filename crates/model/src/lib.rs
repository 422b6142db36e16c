//! The nouns of the overlay and their wire formats.
//!
//! Nothing here does I/O, reads a clock or knows a kernel: a value of this crate is a fact that was checked
//! when it was made. Formats follow flannel byte for byte, because a node of ours and a node of flannel share
//! one etcd.

mod backoff;
mod config;
mod config_error;
mod families;
mod ip_subnet;
mod ipip;
mod json;
mod lease_key;
mod lease_value;
mod mac;
mod node_id;
mod node_status;
mod offered;
mod options;
mod pool;
mod prefix;
mod service_access;
mod service_config;
mod service_fields;
mod service_key;
mod service_manifest;
mod service_record;
mod service_scheduler;
mod service_slice;
mod service_spec;
mod service_status;
mod service_virtual;
mod subnet;
mod subnet_env;
mod text;
mod udp;
mod used_note;
mod vxlan;
mod wireguard;
mod wireguard_key;

pub use backoff::Backoff;
pub use config::{Asked, BackendConfig, BackendSettings, NetworkConfig};
pub use config_error::{ConfigErrors, FieldError};
pub use families::{Families, IpFamily};
pub use ip_subnet::{IpSubnet, IpSubnetError};
pub use ipip::IpipOptions;
pub use lease_key::{LeaseKey, LeaseKeyError};
pub use lease_value::{LeaseValue, LeaseValueError, MAX_LEASE_VALUE};
pub use mac::{Mac, MacError};
pub use node_id::{NodeId, NodeIdError};
pub use node_status::{NodeReport, UdpPeerReport, UdpReport};
pub use offered::offered;
pub use pool::{Ipv4Pool, Ipv6Pool, Pool};
pub use prefix::EtcdPrefix;
pub use service_access::read_service;
pub use service_config::{
    DRAIN_TIMEOUT, NodePortAddresses, NodePortAddressesError, NodePortRange, NodePortRangeError,
    ServicesConfig,
};
pub use service_fields::{MAX_SERVICE_VALUE, ServiceFieldError, ServiceValueError};
pub use service_key::{ServiceKey, ServiceKeyError, ServiceName};
pub use service_manifest::{ManifestError, ManifestErrors, manifests_to_records};
pub use service_record::ServiceRecord;
pub use service_scheduler::{Scheduler, SchedulerError, SchedulerFlags, SchedulerFlagsError};
pub use service_slice::{EndpointSlice, EndpointState, ServiceEndpoint, SliceEndpoint, SlicePort};
pub use service_spec::{ServicePort, ServiceSpec, ServiceType, TrafficPolicy, is_host_address};
pub use service_status::{
    EndpointStatus, Explanation, FrontendStatus, NodeServices, ServicesReport, StatusNote, Traffic,
    UnusedEndpoint,
};
pub use service_virtual::{ServerKey, ServiceProtocol, ServiceProtocolError, VirtualAddress};
pub use subnet::{Ipv4Subnet, Ipv6Subnet, Subnet, SubnetError};
pub use subnet_env::{SubnetEnv, SubnetEnvError};
pub use udp::{UdpLeaseData, UdpOptions};
pub use used_note::UsedNote;
pub use vxlan::{VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, VxlanLeaseData, VxlanOptions};
pub use wireguard::{WIREGUARD_OVERHEAD, WireguardLeaseData, WireguardMode, WireguardOptions};
pub use wireguard_key::{WireguardKeyError, WireguardPublicKey, WireguardSecret};
