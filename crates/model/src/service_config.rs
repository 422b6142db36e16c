//! `services/v1/config`: what holds for all Services of the cluster.

use serde_json::Value;

use crate::service_fields::{Faults, Field, from_text, parse, port_number};
use crate::service_scheduler::{read_flags, read_scheduler};
use crate::{IpSubnet, Scheduler, SchedulerFlags, ServiceValueError};

/// Longest time that a connection may hold a real server that is on its way out, in seconds: five minutes, ten times the
/// grace that Kubernetes gives a pod unless told otherwise.
pub const DRAIN_TIMEOUT: u32 = 300;

/// Longest drain that can be configured, in seconds: a day.
const MAX_DRAIN: u64 = 86_400;

/// What a range of addresses looks like, in words.
pub(crate) const RANGE_FORM: &str = "a form like 10.96.0.0/16 or fd00:96::/112";

/// Ports that Services may take on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePortRange {
    /// The first.
    pub first: u16,
    /// The last; not below the first.
    pub last: u16,
}

impl Default for NodePortRange {
    /// Kubernetes' range.
    fn default() -> Self {
        Self {
            first: 30000,
            last: 32767,
        }
    }
}

impl NodePortRange {
    /// Whether `port` lies inside.
    pub fn holds(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl std::fmt::Display for NodePortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Why a text is no range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of ports; expected a form like 30000-32767")]
pub struct NodePortRangeError(String);

impl std::str::FromStr for NodePortRange {
    type Err = NodePortRangeError;

    fn from_str(text: &str) -> Result<Self, NodePortRangeError> {
        let read = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first != 0 && first <= last).then_some(Self { first, last })
        };
        read().ok_or_else(|| NodePortRangeError(text.to_owned()))
    }
}

/// Which addresses of a node answer on node ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// The one of each family that the node is known by.
    #[default]
    Primary,
    /// All but loopback.
    All,
    /// Those inside these ranges.
    Inside(Vec<IpSubnet>),
}

/// Why a text names no addresses of nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no addresses of nodes; expected primary, all, or ranges like 192.0.2.0/24 joined by commas"
)]
pub struct NodePortAddressesError(String);

impl std::str::FromStr for NodePortAddresses {
    type Err = NodePortAddressesError;

    fn from_str(text: &str) -> Result<Self, NodePortAddressesError> {
        let items: Vec<&str> = text.split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
        node_port_addresses(&items).ok_or_else(|| NodePortAddressesError(text.to_owned()))
    }
}

fn node_port_addresses(items: &[&str]) -> Option<NodePortAddresses> {
    match items {
        [] | ["primary"] => Some(NodePortAddresses::Primary),
        ["all"] => Some(NodePortAddresses::All),
        ranges => {
            let ranges: Result<Vec<IpSubnet>, _> = ranges.iter().map(|r| r.parse()).collect();
            ranges.ok().map(NodePortAddresses::Inside)
        }
    }
}

/// What holds for all Services of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicesConfig {
    /// Ranges of cluster addresses. Without any, nothing is programmed.
    pub cidrs: Vec<IpSubnet>,
    /// Ranges that external addresses and those of load balancers may come from. An address outside them is refused, so that
    /// nobody who may write a Service can take over traffic for any address he likes.
    pub external_cidrs: Vec<IpSubnet>,
    /// Ports that Services may take on every node.
    pub node_port_range: NodePortRange,
    /// Addresses of a node that answer on these ports.
    pub node_port_addresses: NodePortAddresses,
    /// Scheduler of every Service that names none.
    pub scheduler: Scheduler,
    /// Flags of every Service that names neither scheduler nor flags; the scheduler's usual ones when absent.
    pub scheduler_flags: Option<SchedulerFlags>,
    /// Longest time in seconds that a connection may hold a real server that is on its way out; 0 cuts it at once.
    pub drain_timeout: u32,
}

impl Default for ServicesConfig {
    fn default() -> Self {
        Self {
            cidrs: Vec::new(),
            external_cidrs: Vec::new(),
            node_port_range: NodePortRange::default(),
            node_port_addresses: NodePortAddresses::default(),
            scheduler: Scheduler::default(),
            scheduler_flags: None,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }
}

impl ServicesConfig {
    /// Reads the value of `services/v1/config`. Unknown fields are ignored.
    pub fn parse(value: &[u8]) -> Result<Self, ServiceValueError> {
        parse(value, |root, faults| Some(read(root, faults)))
    }
}

fn read(root: &Field<'_>, faults: &mut Faults) -> ServicesConfig {
    let drain = |v: &Value| {
        v.as_u64()
            .filter(|s| *s <= MAX_DRAIN)
            .and_then(|s| u32::try_from(s).ok())
    };
    ServicesConfig {
        cidrs: read_ranges(&root.get("cidrs"), faults),
        external_cidrs: read_ranges(&root.get("externalCidrs"), faults),
        node_port_range: root
            .get("nodePortRange")
            .optional(faults, "a form like \"30000-32767\"", node_port_range)
            .unwrap_or_default(),
        node_port_addresses: root
            .get("nodePortAddresses")
            .optional(
                faults,
                "[\"primary\"], [\"all\"] or a list of ranges like 192.0.2.0/24",
                read_node_port_addresses,
            )
            .unwrap_or_default(),
        scheduler: read_scheduler(&root.get("scheduler"), faults).unwrap_or_default(),
        scheduler_flags: read_flags(&root.get("schedulerFlags"), faults),
        drain_timeout: root
            .get("drainTimeout")
            .optional(faults, "seconds from 0 to 86400", drain)
            .unwrap_or(DRAIN_TIMEOUT),
    }
}

/// A list of ranges, in order and without doublets.
pub(crate) fn read_ranges(field: &Field<'_>, faults: &mut Faults) -> Vec<IpSubnet> {
    let items = field.items(faults);
    let ranges = items
        .iter()
        .filter_map(|c| c.required(faults, RANGE_FORM, from_text));
    let mut ranges: Vec<IpSubnet> = ranges.collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

/// The form `30000-32767`, or an object with `first` and `last`.
fn node_port_range(value: &Value) -> Option<NodePortRange> {
    if let Some(text) = value.as_str() {
        return text.parse().ok();
    }
    let (first, last) = (
        port_number(value.get("first")?)?,
        port_number(value.get("last")?)?,
    );
    (first <= last).then_some(NodePortRange { first, last })
}

fn read_node_port_addresses(value: &Value) -> Option<NodePortAddresses> {
    let items: Option<Vec<&str>> = value.as_array()?.iter().map(Value::as_str).collect();
    node_port_addresses(&items?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_all_faults_at_once() {
        let config =
            ServicesConfig::parse(br#"{"cidrs":["10.96.0.0/16","fd00:96::/112"],"later":1}"#).unwrap();
        assert_eq!(config.scheduler.as_str(), "rr");
        assert_eq!(config.cidrs.len(), 2);
        assert!(config.cidrs[0].holds("10.96.3.4".parse().unwrap()));
        assert_eq!(ServicesConfig::parse(b"{}").unwrap(), ServicesConfig::default());
        let error = ServicesConfig::parse(br#"{"cidrs":["10.96/16", 7],"scheduler":"best"}"#)
            .unwrap_err()
            .to_string();
        for part in [
            "cidrs[0]: \"10.96/16\"",
            "cidrs[1]: 7",
            "scheduler: \"best\"",
            "rr, wrr",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn node_ports_drain_and_outside_ranges() {
        let config = ServicesConfig::parse(
            br#"{"externalCidrs":["203.0.113.0/24"],"nodePortRange":"30000-30999","nodePortAddresses":["192.0.2.0/24","fd00::/64"],
             "scheduler":"sh","schedulerFlags":["sh-port"],"drainTimeout":30}"#,
        )
        .unwrap();
        assert!(config.node_port_range.holds(30999) && !config.node_port_range.holds(31000));
        assert!(matches!(&config.node_port_addresses, NodePortAddresses::Inside(r) if r.len() == 2));
        assert_eq!(
            (config.scheduler_flags.unwrap().bits(), config.drain_timeout),
            (0x10, 30)
        );
        let error = ServicesConfig::parse(
            br#"{"nodePortRange":"9-1","nodePortAddresses":["some"],"drainTimeout":-1,"schedulerFlags":"x"}"#,
        )
        .unwrap_err()
        .to_string();
        for field in [
            "nodePortRange: \"9-1\"",
            "nodePortAddresses: [\"some\"]",
            "drainTimeout: -1",
            "schedulerFlags: \"x\"",
        ] {
            assert!(error.contains(field), "{field}\n{error}");
        }
    }

    #[test]
    fn junk_is_refused() {
        assert!(matches!(
            ServicesConfig::parse(b"\xff{"),
            Err(ServiceValueError::NotJson(_))
        ));
        assert!(matches!(
            ServicesConfig::parse(&[b' '; 1 << 20]),
            Err(ServiceValueError::TooLong(_))
        ));
        assert!(
            ServicesConfig::parse(b"[]")
                .unwrap_err()
                .to_string()
                .contains("a JSON object")
        );
    }
}
