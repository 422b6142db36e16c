//! Keys below `<prefix>/services/v1/`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::service_fields::ServiceFieldError;

/// Longest DNS label (RFC 1123 section 2.1), in bytes.
const LABEL: usize = 63;
/// Longest DNS name that Kubernetes gives an object, in bytes.
const SUBDOMAIN: usize = 253;
/// Stands in a key for a port without a name; a DNS label cannot be a lone dash.
const UNNAMED: &str = "-";

/// Namespace and name of a Service. Shared, because many things of one Service carry it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    namespace: Arc<str>,
    name: Arc<str>,
}

/// Why a text is no key of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceKeyError {
    /// The first part is none that we know.
    #[error(
        "{0:?} is not a key of Services; expected config, spec/NAMESPACE/NAME, slices/NAMESPACE/NAME/WRITER or endpoints/NAMESPACE/NAME/PORTNAME/IP:PORT"
    )]
    Unknown(String),
    /// A part of a known form is malformed.
    #[error("{part} {text:?} of a key of Services; expected {expected}")]
    Part {
        /// Which part.
        part: &'static str,
        /// What stands there.
        text: String,
        /// What should stand there.
        expected: &'static str,
    },
}

impl ServiceKeyError {
    /// The same of an object of Kubernetes, whose `field` gives the name.
    pub fn in_field(self, field: &str) -> ServiceFieldError {
        let (field, found, expected) = match self {
            Self::Unknown(text) => (field, text, "a name"),
            Self::Part {
                part: "namespace",
                text,
                expected,
            } => ("metadata.namespace", text, expected),
            Self::Part { text, expected, .. } => (field, text, expected),
        };
        let found = match found.as_str() {
            "" => "is missing".to_owned(),
            found => format!("{found:?} is refused"),
        };
        ServiceFieldError {
            field: field.to_owned(),
            found,
            expected: expected.to_owned(),
        }
    }
}

/// A key below `<prefix>/services/v1/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKey {
    /// `config`: what holds for the whole cluster.
    Config,
    /// `spec/NAMESPACE/NAME`: a Service.
    Spec(ServiceName),
    /// `slices/NAMESPACE/NAME/WRITER[-N]`: many endpoints of a Service.
    Slice {
        /// The Service.
        service: ServiceName,
        /// Name of the slice, made by its writer.
        slice: String,
    },
    /// `endpoints/NAMESPACE/NAME/PORTNAME/IP:PORT`: one endpoint, usually under the lease of who registered it.
    Endpoint {
        /// The Service.
        service: ServiceName,
        /// Name of the Service's port; empty for an unnamed one (`-` in the key).
        port_name: String,
        /// Where the endpoint listens.
        address: SocketAddr,
    },
}

impl ServiceName {
    /// Checks both parts: DNS labels of lower-case letters, digits and dashes, at most 63 bytes.
    pub fn new(namespace: &str, name: &str) -> Result<Self, ServiceKeyError> {
        check("namespace", namespace, is_label)?;
        check("service name", name, is_label)?;
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ServiceKey {
    /// Reads what follows `<prefix>/services/v1/`. Every part is checked from end to end, so one object has one key.
    pub fn parse(rest: &str) -> Result<Self, ServiceKeyError> {
        let parts: Vec<&str> = rest.split('/').collect();
        match parts[..] {
            ["config"] => Ok(Self::Config),
            ["spec", namespace, name] => Ok(Self::Spec(ServiceName::new(namespace, name)?)),
            ["slices", namespace, name, slice] => Self::slice(ServiceName::new(namespace, name)?, slice),
            ["endpoints", namespace, name, port, address] => {
                Self::endpoint(ServiceName::new(namespace, name)?, port, address)
            }
            _ => Err(ServiceKeyError::Unknown(rest.chars().take(SUBDOMAIN).collect())),
        }
    }

    /// The Service that it is about; the config is about all.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Config => None,
            Self::Spec(service) | Self::Slice { service, .. } | Self::Endpoint { service, .. } => {
                Some(service)
            }
        }
    }

    /// The key of the slice `slice` of `service`; its name must be a DNS name.
    pub fn slice(service: ServiceName, slice: &str) -> Result<Self, ServiceKeyError> {
        check("slice name", slice, is_subdomain)?;
        Ok(Self::Slice {
            service,
            slice: slice.to_owned(),
        })
    }

    fn endpoint(service: ServiceName, port: &str, address: &str) -> Result<Self, ServiceKeyError> {
        let port_name = if port == UNNAMED { "" } else { port };
        if !port_name.is_empty() || port.is_empty() {
            check("port name", port, is_label)?;
        }
        // Only the canonical spelling counts: otherwise one endpoint could have two keys.
        let parsed = address
            .parse::<SocketAddr>()
            .ok()
            .filter(|a| a.to_string() == address && a.port() != 0);
        match parsed {
            Some(address) => Ok(Self::Endpoint {
                service,
                port_name: port_name.to_owned(),
                address,
            }),
            None => Err(part(
                "endpoint",
                address,
                "a form like 10.5.1.2:8080 or [fd00::2]:8080",
            )),
        }
    }
}

impl fmt::Display for ServiceKey {
    /// The key without `<prefix>/services/v1/`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Spec(service) => write!(f, "spec/{service}"),
            Self::Slice { service, slice } => write!(f, "slices/{service}/{slice}"),
            Self::Endpoint {
                service,
                port_name,
                address,
            } => {
                let port = if port_name.is_empty() { UNNAMED } else { port_name };
                write!(f, "endpoints/{service}/{port}/{address}")
            }
        }
    }
}

/// Whether `text` is a DNS label: lower-case letters, digits and inner dashes.
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// What [`is_label`] takes, in words.
pub(crate) const LABEL_FORM: &str = "lower-case letters, digits and inner dashes, at most 63";

fn is_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN && text.split('.').all(is_label)
}

fn check(what: &'static str, text: &str, sound: fn(&str) -> bool) -> Result<(), ServiceKeyError> {
    if sound(text) {
        Ok(())
    } else {
        Err(part(what, text, LABEL_FORM))
    }
}

fn part(part: &'static str, text: &str, expected: &'static str) -> ServiceKeyError {
    ServiceKeyError::Part {
        part,
        text: text.chars().take(SUBDOMAIN).collect(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back_as_written() {
        for text in [
            "config",
            "spec/shop/web",
            "slices/shop/web/web-x1",
            "slices/shop/web/node-1.example-2",
            "endpoints/shop/web/http/10.5.1.2:8080",
            "endpoints/shop/web/-/[fd00::2]:53",
        ] {
            assert_eq!(ServiceKey::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_keys_are_refused() {
        for text in [
            "",
            "config/",
            "config2",
            "spec/shop",
            "spec/shop/",
            "spec//web",
            "spec/Shop/web",
            "spec/shop/web/x",
            "spec/../web",
            "spec/shop/-web",
            "slices/shop/web/",
            "slices/shop/web/a..b",
            "endpoints/shop/web/http/10.5.1.2",
            "endpoints/shop/web/http/10.5.1.2:0",
            "endpoints/shop/web/http/10.5.1.2:080",
            "endpoints/shop/web/http/[FD00::2]:80",
            "endpoints/shop/web//10.5.1.2:80",
            "endpoints/shop/web/--/10.5.1.2:80",
            "status/shop/web/n1",
        ] {
            assert!(ServiceKey::parse(text).is_err(), "{text}");
        }
        assert!(ServiceName::new("a", &"x".repeat(64)).is_err());
    }
}
