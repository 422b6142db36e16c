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
/// By traffic policy: `internal` or `external`.
type ByPolicy = Family<[(&'static str, &'static str); 1], Gauge>;

/// The metrics. Clones share one state.
#[derive(Debug, Clone)]
pub struct ServiceMetrics {
    duration: Histogram,
    latency: Histogram,
    heard: Histogram,
    last_pass: Timestamp,
    last_queued: Timestamp,
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
    total: Counter,
    pending: Gauge,
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
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            latency: Histogram::new(latency_buckets()),
            heard: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            last_pass: Timestamp::default(),
            last_queued: Timestamp::default(),
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
    pub fn queued(&self, endpoints: u64, services: u64) {
        self.last_queued.set(now());
        for (changes, count) in [(&self.endpoints, endpoints), (&self.services, services)] {
            changes.total.inc_by(count);
            changes.pending.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A pass ended; where it succeeded, all changes are carried out.
    pub fn pass(&self, took: Duration, succeeded: bool) {
        self.duration.observe(took.as_secs_f64());
        if succeeded {
            self.last_pass.set(now());
            self.endpoints.pending.set(0);
            self.services.pending.set(0);
        } else {
            self.failures.inc();
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

    /// How many Services have the traffic policy Local and no endpoint on this node.
    pub(crate) fn without_local(&self, internal: usize, external: usize) {
        for (policy, count) in [("internal", internal), ("external", external)] {
            let gauge = self.without_local.get_or_create(&[("traffic_policy", policy)]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A change of endpoints reached the kernel, so long after it happened.
    pub fn programmed(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
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
