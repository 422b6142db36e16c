//! What the programmer of Services counts. Names are kube-proxy's where they mean the same (pkg/proxy/metrics/metrics.go).

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A point in time, in seconds since 1970.
type Timestamp = Gauge<f64, AtomicU64>;
/// One label: `ip_family`.
type OfFamily = [(&'static str, &'static str); 1];
/// By traffic policy, `internal` or `external`, and family.
type ByPolicy = Family<[(&'static str, &'static str); 2], Gauge>;
/// A histogram for each family.
type Histograms = Family<OfFamily, Histogram, fn() -> Histogram>;

/// What holds for one family or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerFamily<T> {
    /// Of IPv4.
    pub ipv4: T,
    /// Of IPv6.
    pub ipv6: T,
}

impl<T: Copy> PerFamily<T> {
    /// The same for both.
    pub fn both(value: T) -> Self {
        Self {
            ipv4: value,
            ipv6: value,
        }
    }

    /// Each with kube-proxy's label of its family.
    fn labelled(self) -> [(OfFamily, T); 2] {
        [(label(true), self.ipv4), (label(false), self.ipv6)]
    }
}

impl PerFamily<bool> {
    /// The labels of those that are true.
    fn labels(self) -> impl Iterator<Item = OfFamily> {
        self.labelled()
            .into_iter()
            .filter(|(_, is)| *is)
            .map(|(label, _)| label)
    }
}

fn label(ipv4: bool) -> OfFamily {
    [("ip_family", if ipv4 { "IPv4" } else { "IPv6" })]
}

/// The metrics. Clones share one state.
#[derive(Debug, Clone)]
pub struct ServiceMetrics {
    duration: Histograms,
    latency: Histograms,
    heard: Histogram,
    last_pass: Family<OfFamily, Timestamp>,
    last_queued: Family<OfFamily, Timestamp>,
    failures: Counter,
    endpoints: Changes,
    services: Changes,
    without_local: ByPolicy,
    frontends: Gauge,
    rejected: Gauge,
    followed: Gauge,
    revision: Gauge,
}

/// Changes of one kind of records.
#[derive(Debug, Clone, Default)]
struct Changes {
    total: Family<OfFamily, Counter>,
    pending: Family<OfFamily, Gauge>,
}

impl Changes {
    fn register(&self, registry: &mut Registry, kind: &str, what: &str) {
        let name = format!("sync_proxy_rules_{kind}_changes");
        registry.register(&name, format!("Changes of {what}"), self.total.clone());
        registry.register(
            format!("{name}_pending"),
            format!("Changes of {what} that no pass has carried out yet"),
            self.pending.clone(),
        );
    }
}

impl ServiceMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            latency: Family::new_with_constructor(|| Histogram::new(latency_buckets())),
            heard: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            last_pass: Family::default(),
            last_queued: Family::default(),
            failures: Counter::default(),
            endpoints: Changes::default(),
            services: Changes::default(),
            without_local: ByPolicy::default(),
            frontends: Gauge::default(),
            rejected: Gauge::default(),
            followed: Gauge::default(),
            revision: Gauge::default(),
        };
        metrics.register_proxy(registry.sub_registry_with_prefix("kubeproxy"));
        metrics.register_own(registry.sub_registry_with_prefix("flannel_services"));
        metrics
    }

    fn register_proxy(&self, registry: &mut Registry) {
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "Time that a pass took",
            self.duration.clone(),
        );
        registry.register(
            "network_programming_duration_seconds",
            "Time from the change of an endpoint, as its EndpointSlice tells it, to the kernel",
            self.latency.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When a pass succeeded last",
            self.last_pass.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a change came last",
            self.last_queued.clone(),
        );
        self.endpoints.register(registry, "endpoint", "endpoints");
        self.services.register(registry, "service", "Services");
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with the traffic policy Local and no endpoint on this node",
            self.without_local.clone(),
        );
    }

    fn register_own(&self, registry: &mut Registry) {
        registry.register(
            "change_duration_seconds",
            "Time from hearing of a change to the kernel",
            self.heard.clone(),
        );
        registry.register(
            "pass_failures",
            "Passes in which a write failed",
            self.failures.clone(),
        );
        registry.register(
            "frontends",
            "What clients can talk to: a port of a Service at one of its addresses",
            self.frontends.clone(),
        );
        registry.register(
            "rejected_records",
            "Records that are not, or not wholly, programmed",
            self.rejected.clone(),
        );
        registry.register(
            "source_followed",
            "1 while the source of Services can be followed",
            self.followed.clone(),
        );
        registry.register(
            "revision",
            "Revision of the source that the kernel shows",
            self.revision.clone(),
        );
    }

    /// Changes came, of endpoints and of Services.
    pub fn queued(&self, endpoints: PerFamily<u64>, services: PerFamily<u64>) {
        let now = now();
        for (changes, counts) in [(&self.endpoints, endpoints), (&self.services, services)] {
            for (label, count) in counts.labelled().into_iter().filter(|(_, count)| *count > 0) {
                self.last_queued.get_or_create(&label).set(now);
                changes.total.get_or_create(&label).inc_by(count);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                changes.pending.get_or_create(&label).inc_by(count);
            }
        }
    }

    /// A pass over the Services of these families ended; where it succeeded, all changes are carried out.
    pub fn pass(&self, families: PerFamily<bool>, took: Duration, succeeded: bool) {
        if !succeeded {
            self.failures.inc();
        }
        for label in families.labels() {
            self.duration.get_or_create(&label).observe(took.as_secs_f64());
            if succeeded {
                self.last_pass.get_or_create(&label).set(now());
            }
        }
        if succeeded {
            for label in PerFamily::both(true).labels() {
                self.endpoints.pending.get_or_create(&label).set(0);
                self.services.pending.get_or_create(&label).set(0);
            }
        }
    }

    /// The kernel shows this revision, so many frontends, and not these many records.
    pub fn shows(&self, revision: u64, frontends: usize, rejected: usize) {
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.frontends.set(i64::try_from(frontends).unwrap_or(i64::MAX));
        self.rejected.set(i64::try_from(rejected).unwrap_or(i64::MAX));
    }

    /// Whether the source can be followed.
    pub fn follows(&self, followed: bool) {
        self.followed.set(i64::from(followed));
    }

    /// How many Services have the traffic policy Local and no endpoint on this node, of each family.
    pub(crate) fn without_local(&self, internal: PerFamily<usize>, external: PerFamily<usize>) {
        for (policy, counts) in [("internal", internal), ("external", external)] {
            for ([family], count) in counts.labelled() {
                let labels = [("traffic_policy", policy), family];
                let gauge = self.without_local.get_or_create(&labels);
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// A change of endpoints of these families reached the kernel, so long after it happened.
    pub fn programmed(&self, families: PerFamily<bool>, latency: Duration) {
        for label in families.labels() {
            self.latency.get_or_create(&label).observe(latency.as_secs_f64());
        }
    }

    /// A change reached the kernel, so long after it was heard of.
    pub fn carried_out(&self, after: Duration) {
        self.heard.observe(after.as_secs_f64());
    }
}

/// kube-proxy's buckets, and some below its smallest one.
fn latency_buckets() -> impl Iterator<Item = f64> {
    let fine = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5].into_iter();
    let seconds = (1..60).map(f64::from);
    let fives = (60..120).step_by(5).map(f64::from);
    let halves = (120..=300).step_by(30).map(f64::from);
    fine.chain(seconds).chain(fives).chain(halves)
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
