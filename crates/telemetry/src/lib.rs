//! How the daemon says how it is: logs, health endpoints, metrics, the service manager, and the socket that flannelctl asks.

mod counter_family;
mod descriptors;
mod health;
mod logs;
mod manager;
mod metrics;
mod node_metrics;
mod service_checks;
mod service_loads;
mod service_metrics;
mod status_socket;

pub use counter_family::CounterFamily;
pub use descriptors::{forget_descriptors, store_descriptors, stored_descriptors};
pub use health::{Health, ServeError, serve};
pub use logs::init_logs;
pub use manager::{notify_ready, notify_reloading, notify_status, notify_stopping};
pub use metrics::{LoadRequest, Loads, Metrics};
pub use service_checks::{CheckError, ServiceCheck, ServiceChecks};
pub use service_loads::ServiceLoad;
pub use service_metrics::{PerFamily, ServiceMetrics};
pub use status_socket::{StatusRequest, StatusSocketError, serve_status};
