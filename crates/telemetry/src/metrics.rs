//! Metrics in the text format that Prometheus reads (OpenMetrics 1.0).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flannel_model::NodeReport;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::counter_family::{Asked, CounterFamily};
use crate::node_metrics::NodeCollector;
use crate::service_loads::{LoadCollector, ServiceLoad};
use crate::service_metrics::{PerFamily, ServiceMetrics};

/// What a scrape is served as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Longest that a scrape waits for counters of the kernel; it gives the others without them then.
const LOADS_WITHIN: Duration = Duration::from_secs(2);
/// Scrapes that wait for counters at the same time.
const SCRAPES: usize = 4;

/// What a scrape asks of the programmer of Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loads {
    /// The counters of the kernel.
    pub services: Vec<ServiceLoad>,
    /// Services with an internal policy Local and no endpoint on this node.
    pub without_local_internal: PerFamily<usize>,
    /// Services with an external policy Local and no endpoint on this node.
    pub without_local_external: PerFamily<usize>,
}

/// Somebody wants the counters of the kernel, and where they go.
pub type LoadRequest = oneshot::Sender<Loads>;

/// All metrics of the daemon. Clones share one state.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    loads: LoadCollector,
    requests: mpsc::Sender<LoadRequest>,
    /// What the Services' programmer counts.
    pub services: ServiceMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// The metrics at zero, and the requests for counters of the kernel that scrapes will make. They may be left unanswered.
    pub fn new() -> (Self, mpsc::Receiver<LoadRequest>) {
        let mut registry = Registry::default();
        let services = ServiceMetrics::register(&mut registry);
        let loads = LoadCollector::default();
        registry.register_collector(Box::new(loads.clone()));
        let (requests, receiver) = mpsc::channel(SCRAPES);
        let metrics = Self {
            registry: Arc::new(Mutex::new(registry)),
            loads,
            requests,
            services,
        };
        (metrics, receiver)
    }

    /// Adds counters that `source` tells at each scrape; it may tell none yet.
    pub fn ask(&self, source: impl Fn() -> Vec<CounterFamily> + Send + Sync + 'static) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(Asked(source)));
    }

    /// Adds how the node stands.
    pub fn node(&self, told: watch::Receiver<Option<NodeReport>>) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(NodeCollector(told)));
    }

    /// The text of a scrape.
    pub async fn text(&self) -> String {
        let loads = self.fresh_loads().await.unwrap_or_default();
        self.services
            .without_local(loads.without_local_internal, loads.without_local_external);
        self.loads.set(loads.services);
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = encode(&mut text, &registry) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        text
    }

    async fn fresh_loads(&self) -> Option<Loads> {
        let (answer, wait) = oneshot::channel();
        self.requests.try_send(answer).ok()?;
        timeout(LOADS_WITHIN, wait).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::{Traffic, UdpReport};

    #[tokio::test]
    async fn counters_of_others_are_asked_at_each_scrape() {
        let (metrics, _requests) = Metrics::new();
        let asked = std::sync::atomic::AtomicU64::new(0);
        metrics.ask(move || {
            vec![CounterFamily {
                name: "flannel_test",
                help: "Times",
                label: "of",
                values: vec![("asking", asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed))],
            }]
        });
        for times in 0..2 {
            let text = metrics.text().await;
            let line = format!("flannel_test_total{{of=\"asking\"}} {times}");
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }

    #[tokio::test]
    async fn the_node_says_how_it_stands() {
        let (metrics, _requests) = Metrics::new();
        let (report, told) = watch::channel(None);
        metrics.node(told);
        assert!(!metrics.text().await.contains("flannel_ready"));
        let stands = NodeReport {
            state: "ready".to_owned(),
            peers: 3,
            records_skipped: 1000,
            fights: vec!["somebody".to_owned()],
            udp: Some(UdpReport {
                listen: "192.0.2.1:8285".parse().unwrap(),
                queues: 2,
                offloads: [("tso".to_owned(), true), ("uso".to_owned(), false)].into(),
                sent_packets: 0,
                received_packets: 0,
                dropped: Default::default(),
                peers: Vec::new(),
            }),
            ..NodeReport::default()
        };
        report.send_replace(Some(stands));
        let text = metrics.text().await;
        for line in [
            "flannel_ready 1",
            "flannel_peers 3",
            "flannel_records_skipped 1000",
            "flannel_kernel_writes_failed 0",
            "flannel_fights 1",
            "flannel_udp_queues 2",
            "flannel_udp_offloads{offload=\"tso\"} 1",
            "flannel_udp_offloads{offload=\"uso\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    fn load(bytes_out: Option<u64>) -> ServiceLoad {
        ServiceLoad {
            namespace: "shop".to_owned(),
            service: "web".to_owned(),
            ipv4: true,
            address: "10.96.0.10".to_owned(),
            protocol: "TCP".to_owned(),
            port: 80,
            traffic: Traffic {
                connections: 7,
                bytes_out,
                ..Traffic::default()
            },
        }
    }

    #[tokio::test]
    async fn names_are_those_of_kube_proxy() {
        let (metrics, mut requests) = Metrics::new();
        let ipv4 = |ipv4| PerFamily {
            ipv4,
            ..PerFamily::default()
        };
        metrics.services.queued(ipv4(2), PerFamily::both(1));
        metrics
            .services
            .pass(PerFamily::both(true), Duration::from_millis(3), true);
        metrics.services.queued(ipv4(1), ipv4(0));
        let of_ipv4 = PerFamily {
            ipv4: true,
            ipv6: false,
        };
        metrics.services.programmed(of_ipv4, Duration::from_millis(800));
        let loads = Loads {
            services: vec![load(Some(900))],
            without_local_external: PerFamily { ipv4: 2, ipv6: 0 },
            ..Loads::default()
        };
        let answering = async {
            let request = requests.recv().await.unwrap();
            request.send(loads).unwrap();
        };
        let (text, ()) = tokio::join!(metrics.text(), answering);
        let labels = r#"{namespace="shop",service="web",ip_family="IPv4",address="10.96.0.10",protocol="TCP",port="80"}"#;
        for line in [
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.004",ip_family="IPv4"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="1.0",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family="IPv4"} 3"#,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_service_changes_pending{ip_family="IPv6"} 0"#,
            r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external",ip_family="IPv4"} 2"#,
            &format!("flannel_service_connections_total{labels} 7"),
            &format!("flannel_service_sent_bytes_total{labels} 900"),
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("flannel_service_received_bytes_total{"), "{text}");
        assert!(
            text.contains(r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 1"#),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_programmer_holds_up_no_scrape() {
        let (metrics, requests) = Metrics::new();
        metrics.loads.set(vec![load(None)]);
        let text = metrics.text().await;
        assert!(
            text.ends_with("# EOF\n") && !text.contains("flannel_service_connections_total{"),
            "{text}"
        );
        drop(requests);
        assert!(metrics.text().await.ends_with("# EOF\n"));
    }
}
