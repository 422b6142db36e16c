//! How the node stands, as metrics.

use std::fmt;

use flannel_model::{NodeReport, UdpReport};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

/// What the daemon last said of itself; nothing before it said anything.
pub(crate) struct NodeCollector(pub watch::Receiver<Option<NodeReport>>);

/// A number that stands in every report: its name, what it is, and where it stands.
type Told = (&'static str, &'static str, fn(&NodeReport) -> u64);

const TOLD: [Told; 5] = [
    ("flannel_ready", "1 while the node is ready", |report| {
        u64::from(report.state == "ready")
    }),
    ("flannel_peers", "Other nodes that are programmed", |report| {
        count(report.peers)
    }),
    (
        "flannel_records_skipped",
        "Records in etcd that are skipped; the log names each with its reason",
        |report| count(report.records_skipped),
    ),
    (
        "flannel_kernel_writes_failed",
        "Writes to the kernel that failed in the last pass; they are tried again",
        |report| count(report.writes_failed),
    ),
    (
        "flannel_fights",
        "Objects in the kernel that somebody undoes again and again",
        |report| count(report.fights.len()),
    ),
];

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn encode_udp(encoder: &mut DescriptorEncoder<'_>, udp: &UdpReport) -> Result<(), fmt::Error> {
    let kind = ConstGauge::<u64>::TYPE;
    let (name, help) = ("flannel_udp_queues", "Queues of flannel0, a thread each");
    ConstGauge::new(count(udp.queues)).encode(encoder.encode_descriptor(name, help, None, kind)?)?;
    let (name, help) = ("flannel_udp_offloads", "1 for what the udp backend has in use");
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (offload, used) in &udp.offloads {
        let gauge = ConstGauge::new(u64::from(*used));
        gauge.encode(family.encode_family(&[("offload", offload.as_str())])?)?;
    }
    Ok(())
}

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCollector")
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let report = self.0.borrow();
        let Some(report) = report.as_ref() else {
            return Ok(());
        };
        for (name, help, number) in TOLD {
            let gauge = ConstGauge::new(number(report));
            let kind = ConstGauge::<u64>::TYPE;
            gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        match &report.udp {
            Some(udp) => encode_udp(&mut encoder, udp),
            None => Ok(()),
        }
    }
}
