//! What every programmer of Services is given, and what it tells.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use flannel_netlink::NetlinkError;
use flannel_plan::{FrontendChanges, FrontendKey, Frontends, ServiceNode};

use super::counts::{FrontendCounts, Wanted};

use crate::said::chain;

/// Failures that are told one by one; of the rest only the number.
const TOLD_FAILURES: usize = 20;

/// What the kernel should be brought to.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What clients talk to, and who answers.
    pub frontends: &'a Frontends,
    /// The node.
    pub node: &'a ServiceNode,
}

/// How much of it is to be looked at.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// Everything, against what stands in the kernel: at the start and after a failure.
    All,
    /// What others may have done to it since the last pass, which succeeded: now and then, and cheap.
    Audit,
    /// What changed since the last pass of this programmer, which succeeded.
    Changed(&'a FrontendChanges),
}

/// Writes Services into one part of the kernel. What stands there is adopted; nothing is flushed and nothing of others is touched.
pub trait Programmer: Send {
    /// Its name, as `--service-mode` has it.
    fn name(&self) -> &'static str;

    /// Brings the kernel to `view`. One failure stops nothing else; `status` holds what was done and what failed.
    fn programme(&mut self, view: &View<'_>, scope: Scope<'_>, status: &mut Status);

    /// Does what can be done before the records are complete: `view` is what they say so far, and nothing may be taken away.
    fn prepare(&mut self, _view: &View<'_>) {}

    /// What the kernel counts of the frontends that were programmed last.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn counts(&mut self, wanted: &Wanted) -> Result<BTreeMap<FrontendKey, FrontendCounts>, NetlinkError>;

    /// When it wants to be called at the latest, even if nothing changes.
    fn wake(&self) -> Option<Duration> {
        None
    }

    /// Whether somebody else changed what this programmer wrote, as far as the kernel tells: the next pass looks at everything
    /// then. Never blocks.
    fn disturbed(&mut self) -> bool {
        false
    }
}

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Kernel objects that were added or changed: virtual servers, real servers, routes.
    pub added: usize,
    /// Kernel objects that were removed.
    pub removed: usize,
    /// Kernel objects that were as they should be.
    pub unchanged: usize,
    /// What failed, with the kernel's reason.
    pub failed: Vec<String>,
    /// What is not, or not wholly, programmed: the key or Service, and why.
    pub rejects: Vec<(String, String)>,
}

impl Status {
    /// Files an error with its causes.
    pub fn fail(&mut self, error: &dyn Error) {
        self.failed.push(chain(error));
    }

    /// Gathers the reasons of one subject, in order, and keeps the list of failures readable.
    pub(super) fn tidy(&mut self) {
        let mut by_subject: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (subject, reason) in self.rejects.drain(..) {
            let reasons = by_subject.entry(subject).or_default();
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        self.rejects = by_subject
            .into_iter()
            .map(|(s, reasons)| (s, reasons.join("; ")))
            .collect();
        if self.failed.len() > TOLD_FAILURES {
            let more = self.failed.len() - TOLD_FAILURES;
            self.failed.truncate(TOLD_FAILURES);
            self.failed.push(format!("and {more} more"));
        }
    }
}
