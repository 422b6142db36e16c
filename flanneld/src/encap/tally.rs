//! What the filter dropped: for `/metrics`, and in the log.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_netlink::nftables::{ENCAP_REASONS, Family, NftConn};
use flannel_telemetry::CounterFamily;
use tokio::time::Instant;

use super::TABLE;

/// Drops are told at most this often.
const PAUSE: Duration = Duration::from_secs(60);

/// Packets by the reason for which they were dropped, of both families.
pub(super) type Totals = BTreeMap<&'static str, u64>;

/// What the kernel counted; `None` where there is no filter.
pub(super) fn totals(conn: &mut NftConn) -> Option<Totals> {
    let mut totals = Totals::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let counted = conn.counters(family, TABLE).ok()?;
        for reason in ENCAP_REASONS {
            if let Some(packets) = counted.get(reason) {
                *totals.entry(reason).or_default() += packets;
            }
        }
    }
    (!totals.is_empty()).then_some(totals)
}

/// The counters as they are shown.
pub fn family() -> Option<CounterFamily> {
    let mut conn = NftConn::open().ok()?;
    Some(CounterFamily {
        name: "flannel_encap_drops",
        help: "Encapsulated packets that were not taken",
        label: "reason",
        values: totals(&mut conn)?.into_iter().collect(),
    })
}

/// Tells of drops in the log, now and then.
#[derive(Debug, Default)]
pub struct DropLog {
    told: Option<Totals>,
    last: Option<Instant>,
}

impl DropLog {
    /// Logs what was dropped since it was last told.
    pub(super) fn take(&mut self, totals: Totals, now: Instant) {
        if self.last.is_some_and(|last| now < last + PAUSE) {
            return;
        }
        if let Some(news) = self.news(totals, now) {
            tracing::warn!(
                "encapsulated packets were dropped, because no peer sends such: {news} (--encap-filter)"
            );
        }
    }

    /// What an earlier run counted is no news.
    fn news(&mut self, totals: Totals, now: Instant) -> Option<String> {
        let told = self.told.replace(totals.clone())?;
        let more = totals.iter().filter_map(|(reason, count)| {
            let new = count.saturating_sub(told.get(reason).copied().unwrap_or(0));
            (new > 0).then(|| format!("{reason} {new}"))
        });
        let more: Vec<String> = more.collect();
        if more.is_empty() {
            return None;
        }
        self.last = Some(now);
        Some(more.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let mut log = DropLog::default();
        let now = Instant::now();
        let totals = |foreign, outer| Totals::from([("foreign", foreign), ("outer_source", outer)]);
        assert_eq!(log.news(totals(5, 0), now), None);
        assert_eq!(log.news(totals(5, 0), now), None);
        assert_eq!(log.news(totals(7, 1), now).unwrap(), "foreign 2, outer_source 1");
        // A table that was made anew counts from the beginning.
        assert_eq!(log.news(totals(1, 0), now), None);
        assert_eq!(log.news(totals(2, 0), now).unwrap(), "foreign 1");
    }
}
