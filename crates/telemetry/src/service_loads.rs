//! Counters of single Services, read from the kernel when somebody asks.

use std::sync::{Arc, Mutex, PoisonError};

use flannel_model::Traffic;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;

/// One port of a Service at one of its addresses, with what it carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLoad {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Whether it is of IPv4: a node port has one of each family.
    pub ipv4: bool,
    /// The address, or `nodePort`.
    pub address: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The port.
    pub port: u16,
    /// What the kernel counted.
    pub traffic: Traffic,
}

impl ServiceLoad {
    fn labels(&self) -> [(&'static str, String); 6] {
        [
            ("namespace", self.namespace.clone()),
            ("service", self.service.clone()),
            ("ip_family", if self.ipv4 { "IPv4" } else { "IPv6" }.to_owned()),
            ("address", self.address.clone()),
            ("protocol", self.protocol.clone()),
            ("port", self.port.to_string()),
        ]
    }
}

/// The last loads, as metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadCollector(Arc<Mutex<Vec<ServiceLoad>>>);

impl LoadCollector {
    pub(crate) fn set(&self, loads: Vec<ServiceLoad>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = loads;
    }
}

/// A counter without directions: its name, what it counts, and where that stands.
type Counted = (&'static str, &'static str, fn(&Traffic) -> Option<u64>);

const COUNTED: [Counted; 5] = [
    ("connections", "Connections that clients began", |t| {
        Some(t.connections)
    }),
    ("received_packets", "Packets from clients", |t| t.packets_in),
    ("sent_packets", "Packets to clients", |t| t.packets_out),
    ("received_bytes", "Bytes from clients", |t| t.bytes_in),
    ("sent_bytes", "Bytes to clients", |t| t.bytes_out),
];

impl Collector for LoadCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let loads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, value) in COUNTED {
            let name = format!("flannel_service_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, ConstCounter::<u64>::TYPE)?;
            for load in loads.iter() {
                if let Some(value) = value(&load.traffic) {
                    ConstCounter::new(value).encode(metric.encode_family(&load.labels())?)?;
                }
            }
        }
        Ok(())
    }
}
