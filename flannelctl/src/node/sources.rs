//! Where what is shown comes from.

use std::fmt::Write as _;

use serde::Serialize;

use super::Asked;
use crate::output::printable;

/// Where facts come from, and which are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sources {
    /// Config and leases.
    pub etcd: String,
    /// Which lease is this node's.
    pub own_lease: String,
    /// Devices, routes and entries.
    pub kernel: String,
    /// What only a running flanneld knows, and what is taken for it here.
    pub unknown: Vec<String>,
}

impl Sources {
    /// Of a view that was read just now.
    pub fn new<S>(asked: Asked<'_, S>, own_lease: String, config_revision: i64) -> Self {
        Self {
            etcd: format!("{} (config of revision {config_revision})", asked.prefix),
            own_lease,
            kernel: "this host's, asked just now; flanneld was not".to_owned(),
            unknown: Vec::new(),
        }
    }

    /// Something that is not known; said once.
    pub fn add(&mut self, unknown: &str) {
        if !self.unknown.iter().any(|known| known == unknown) {
            self.unknown.push(unknown.to_owned());
        }
    }

    /// For people.
    pub fn lines(&self) -> String {
        let mut text = String::from("\nFrom:\n");
        for (what, from) in [
            ("config and leases", &self.etcd),
            ("own lease", &self.own_lease),
            ("devices and routes", &self.kernel),
        ] {
            let _ = writeln!(text, "  {what:<18}  {}", printable(from));
        }
        for unknown in &self.unknown {
            let _ = writeln!(text, "  {:<18}  {}", "not known", printable(unknown));
        }
        text
    }
}
