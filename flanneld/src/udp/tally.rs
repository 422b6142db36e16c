//! What the data path counted: for `/metrics`, and in the log where packets were dropped.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flannel_telemetry::{CounterFamily, Metrics};
use flannel_tun::counters::{DropReason, Tally, Totals};

/// Drops are told at most this often.
const PAUSE: Duration = Duration::from_secs(60);

/// The counters of the engine that runs, whichever it is.
#[derive(Debug, Clone, Default)]
pub struct Current(Arc<Mutex<Option<Tally>>>);

impl Current {
    /// From now on those of another engine; a restarted engine begins at 0, as counters may.
    pub fn set(&self, tally: Tally) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tally);
    }

    fn totals(&self) -> Option<Totals> {
        let tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tally.as_ref().map(Tally::totals)
    }

    /// Shows them at `/metrics`.
    pub fn publish(&self, metrics: &Metrics) {
        let current = self.clone();
        metrics.ask(move || current.totals().map_or_else(Vec::new, |totals| families(&totals)));
    }
}

fn families(totals: &Totals) -> Vec<CounterFamily> {
    let flow = |name, help, sent, received| CounterFamily {
        name,
        help,
        label: "direction",
        values: vec![("sent", sent), ("received", received)],
    };
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (reason.name(), totals.dropped(*reason)));
    vec![
        flow(
            "flannel_udp_packets",
            "Inner packets that the udp backend forwarded",
            totals.sent_packets,
            totals.received_packets,
        ),
        flow(
            "flannel_udp_bytes",
            "Their bytes",
            totals.sent_bytes,
            totals.received_bytes,
        ),
        CounterFamily {
            name: "flannel_udp_drops",
            help: "Packets that the udp backend did not forward",
            label: "reason",
            values: drops.collect(),
        },
    ]
}

/// Tells of drops in the log, now and then.
#[derive(Debug, Default)]
pub struct DropLog {
    told: Totals,
    last: Option<Instant>,
}

impl DropLog {
    /// Logs what was dropped since it was last told.
    pub fn look(&mut self, counted: &Current, now: Instant) {
        let news = counted.totals().and_then(|totals| self.news(totals, now));
        if let Some(news) = news {
            tracing::warn!("the udp data path dropped packets: {news}");
        }
    }

    fn news(&mut self, totals: Totals, now: Instant) -> Option<String> {
        if self.last.is_some_and(|last| now < last + PAUSE) {
            return None;
        }
        let new = |reason: &DropReason| {
            let more = totals.dropped(*reason).saturating_sub(self.told.dropped(*reason));
            (more > 0).then(|| format!("{} {more}", reason.name()))
        };
        let parts: Vec<String> = DropReason::ALL.iter().filter_map(new).collect();
        self.told = totals;
        if parts.is_empty() {
            return None;
        }
        self.last = Some(now);
        Some(parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use flannel_tun::counters::Counters;

    use super::*;

    fn totals(unknown: u64, malformed: u64) -> Totals {
        let counters = Counters::default();
        counters.sent(3, 300);
        counters.dropped(DropReason::UnknownSender, unknown);
        counters.dropped(DropReason::Malformed, malformed);
        Tally::new(vec![Arc::new(counters)]).totals()
    }

    #[test]
    fn drops_are_told_once_a_minute_and_only_what_is_new() {
        let mut log = DropLog::default();
        let start = Instant::now();
        let mut at = |seconds, totals| log.news(totals, start + Duration::from_secs(seconds));
        assert_eq!(at(0, totals(0, 0)), None);
        assert_eq!(at(1, totals(2, 0)).unwrap(), "unknown_sender 2");
        assert_eq!(at(2, totals(9, 1)), None);
        assert_eq!(at(62, totals(10, 1)).unwrap(), "unknown_sender 8, malformed 1");
        assert_eq!(at(200, totals(10, 1)), None);
    }

    #[test]
    fn every_reason_is_a_series() {
        let told = families(&totals(7, 0));
        assert_eq!(told[0].values, [("sent", 3), ("received", 0)]);
        assert_eq!(told[1].values, [("sent", 300), ("received", 0)]);
        assert_eq!(told[2].values.len(), DropReason::ALL.len());
        assert!(told[2].values.contains(&("unknown_sender", 7)));
    }
}
