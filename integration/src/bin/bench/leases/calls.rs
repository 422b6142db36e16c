//! What etcd was asked, by its own count.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use flannel_lab::http;

use super::row;

/// Where etcd answers HTTP.
const METRICS: &str = "192.168.50.2:2379";
/// Messages that came in, by method: for a call with one answer that is the number of calls.
const RECEIVED: &str = "grpc_server_msg_received_total{";

/// Messages that etcd received, by method.
#[derive(Debug, Clone, Default)]
pub struct Calls(BTreeMap<String, f64>);

impl Calls {
    /// Up to now.
    pub fn read() -> Result<Self> {
        let (_, text) = http::get(METRICS, "/metrics")?;
        let mut calls = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with(RECEIVED)) {
            let method = line
                .split("grpc_method=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            let value = line
                .rsplit(' ')
                .next()
                .and_then(|value| value.parse::<f64>().ok());
            let (method, value) = method.zip(value).with_context(|| format!("metric {line:?}"))?;
            *calls.entry(method.to_owned()).or_insert(0.0) += value;
        }
        Ok(Self(calls))
    }

    /// Those after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let of = |method: &str| earlier.0.get(method).copied().unwrap_or_default();
        let rest = self
            .0
            .iter()
            .map(|(method, count)| (method.clone(), count - of(method)));
        Self(rest.filter(|(_, count)| *count > 0.0).collect())
    }

    /// All methods together.
    pub fn total(&self) -> f64 {
        self.0.values().sum()
    }

    /// Prints them shared among so many, beside what flannel needs by `flannel`.
    pub fn print(&self, what: &str, among: f64, flannel: f64) {
        let ours = self.total() / among;
        row(what, &format!("{ours:.1}"), &format!("{flannel:.1}"), "derived");
        for (method, count) in &self.0 {
            row(&format!("    {method}"), &format!("{:.2}", count / among), "", "");
        }
    }
}
