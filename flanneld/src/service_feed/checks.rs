//! Health checks of load balancers, kept as the table of Services says.

use flannel_telemetry::ServiceChecks;

use crate::said::{Said, chain};
use crate::services::Services;

/// Who answers them, and what was said of those that nobody can.
#[derive(Default)]
pub(super) struct Checks {
    servers: ServiceChecks,
    said: Said,
}

impl Checks {
    /// After a pass; `programmed` says whether it succeeded.
    pub(super) fn update(&mut self, services: &Services, programmed: bool) {
        let errors = self.servers.set(services.health_checks(programmed));
        let text: Vec<String> = errors.iter().map(|error| chain(error)).collect();
        let text = text.join("; ");
        if text.is_empty() {
            self.said.clear();
        } else if self.said.is_news(&text) {
            tracing::error!("{text}; trying again with the next pass");
        }
    }
}
