//! What etcd was asked, by its own count.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::etcd::ADDRESS;
use crate::http;

/// Calls that were begun; a stream is one call.
const STARTED: &str = "grpc_server_started_total{";
/// Messages that came in; for a call with one answer that is the number of calls.
const RECEIVED: &str = "grpc_server_msg_received_total{";

/// Calls and messages that the lab's etcd received, by method.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    calls: BTreeMap<String, u64>,
    messages: BTreeMap<String, u64>,
}

impl Asked {
    /// Up to now.
    pub fn read() -> Result<Self> {
        let (_, text) = http::get(&format!("{ADDRESS}:2379"), "/metrics")?;
        Ok(Self {
            calls: counts(&text, STARTED)?,
            messages: counts(&text, RECEIVED)?,
        })
    }

    /// Those after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            calls: difference(&self.calls, &earlier.calls),
            messages: difference(&self.messages, &earlier.messages),
        }
    }

    /// Calls of a method, such as `Range`.
    pub fn calls(&self, method: &str) -> u64 {
        self.calls.get(method).copied().unwrap_or_default()
    }

    /// Messages of a method.
    pub fn messages(&self, method: &str) -> u64 {
        self.messages.get(method).copied().unwrap_or_default()
    }

    /// Messages of all methods together.
    pub fn all_messages(&self) -> u64 {
        self.messages.values().sum()
    }

    /// The methods that were asked for, in alphabetical order.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        self.messages.keys().map(String::as_str)
    }
}

fn difference(now: &BTreeMap<String, u64>, earlier: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let since = now.iter().map(|(method, count)| {
        let before = earlier.get(method).copied().unwrap_or_default();
        (method.clone(), count.saturating_sub(before))
    });
    since.filter(|(_, count)| *count > 0).collect()
}

fn counts(text: &str, metric: &str) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with(metric)) {
        let (method, value) = count(line).with_context(|| format!("etcd's metric {line:?}"))?;
        *counts.entry(method.to_owned()).or_insert(0) += value;
    }
    Ok(counts)
}

/// The method and the number of a line such as `metric{grpc_method="Range",grpc_type="unary"} 1.5e+06`.
fn count(line: &str) -> Option<(&str, u64)> {
    let method = line.split("grpc_method=\"").nth(1)?.split('"').next()?;
    let value: f64 = line.rsplit(' ').next()?.parse().ok()?;
    Some((method, value as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_one_method_are_added() {
        let text = "# HELP x\n\
                    grpc_server_started_total{grpc_method=\"Range\",grpc_service=\"a\",grpc_type=\"unary\"} 1.5e+06\n\
                    grpc_server_started_total{grpc_method=\"Range\",grpc_service=\"b\",grpc_type=\"unary\"} 2\n\
                    grpc_server_started_total{grpc_method=\"Watch\",grpc_type=\"bidi_stream\"} 0\n";
        let now = Asked {
            calls: counts(text, STARTED).unwrap(),
            messages: BTreeMap::new(),
        };
        assert_eq!((now.calls("Range"), now.calls("Watch")), (1_500_002, 0));
        let none = now.since(&now);
        assert_eq!((none.calls("Range"), none.calls.len()), (0, 0));
        assert!(counts("grpc_server_started_total{x} y", STARTED).is_err());
    }
}
