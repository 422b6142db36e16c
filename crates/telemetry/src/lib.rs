//! How the daemon says how it is: logs, health endpoints, the service manager.

mod health;
mod logs;
mod manager;

pub use health::{Health, ServeError, serve};
pub use logs::init_logs;
pub use manager::{notify_ready, notify_reloading, notify_status, notify_stopping};
