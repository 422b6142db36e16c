//! How IPVS spreads connections: schedulers and their flags.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::service_fields::{Faults, Field, from_text};

/// Name of an IPVS scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheduler(&'static str);

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
    pub fn as_str(&self) -> &'static str {
        self.0
    }

    /// All that Linux has.
    pub fn all() -> impl Iterator<Item = Self> {
        SCHEDULERS.into_iter().map(Self)
    }
}

impl Default for Scheduler {
    /// Round robin.
    fn default() -> Self {
        Self("rr")
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for Scheduler {
    type Err = SchedulerError;

    fn from_str(text: &str) -> Result<Self, SchedulerError> {
        let known = SCHEDULERS.into_iter().find(|known| *known == text);
        known.map(Self).ok_or_else(|| SchedulerError(text.to_owned()))
    }
}

/// The scheduler named at `field`, if any.
pub(crate) fn read_scheduler(field: &Field<'_>, faults: &mut Faults) -> Option<Scheduler> {
    field.optional(faults, &format!("one of {}", SCHEDULERS.join(", ")), from_text)
}

/// `IP_VS_SVC_F_*` flags (linux/ip_vs.h) that a Service may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SchedulerFlags(u32);

/// Names of flags, the first of each number being the one that is printed. `flag-N` are ipvsadm's names for those whose
/// meaning depends on the scheduler.
const FLAGS: [(&str, u32); 8] = [
    ("one-packet", 0x04),
    ("flag-1", 0x08),
    ("sh-fallback", 0x08),
    ("mh-fallback", 0x08),
    ("flag-2", 0x10),
    ("sh-port", 0x10),
    ("mh-port", 0x10),
    ("flag-3", 0x20),
];

impl SchedulerFlags {
    /// Hash the source port, too (`IP_VS_SVC_F_SCHED_MH_PORT`), so that one client's connections spread.
    pub const HASH_PORT: Self = Self(0x10);

    /// The number for the kernel.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// What `scheduler` gets when nothing is said: `mh` would otherwise send all connections of a client to one real server.
    pub fn usual(scheduler: &Scheduler) -> Self {
        if scheduler.as_str() == "mh" {
            Self::HASH_PORT
        } else {
            Self::default()
        }
    }
}

impl fmt::Display for SchedulerFlags {
    /// Names joined by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0;
        let mut names = Vec::new();
        for (name, bit) in FLAGS {
            if left & bit != 0 {
                names.push(name);
                left &= !bit;
            }
        }
        f.write_str(&names.join(","))
    }
}

/// Why a text is no list of flags.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a flag of IPVS; expected {names}, joined by commas", names = flag_names())]
pub struct SchedulerFlagsError(String);

fn flag_names() -> String {
    FLAGS.map(|(name, _)| name).join(", ")
}

impl FromStr for SchedulerFlags {
    type Err = SchedulerFlagsError;

    /// Reads names joined by commas; an empty text is none.
    fn from_str(text: &str) -> Result<Self, SchedulerFlagsError> {
        let mut bits = 0;
        for name in text.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            let found = FLAGS.iter().find(|(known, _)| *known == name);
            bits |= found.ok_or_else(|| SchedulerFlagsError(name.to_owned()))?.1;
        }
        Ok(Self(bits))
    }
}

/// The flags at `field`: a text with names joined by commas, or a list of names.
pub(crate) fn read_flags(field: &Field<'_>, faults: &mut Faults) -> Option<SchedulerFlags> {
    let read = |value: &Value| match value {
        Value::Array(items) => {
            let names: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            names?.join(",").parse().ok()
        }
        other => from_text(other),
    };
    field.optional(faults, &format!("some of {}", flag_names()), read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_by_name_and_printed_with_ipvsadms() {
        let flags: SchedulerFlags = "sh-port, sh-fallback,one-packet".parse().unwrap();
        assert_eq!(flags.bits(), 0x1c);
        assert_eq!(flags.to_string(), "one-packet,flag-1,flag-2");
        assert_eq!(flags.to_string().parse(), Ok(flags));
        assert_eq!("".parse(), Ok(SchedulerFlags::default()));
        let error = "sh-prot".parse::<SchedulerFlags>().unwrap_err().to_string();
        assert!(
            error.contains("\"sh-prot\"") && error.contains("mh-port"),
            "{error}"
        );
    }

    #[test]
    fn only_maglev_hashes_ports_by_itself() {
        let usual = |name: &str| SchedulerFlags::usual(&name.parse().unwrap()).bits();
        assert_eq!((usual("mh"), usual("sh"), usual("rr")), (0x10, 0, 0));
    }
}
