//! What passes over the Services did, in the log.

use crate::rejects::RejectLog;
use crate::said::Said;
use crate::services::Status;

/// Says what a pass did.
#[derive(Default)]
pub(super) struct StatusLog {
    rejects: RejectLog,
    failures: Said,
}

impl StatusLog {
    /// Says what is new.
    pub(super) fn tell(&mut self, status: &Status, revision: u64) {
        self.rejects.update(
            "service record",
            "is not, or not wholly, programmed",
            status.rejects.iter().cloned(),
        );
        if status.added + status.removed > 0 {
            tracing::info!(
                added = status.added,
                removed = status.removed,
                unchanged = status.unchanged,
                revision,
                "virtual servers are programmed"
            );
        }
        let text = status.failed.join("; ");
        if text.is_empty() {
            self.failures.clear();
        } else if self.failures.is_news(&text) {
            tracing::error!("{text}; trying again");
        }
    }
}
