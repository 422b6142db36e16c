//! How the feed of Services stands: metrics, what is told in etcd, and answers to whoever asks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flannel_model::{NodeServices, ServiceKey, ServiceRecord, ServicesReport, StatusNote};
use flannel_telemetry::{LoadRequest, PerFamily, ServiceMetrics, StatusRequest};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::news::{News, Stamp};
use crate::services::{Services, Status};

/// Where the feed tells how it stands, and where it is asked.
#[derive(Debug)]
pub struct Audience {
    /// What it counts.
    pub metrics: ServiceMetrics,
    /// Scrapes that want the counters of the kernel.
    pub scrapes: mpsc::Receiver<LoadRequest>,
    /// Questions of flannelctl; none where there is no socket.
    pub questions: mpsc::Receiver<StatusRequest>,
}

/// Somebody wants to know.
#[derive(Debug)]
pub(super) enum Ask {
    Scrape(LoadRequest),
    Question(StatusRequest),
}

impl Audience {
    /// The next question; waits for ever where nobody can ask.
    pub(super) async fn next(&mut self) -> Ask {
        tokio::select! {
            Some(request) = self.scrapes.recv() => Ask::Scrape(request),
            Some(request) = self.questions.recv() => Ask::Question(request),
            else => std::future::pending().await,
        }
    }
}

/// What is known of the feed itself.
pub(super) struct Account {
    node: String,
    metrics: ServiceMetrics,
    summary: watch::Sender<NodeServices>,
    notes: Vec<StatusNote>,
    /// Revision of the source up to which changes were taken.
    seen: u64,
    /// Causes of changes that no pass has carried out, in milliseconds since 1970, each with the families that it is about.
    triggers: Vec<(i64, PerFamily<bool>)>,
    /// When changes were heard of that no pass has carried out.
    heard: Vec<Instant>,
}

/// Changes of one burst.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Burst {
    services: PerFamily<u64>,
    endpoints: PerFamily<u64>,
}

impl Burst {
    /// Counts a piece of news.
    pub(super) fn add(&mut self, news: &News) {
        let name = match news {
            News::Put(record, _) => match &record.content {
                Ok((ServiceKey::Config, _)) => return,
                Ok((ServiceKey::Spec(_), _)) => "spec/",
                Ok((ServiceKey::Slice { .. } | ServiceKey::Endpoint { .. }, _)) => "endpoints/",
                Err(_) => record.name.as_str(),
            },
            News::Gone(name, _) => name.as_str(),
            News::Complete | News::Zone(_) | News::Lost(_) | News::Resumed => return,
        };
        let counts = match name {
            name if name.starts_with("spec/") || name.starts_with("Service ") => &mut self.services,
            name if name == crate::services::CONFIG || name.starts_with("ServiceCIDR ") => return,
            _ => &mut self.endpoints,
        };
        let families = families_of(news);
        counts.ipv4 += u64::from(families.ipv4);
        counts.ipv6 += u64::from(families.ipv6);
    }
}

/// The families that a change is about: both where it does not say.
pub(super) fn families_of(news: &News) -> PerFamily<bool> {
    let (holds_v4, holds_v6) = match news {
        News::Put(record, _) => match &record.content {
            Ok((_, ServiceRecord::Spec(spec))) => (spec.has_family(true), spec.has_family(false)),
            Ok((_, ServiceRecord::Slice(slice))) => {
                let has = |ipv4| slice.endpoints.iter().any(|e| e.address.is_ipv4() == ipv4);
                (has(true), has(false))
            }
            Ok((key, _)) => families_of_key(key),
            Err(_) => (true, true),
        },
        News::Gone(name, _) => ServiceKey::parse(name).map_or((true, true), |key| families_of_key(&key)),
        News::Complete | News::Zone(_) | News::Lost(_) | News::Resumed => (false, false),
    };
    match (holds_v4, holds_v6) {
        // a slice without endpoints
        (false, false) => PerFamily::both(true),
        (ipv4, ipv6) => PerFamily { ipv4, ipv6 },
    }
}

fn families_of_key(key: &ServiceKey) -> (bool, bool) {
    match key {
        ServiceKey::Endpoint { address, .. } => (address.is_ipv4(), address.is_ipv6()),
        ServiceKey::Config | ServiceKey::Spec(_) | ServiceKey::Slice { .. } => (true, true),
    }
}

impl Account {
    pub(super) fn new(node: String, source: &str, metrics: ServiceMetrics) -> Self {
        let summary = NodeServices {
            source: source.to_owned(),
            mode: "auto".to_owned(),
            ..NodeServices::default()
        };
        Self {
            node,
            metrics,
            summary: watch::Sender::new(summary),
            notes: Vec::new(),
            seen: 0,
            triggers: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// The summary as it changes.
    pub(super) fn summary(&self) -> watch::Receiver<NodeServices> {
        self.summary.subscribe()
    }

    /// Revision of the source up to which changes were taken.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// A change came. What was there before this process is no news to be measured.
    pub(super) fn changed(&mut self, stamp: Stamp, families: PerFamily<bool>, is_news: bool) {
        self.seen = self.seen.max(stamp.revision);
        if is_news {
            self.triggers.extend(stamp.triggered.map(|when| (when, families)));
            self.heard.extend(stamp.heard);
        }
    }

    pub(super) fn queued(&self, burst: Burst) {
        self.metrics.queued(burst.endpoints, burst.services);
    }

    /// Whether the source can be followed, or why not.
    pub(super) fn followed(&self, lost: Option<String>) {
        self.metrics.follows(lost.is_none());
        self.summary.send_if_modified(|summary| {
            let changed = summary.lost != lost;
            summary.lost = lost;
            changed
        });
    }

    /// A pass ended.
    pub(super) fn passed(&mut self, services: &Services, status: &Status, took: Duration) {
        let succeeded = status.failed.is_empty();
        self.metrics.pass(services.families(), took, succeeded);
        let revision = match succeeded {
            true => self.seen,
            false => self.summary.borrow().revision,
        };
        let frontends = services.frontends();
        self.metrics.shows(revision, frontends, status.rejects.len());
        let rejects = status.rejects.iter();
        self.notes = rejects
            .map(|(subject, text)| StatusNote {
                subject: subject.clone(),
                text: text.clone(),
            })
            .collect();
        self.summary.send_if_modified(|summary| {
            let now = NodeServices {
                source: std::mem::take(&mut summary.source),
                mode: services.mode().to_owned(),
                revision,
                frontends,
                problems: status.rejects.len(),
                failed: status.failed.clone(),
                lost: summary.lost.take(),
            };
            let before = std::mem::replace(summary, now);
            before.mode != summary.mode
                || before.revision != summary.revision
                || before.frontends != summary.frontends
                || before.problems != summary.problems
                || before.failed != summary.failed
        });
        if succeeded {
            self.measure();
        }
    }

    /// How long it took from the causes of changes, and from hearing of them, to the kernel.
    fn measure(&mut self) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        for (trigger, families) in self.triggers.drain(..) {
            // A cause in the future is the doing of a clock that is wrong.
            let latency = u128::try_from(trigger)
                .ok()
                .and_then(|trigger| now.checked_sub(trigger));
            if let Some(millis) = latency.and_then(|millis| u64::try_from(millis).ok()) {
                self.metrics.programmed(families, Duration::from_millis(millis));
            }
        }
        for heard in self.heard.drain(..) {
            self.metrics.carried_out(heard.elapsed());
        }
    }

    /// Answers a question. Whoever asked may have given up.
    pub(super) fn answer(&self, services: &mut Services, ask: Ask) {
        let summary = self.summary.borrow().clone();
        match ask {
            Ask::Scrape(answer) => drop(answer.send(services.loads())),
            Ask::Question(StatusRequest::Services(answer)) => {
                let report = ServicesReport {
                    node: self.node.clone(),
                    summary,
                    notes: self.notes.clone(),
                    services: services.report(),
                };
                drop(answer.send(report));
            }
            Ask::Question(StatusRequest::Explain(at, protocol, answer)) => {
                let mut explanation = services.explain(at, protocol);
                explanation.node.clone_from(&self.node);
                explanation.summary = summary;
                drop(answer.send(explanation));
            }
        }
    }
}

/// Whether a record says anything that is worth a line in etcd: a node that has no Services at all stays silent.
pub(super) fn is_in_use(summary: &NodeServices) -> bool {
    summary.frontends + summary.problems > 0 || !summary.failed.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service_feed::etcd_record;

    fn put(name: &str, value: &[u8]) -> News {
        News::Put(Box::new(etcd_record(name, value, 1)), Stamp::default())
    }

    #[test]
    fn changes_are_counted_by_what_they_change() {
        let mut burst = Burst::default();
        for news in [
            put(
                "spec/shop/web",
                br#"{"clusterIP":"10.96.0.1","ports":[{"port":80}]}"#,
            ),
            put("spec/shop/bad", b"{"),
            put("endpoints/shop/web/-/10.5.1.2:80", b"{}"),
            put("config", b"{}"),
            News::Gone("Service shop/web".to_owned(), Stamp::default()),
            News::Gone("EndpointSlice shop/web-1".to_owned(), Stamp::default()),
            News::Gone("ServiceCIDR a".to_owned(), Stamp::default()),
            News::Resumed,
        ] {
            burst.add(&news);
        }
        // what says nothing of its family counts for both
        let counts = |ipv4, ipv6| PerFamily { ipv4, ipv6 };
        assert_eq!((burst.services, burst.endpoints), (counts(3, 2), counts(2, 1)));
    }
}
