//! Where our keys live in etcd.

use std::fmt;

use crate::{Families, LeaseKey};

/// The key prefix of `--etcd-prefix`, cleaned as flannel cleans it: duplicate and trailing slashes vanish, `.` and `..`
/// are resolved, a missing leading slash stays missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdPrefix(String);

impl EtcdPrefix {
    /// Cleans `text`.
    pub fn new(text: &str) -> Self {
        let rooted = text.starts_with('/');
        let mut parts: Vec<&str> = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.last().is_some_and(|p| *p != "..") => {
                    parts.pop();
                }
                ".." if rooted => {}
                other => parts.push(other),
            }
        }
        let joined = parts.join("/");
        Self(if rooted { format!("/{joined}") } else { joined })
    }

    /// Key of the network config.
    pub fn config(&self) -> String {
        self.join("config")
    }

    /// Range of the leases of a network that has IPv4, with its closing slash, so that a sibling such as `subnets-old` is no
    /// part of it.
    pub fn subnets(&self) -> String {
        self.join("subnets/")
    }

    /// Range of the leases of a network with IPv6 alone. flannel has no key for one, and every key of another form that
    /// begins with `<prefix>/subnets` makes flannel forget all its peers, so ours stand apart.
    pub fn ipv6_subnets(&self) -> String {
        self.join("ipv6-subnets/")
    }

    /// Range of all leases of a network with these families.
    pub fn leases<A, B>(&self, families: &Families<A, B>) -> String {
        match families {
            Families::Ipv4(_) | Families::Dual(..) => self.subnets(),
            Families::Ipv6(_) => self.ipv6_subnets(),
        }
    }

    /// Key of one lease.
    pub fn lease(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.leases(key.subnets()))
    }

    /// Range of the notes about subnets that were in use ([`UsedNote`](crate::UsedNote)). No lease key: flannel does not read it.
    pub fn used(&self) -> String {
        self.join("used/")
    }

    /// The note about one lease's subnets.
    pub fn used_note(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.used())
    }

    /// Range of everything about Services (docs/services.md).
    pub fn services(&self) -> String {
        self.join("services/v1/")
    }

    /// Range of what nodes tell of their Services ([`NodeServices`](crate::NodeServices)), by their names. No node reads it, so
    /// that what one tells does not wake all others.
    pub fn service_nodes(&self) -> String {
        self.join("services/nodes/")
    }

    fn join(&self, rest: &str) -> String {
        match self.0.as_str() {
            "" => rest.to_owned(),
            "/" => format!("/{rest}"),
            prefix => format!("{prefix}/{rest}"),
        }
    }
}

impl fmt::Display for EtcdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_follows_path_rules() {
        for (given, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("//coreos.com//network/", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/../a", "/a/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(EtcdPrefix::new(given).config(), config, "{given}");
        }
    }

    #[test]
    fn only_keys_that_flannel_reads_begin_with_subnets() {
        let prefix = EtcdPrefix::new("/coreos.com/network");
        for (key, full) in [
            ("10.5.1.0-24", "/coreos.com/network/subnets/10.5.1.0-24"),
            (
                "10.5.1.0-24&fd00::-64",
                "/coreos.com/network/subnets/10.5.1.0-24&fd00::-64",
            ),
            ("fd00::-64", "/coreos.com/network/ipv6-subnets/fd00::-64"),
        ] {
            assert_eq!(prefix.lease(&key.parse().unwrap()), full);
        }
        for other in [
            prefix.config(),
            prefix.services(),
            prefix.ipv6_subnets(),
            prefix.used(),
        ] {
            assert!(!other.starts_with("/coreos.com/network/subnets"), "{other}");
        }
    }
}
