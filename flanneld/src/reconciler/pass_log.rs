//! Saying what passes over the kernel did.

use flannel_plan::Op;

use crate::overlay::Pass;
use crate::said::Said;

/// What was said of passes. A failure that lasts is said once.
#[derive(Default)]
pub struct PassLog {
    failures: Said,
}

impl PassLog {
    /// Tells it.
    pub fn tell(&mut self, pass: &Pass) {
        let (of_peers, of_device): (Vec<&Op>, Vec<&Op>) = pass.done.iter().partition(|op| op.is_of_peer());
        for op in of_device {
            tracing::info!("{op}");
        }
        for op in of_peers.iter().filter(|op| matches!(op, Op::RoutePrepend { .. })) {
            tracing::warn!("{op}: somebody else has a route to the same destination; it stays, behind ours");
        }
        // With many peers at once, each of them is no news.
        for op in &of_peers {
            tracing::debug!("{op}");
        }
        if !of_peers.is_empty() {
            tracing::info!(
                peers = pass.report.peers,
                writes = of_peers.len(),
                "the peers are programmed"
            );
        }
        if pass.problems.is_empty() {
            if self.failures.clear() {
                tracing::info!("the kernel is as it should be again");
            }
            return;
        }
        let text = pass.problems.join("; ");
        if self.failures.is_news(&text) {
            for problem in &pass.problems {
                tracing::error!("{problem}; trying again");
            }
        }
    }
}
