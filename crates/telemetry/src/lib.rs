//! How the daemon says how it is: logs, health endpoints, the service manager.

mod health;
mod logs;
mod manager;
mod service_checks;

pub use health::{Health, ServeError, serve};
pub use logs::init_logs;
pub use manager::{notify_ready, notify_reloading, notify_status, notify_stopping};
pub use service_checks::{CheckError, ServiceCheck, ServiceChecks};
