//! Counters that somebody else keeps, asked for at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;

/// Counters that differ in one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterFamily {
    /// The name, without `_total`.
    pub name: &'static str,
    /// What is counted.
    pub help: &'static str,
    /// Name of the label.
    pub label: &'static str,
    /// The label's values and what was counted.
    pub values: Vec<(&'static str, u64)>,
}

/// Asks whoever counts.
pub(crate) struct Asked<F>(pub F);

impl<F> fmt::Debug for Asked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

impl<F: Fn() -> Vec<CounterFamily> + Send + Sync + 'static> Collector for Asked<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in (self.0)() {
            let kind = ConstCounter::<u64>::TYPE;
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (value, count) in family.values {
                ConstCounter::new(count).encode(metric.encode_family(&[(family.label, value)])?)?;
            }
        }
        Ok(())
    }
}
