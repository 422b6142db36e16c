//! `services/v1/config`: what holds for all Services of the cluster.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::service_fields::{Faults, Field, from_text, parse};
use crate::{Ipv4Subnet, Ipv6Subnet, ServiceValueError};

/// A range of addresses that Services take their virtual addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceCidr {
    /// An IPv4 range.
    V4(Ipv4Subnet),
    /// An IPv6 range.
    V6(Ipv6Subnet),
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a service CIDR; expected a form like 10.96.0.0/16 or fd00:96::/112")]
pub struct ServiceCidrError(String);

impl ServiceCidr {
    /// Whether `address` lies inside.
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(net), IpAddr::V4(address)) => net.holds(address),
            (Self::V6(net), IpAddr::V6(address)) => net.holds(address),
            _ => false,
        }
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(net) => net.fmt(f),
            Self::V6(net) => net.fmt(f),
        }
    }
}

impl FromStr for ServiceCidr {
    type Err = ServiceCidrError;

    /// Reads `address/length`; host bits are cleared.
    fn from_str(text: &str) -> Result<Self, ServiceCidrError> {
        let v4 = text.parse().map(Self::V4);
        v4.or_else(|_| text.parse().map(Self::V6))
            .map_err(|_| ServiceCidrError(text.to_owned()))
    }
}

/// Name of an IPVS scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scheduler(String);

/// The schedulers of Linux (net/netfilter/ipvs/ip_vs_*.c as of 6.1); the kernel loads `ip_vs_<name>` by itself.
const SCHEDULERS: [&str; 14] = [
    "rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos",
];

/// Why a text is no scheduler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPVS scheduler; expected one of {names}", names = SCHEDULERS.join(", "))]
pub struct SchedulerError(String);

impl Scheduler {
    /// The name as the kernel has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Scheduler {
    /// Round robin.
    fn default() -> Self {
        Self("rr".to_owned())
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Scheduler {
    type Err = SchedulerError;

    fn from_str(text: &str) -> Result<Self, SchedulerError> {
        if SCHEDULERS.contains(&text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SchedulerError(text.to_owned()))
        }
    }
}

/// The scheduler named at `field`, if any.
pub(crate) fn read_scheduler(field: &Field<'_>, faults: &mut Faults) -> Option<Scheduler> {
    field.optional(faults, &format!("one of {}", SCHEDULERS.join(", ")), from_text)
}

/// What holds for all Services of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicesConfig {
    /// Ranges of virtual addresses. Only virtual servers inside them are programmed, adopted or removed; without any, nothing is.
    pub cidrs: Vec<ServiceCidr>,
    /// Scheduler of every Service that names none.
    pub scheduler: Scheduler,
}

impl ServicesConfig {
    /// Reads the value of `services/v1/config`. Unknown fields are ignored.
    pub fn parse(value: &[u8]) -> Result<Self, ServiceValueError> {
        parse(value, |root, faults| {
            let cidrs = root.get("cidrs").items(faults);
            let cidrs = cidrs
                .iter()
                .filter_map(|c| c.required(faults, "a form like 10.96.0.0/16 or fd00:96::/112", from_text));
            let mut cidrs: Vec<ServiceCidr> = cidrs.collect();
            cidrs.sort();
            cidrs.dedup();
            let scheduler = read_scheduler(&root.get("scheduler"), faults).unwrap_or_default();
            Some(Self { cidrs, scheduler })
        })
    }
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
