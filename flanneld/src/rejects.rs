//! Saying which records are not used: each once, and again when it is over.

use std::collections::BTreeMap;

/// The rejects that were said.
#[derive(Debug, Default)]
pub struct RejectLog {
    known: BTreeMap<String, String>,
}

impl RejectLog {
    /// Compares with what was said before and logs the difference. `what` names the kind of record, `verdict` what becomes
    /// of it.
    pub fn update(&mut self, what: &str, verdict: &str, rejects: impl IntoIterator<Item = (String, String)>) {
        let now: BTreeMap<String, String> = rejects.into_iter().collect();
        for (key, reason) in &now {
            if self.known.get(key) != Some(reason) {
                tracing::warn!("{what} {key:?} {verdict}: {reason}");
            }
        }
        for key in self.known.keys().filter(|key| !now.contains_key(*key)) {
            tracing::info!("{what} {key:?} is no longer in the way");
        }
        self.known = now;
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }
}
