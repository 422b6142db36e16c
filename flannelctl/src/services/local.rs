//! Services as flanneld on this node tells of them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use flannel_model::ServicesReport;
use serde::Serialize;

use super::daemon;
use super::node_table::{self, Rates, node_line, troubles};
use crate::cli::ServicesArguments;
use crate::failure::Failure;
use crate::output::printable;

/// What flanneld on this node tells.
#[derive(Debug, Serialize)]
pub struct Local {
    #[serde(flatten)]
    report: ServicesReport,
    /// A second, in the order of `services`; only where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Vec<Option<Rates>>>,
}

impl Local {
    /// Asks for what flanneld on this node knows; nothing where it does not run, or where only root may ask.
    pub async fn ask(arguments: &ServicesArguments, filter: &Filter) -> Result<Option<Self>, Failure> {
        let socket = &arguments.socket.status_socket;
        let before = match daemon::services(socket).await {
            Ok(report) => report,
            Err(failure) if arguments.local => return Err(failure),
            Err(failure) => {
                failure.report();
                None
            }
        };
        let Some(mut report) = before else { return Ok(None) };
        let mut rates = None;
        if let Some(seconds) = arguments.rates {
            let between = Duration::from_secs(seconds);
            let start = Instant::now();
            tokio::time::sleep(between).await;
            let Some(after) = daemon::services(socket).await? else {
                return Err(no_daemon(arguments));
            };
            rates = Some(node_table::rates(&report, &after, start.elapsed()));
            report = after;
        }
        let fits: Vec<bool> = report
            .services
            .iter()
            .map(|s| filter.fits(&s.namespace, &s.name))
            .collect();
        let mut keep = fits.iter();
        report.services.retain(|_| *keep.next().unwrap_or(&true));
        if let Some(rates) = &mut rates {
            let mut keep = fits.iter();
            rates.retain(|_| *keep.next().unwrap_or(&true));
        }
        Ok(Some(Self { report, rates }))
    }

    /// Whether no Service is in it.
    pub fn is_empty(&self) -> bool {
        self.report.services.is_empty()
    }

    /// As a table for people.
    pub fn table(&self) -> String {
        let report = &self.report;
        let mut text = format!("On this {}:\n", node_line(&report.node, &report.summary));
        text += &node_table::table(&report.services, self.rates.as_deref());
        let notes = report
            .notes
            .iter()
            .map(|note| format!("{}: {}", note.subject, note.text));
        for (i, line) in notes.chain(troubles(&report.summary)).enumerate() {
            if i == 0 {
                text += "\nProblems:\n";
            }
            let _ = writeln!(text, "  {}", printable(&line));
        }
        text
    }
}

/// Nobody listens where flanneld should.
pub fn no_daemon(arguments: &ServicesArguments) -> Failure {
    Failure::Daemon(format!(
        "no flanneld listens at {}; is it running on this host?",
        arguments.socket.status_socket.display()
    ))
}

/// Which Services are shown.
pub struct Filter {
    namespace: Option<String>,
    name: Option<String>,
}

impl Filter {
    /// `NAMESPACE` or `NAMESPACE/NAME`; all without one.
    pub fn new(text: Option<&str>) -> Self {
        let (namespace, name) = match text.map(|t| t.split_once('/').map_or((t, ""), |pair| pair)) {
            None => (None, None),
            Some((namespace, name)) => (Some(namespace), Some(name).filter(|n| !n.is_empty())),
        };
        Self {
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        }
    }

    /// What is said when no Service is one of them: nothing, where all were asked for.
    pub fn found_none(&self) -> Result<(), Failure> {
        match (&self.namespace, &self.name) {
            (None, _) => Ok(()),
            (Some(namespace), Some(name)) => Err(Failure::NotFound(format!(
                "there is no Service {namespace}/{name}"
            ))),
            (Some(namespace), None) => Err(Failure::NotFound(format!(
                "the namespace {namespace} has no Service; one Service is asked for as NAMESPACE/NAME"
            ))),
        }
    }

    /// Whether a key of etcd, `.../services/v1/spec/NAMESPACE/NAME` and the like, is one of theirs.
    pub fn fits_key(&self, key: &str) -> bool {
        let behind = key.rsplit_once("/services/v1/").map_or(key, |(_, behind)| behind);
        let mut parts = behind.split('/').skip(1);
        self.fits(parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }

    /// Whether a Service is one of them.
    pub fn fits(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == namespace)
            && self.name.as_deref().is_none_or(|n| n == name)
    }
}
