//! How to reach etcd.

use std::fmt;
use std::path::PathBuf;

/// A password. It shows itself to nobody but the code that sends it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; never print it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// Where etcd is and how to prove who we are. Names follow flannel's flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `http://host:port`, `https://host:port` or `host:port`; the last is https when a TLS file is given.
    pub endpoints: Vec<String>,
    /// PEM file with the authorities that may sign the server's certificate; the system's own when not set.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate; goes together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    pub key_file: Option<PathBuf>,
    /// Name for etcd's own authentication; goes together with `password`.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
}

impl EtcdOptions {
    /// The endpoints of flannel's comma-separated list; blanks around them and empty parts are dropped.
    pub fn endpoint_list(text: &str) -> Vec<String> {
        let trimmed = text.split(',').map(str::trim);
        trimmed
            .filter(|part| !part.is_empty())
            .map(ToOwned::to_owned)
            .collect()
    }
}

impl Default for EtcdOptions {
    /// flannel's default endpoints, no TLS, no authentication.
    fn default() -> Self {
        Self {
            endpoints: Self::endpoint_list("http://127.0.0.1:4001,http://127.0.0.1:2379"),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_password() {
        let options = EtcdOptions {
            username: Some("flannel".to_owned()),
            password: Some(Secret::new("hunter2")),
            ..EtcdOptions::default()
        };
        let shown = format!("{options:?} {options:#?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("(redacted)"),
            "{shown}"
        );
    }

    #[test]
    fn the_list_is_flannels() {
        assert_eq!(EtcdOptions::default().endpoints.len(), 2);
        assert_eq!(
            EtcdOptions::endpoint_list(" a:1 , ,https://b:2,"),
            ["a:1", "https://b:2"]
        );
    }
}
