//! The addresses of etcd's members, as operators write them.

use std::fmt;

/// One address: `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub https: bool,
    authority: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

impl Address {
    /// `tls` tells whether a TLS file was given: then an address without a scheme is https, and http is refused.
    pub(crate) fn parse(text: &str, tls: bool) -> Result<Self, String> {
        let bad = |problem: &str| {
            format!(
                "etcd endpoint {:?} {problem}; expected a form like http://127.0.0.1:2379",
                without_user(text)
            )
        };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let https = match scheme.as_deref() {
            Some("https") => true,
            Some("http") if tls => {
                return Err(format!(
                    "etcd endpoint {:?} is not encrypted, but TLS files are given \
                     (--etcd-cafile, --etcd-certfile, --etcd-keyfile); write https:// or leave the files out",
                    without_user(text)
                ));
            }
            Some("http") => false,
            Some(_) => return Err(bad("has a scheme other than http and https")),
            None => tls,
        };
        let authority = rest.trim_end_matches('/');
        if authority.contains('@') {
            return Err(bad(
                "holds a user name; use --etcd-username and --etcd-password instead",
            ));
        }
        if !is_authority(authority) {
            return Err(bad("is not host:port"));
        }
        Ok(Self {
            https,
            authority: authority.to_owned(),
        })
    }

    /// Whether it is this host: then nobody is on the way.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host();
        match host.parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// The name that the server's certificate must bear; an IPv6 address stands without its brackets.
    pub(crate) fn host(&self) -> &str {
        match self.authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
            Some((host, _)) => host,
            None => self.authority.split(':').next().unwrap_or(&self.authority),
        }
    }
}

/// An address may hold a password by mistake; it is not repeated.
fn without_user(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, host)| host)
}

fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or("none"))),
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let v6 = text.starts_with('[');
    let host_fits = match v6 {
        true => host.parse::<std::net::Ipv6Addr>().is_ok(),
        false => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_operators_write() {
        for (text, tls, shown, host) in [
            (
                "http://127.0.0.1:2379",
                false,
                "http://127.0.0.1:2379",
                "127.0.0.1",
            ),
            (
                "https://etcd-1.example:2379/",
                true,
                "https://etcd-1.example:2379",
                "etcd-1.example",
            ),
            ("10.0.0.1:2379", false, "http://10.0.0.1:2379", "10.0.0.1"),
            ("10.0.0.1:2379", true, "https://10.0.0.1:2379", "10.0.0.1"),
            (
                "HTTPS://[fd00::1]:2379",
                false,
                "https://[fd00::1]:2379",
                "fd00::1",
            ),
            ("etcd", false, "http://etcd", "etcd"),
        ] {
            let address = Address::parse(text, tls).unwrap();
            assert_eq!(
                (address.to_string().as_str(), address.host()),
                (shown, host),
                "{text}"
            );
        }
    }

    #[test]
    fn others_are_refused_with_the_text_but_never_a_password() {
        for bad in [
            "",
            "http://",
            "unix:///run/etcd",
            "http://a:b:c",
            "http://a:0",
            "http://a:99999",
            "http://a/b",
            "[::1",
            "[x]:1",
            "[::1]1",
            "a b:1",
        ] {
            assert!(Address::parse(bad, false).is_err(), "{bad}");
        }
        let error = Address::parse("http://u:hunter2@a:1", false).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        let error = Address::parse("http://a:1", true).unwrap_err();
        assert!(error.contains("https://"), "{error}");
    }
}
