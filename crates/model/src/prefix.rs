//! Where our keys live in etcd.

use std::fmt;

use crate::LeaseKey;

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

    /// Range of all leases, with its closing slash, so that a sibling such as `subnets-old` is no part of it.
    pub fn subnets(&self) -> String {
        self.join("subnets/")
    }

    /// Key of one lease.
    pub fn lease(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.subnets())
    }

    /// Range of everything about Services (docs/services.md).
    pub fn services(&self) -> String {
        self.join("services/v1/")
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
}
