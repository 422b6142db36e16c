//! How to reach etcd.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::endpoint::Address;

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

/// Where a password comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// It was given as it is.
    Text(Secret),
    /// It stands in a file, which is read at each new connection.
    File(PathBuf),
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
    pub password: Option<Password>,
    /// Whether plain http may go to another host. There, anybody on the way can read and change what is sent.
    pub insecure: bool,
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

    /// Everything that is wrong with the endpoints, one sentence each; empty when they can be used.
    pub fn endpoint_problems(&self) -> Vec<String> {
        self.addresses().err().unwrap_or_default()
    }

    pub(crate) fn addresses(&self) -> Result<Vec<Address>, Vec<String>> {
        let tls = self.ca_file.is_some() || self.cert_file.is_some() || self.key_file.is_some();
        let mut addresses = Vec::new();
        let mut problems = Vec::new();
        for text in Self::endpoint_list(&self.endpoints.join(",")) {
            match Address::parse(&text, tls) {
                Ok(address) => addresses.push(address),
                Err(problem) => problems.push(problem),
            }
        }
        if addresses.is_empty() && problems.is_empty() {
            problems.push("no etcd endpoint is given".to_owned());
        }
        let open: Vec<String> = addresses
            .iter()
            .filter(|address| !address.https && !address.is_loopback())
            .map(ToString::to_string)
            .collect();
        if !open.is_empty() && !self.insecure {
            problems.push(in_the_clear(&open));
        }
        if problems.is_empty() {
            Ok(addresses)
        } else {
            Err(problems)
        }
    }
}

fn in_the_clear(endpoints: &[String]) -> String {
    format!(
        "etcd at {} would be reached by plain http over the network: whoever is on the way can read the password and change \
         every lease and route. Use https:// (with --etcd-cafile, unless the system trusts etcd's authority), or accept it \
         with --etcd-insecure (FLANNELD_ETCD_INSECURE=true), which is what flannel does without asking",
        endpoints.join(", ")
    )
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
            insecure: false,
        }
    }
}

/// The address in an endpoint such as `https://[fd00::1]:2379`; `None` where it has a name.
pub fn endpoint_address(endpoint: &str) -> Option<IpAddr> {
    let authority = endpoint.trim().rsplit("://").next()?.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_password() {
        let options = EtcdOptions {
            username: Some("flannel".to_owned()),
            password: Some(Password::Text(Secret::new("hunter2"))),
            ..EtcdOptions::default()
        };
        let shown = format!("{options:?} {options:#?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("(redacted)"),
            "{shown}"
        );
    }

    #[test]
    fn plain_http_leaves_the_host_only_with_leave() {
        let options = |endpoints: &str, insecure| EtcdOptions {
            endpoints: vec![endpoints.to_owned()],
            insecure,
            ..EtcdOptions::default()
        };
        for fine in [
            "http://127.0.0.1:2379,http://127.9.9.9:2379",
            "localhost:2379",
            "http://LocalHost:2379",
            "http://[::1]:2379",
            "https://10.0.0.1:2379",
        ] {
            assert_eq!(
                options(fine, false).endpoint_problems(),
                [] as [&str; 0],
                "{fine}"
            );
        }
        for open in [
            "http://10.0.0.1:2379",
            "10.0.0.1:2379",
            "http://[fd00::1]:2379",
            "http://localhost.example:2379",
        ] {
            let problems = options(&format!("http://127.0.0.1:2379,{open}"), false).endpoint_problems();
            assert_eq!(problems.len(), 1, "{open}");
            assert!(
                problems[0].contains("--etcd-insecure") && !problems[0].contains("127.0.0.1"),
                "{problems:?}"
            );
            assert_eq!(options(open, true).endpoint_problems(), [] as [&str; 0], "{open}");
        }
        // A TLS file makes an address without a scheme https.
        let with_ca = EtcdOptions {
            ca_file: Some("/etc/ca.pem".into()),
            ..options("10.0.0.1:2379", false)
        };
        assert_eq!(with_ca.endpoint_problems(), [] as [&str; 0]);
    }

    #[test]
    fn every_bad_endpoint_is_told() {
        let options = EtcdOptions {
            endpoints: vec!["ftp://a:1,http://10.0.0.1:2379,http://b:99999".to_owned()],
            ..EtcdOptions::default()
        };
        assert_eq!(options.endpoint_problems().len(), 3);
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
