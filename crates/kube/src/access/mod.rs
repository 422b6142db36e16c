//! Where the API server is and how this process proves who it is.

mod in_cluster;
mod kubeconfig;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;

/// What the operator said about the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeOptions {
    /// Address that counts instead of the one in the kubeconfig or the pod.
    pub api_url: Option<String>,
    /// A kubeconfig file; without one the credentials of the pod are used.
    pub kubeconfig: Option<PathBuf>,
    /// Folder that a pod finds its credentials in.
    pub service_account: PathBuf,
    /// Address of the API server as the pod's environment names it.
    pub in_cluster: Option<String>,
}

/// Where Kubernetes mounts a pod's credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl KubeOptions {
    /// The given flags, with what the environment says about the pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
    pub fn from_environment(api_url: Option<String>, kubeconfig: Option<PathBuf>) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST");
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        let in_cluster = host.map(|host| match host.contains(':') {
            true => format!("https://[{host}]:{port}"),
            false => format!("https://{host}:{port}"),
        });
        Self {
            api_url,
            kubeconfig,
            service_account: PathBuf::from(SERVICE_ACCOUNT),
            in_cluster,
        }
    }
}

/// How to reach one API server, with files read. Made again for each session, so that what is rotated on disk is used.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// Scheme, host, port and perhaps a path.
    pub(crate) server: Uri,
    /// PEM of the authorities that sign its certificate; the system's own when absent.
    pub(crate) authorities: Option<Vec<u8>>,
    /// Name that the certificate must bear, where it is not the host.
    pub(crate) server_name: Option<String>,
    /// PEM of a client certificate and its key.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Bearer token.
    pub(crate) token: Option<Token>,
}

/// A bearer token; a file is read again for every request, because Kubernetes replaces it (hourly, for a pod).
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Token {
    Fixed(String),
    File(PathBuf),
}

impl std::fmt::Debug for Access {
    /// Without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("server", &self.server)
            .field("server_name", &self.server_name)
            .field("certificate", &self.identity.is_some())
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

/// Why the API server cannot be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read.
    #[error("cannot read {} ({what})", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it is for.
        what: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// A kubeconfig is no YAML of the right shape.
    #[error("{} is no kubeconfig", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<serde_norway::Error>,
    },
    /// Something is missing, contradictory or not supported.
    #[error("{0}")]
    Unusable(String),
    /// The system's own certificate authorities cannot be used.
    #[error("TLS to the API server cannot be set up: {0}")]
    Tls(String),
}

impl Access {
    /// Reads what `options` point to: a kubeconfig, or the credentials of the pod. `api_url` replaces the address of either.
    ///
    /// # Errors
    /// Files that cannot be read, and what cannot or must not be used, each named.
    pub fn load(options: &KubeOptions) -> Result<Self, AccessError> {
        let access = match &options.kubeconfig {
            Some(path) => kubeconfig::load(path, options.api_url.as_deref())?,
            None => in_cluster::load(options)?,
        };
        access.check()?;
        Ok(access)
    }

    /// A token or password must not cross a network in the clear.
    fn check(&self) -> Result<(), AccessError> {
        let host = self.server.host().unwrap_or_default();
        let local = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if self.token.is_some() && self.server.scheme_str() == Some("http") && !local {
            return Err(AccessError::Unusable(format!(
                "a token would be sent to {} in the clear; expected an address that begins with https://",
                self.server
            )));
        }
        Ok(())
    }

    /// The token as it stands now.
    pub(crate) fn bearer(&self) -> Result<Option<String>, AccessError> {
        match &self.token {
            None => Ok(None),
            Some(Token::Fixed(token)) => Ok(Some(token.clone())),
            Some(Token::File(path)) => {
                let text = read_text(path, "the token")?;
                match text.trim() {
                    "" => Err(AccessError::Unusable(format!(
                        "{} (the token) is empty",
                        path.display()
                    ))),
                    token => Ok(Some(token.to_owned())),
                }
            }
        }
    }
}

/// The address of an API server: `https://host:port`, or without a scheme, which then is https.
fn server(text: &str, origin: &str) -> Result<Uri, AccessError> {
    let bad = || {
        AccessError::Unusable(format!(
            "{origin} {text:?} is no address of an API server; expected a form like https://192.168.50.10:6443"
        ))
    };
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: Uri = full.trim_end_matches('/').parse().map_err(|_| bad())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        _ => Err(bad()),
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|source| AccessError::File {
        path: path.to_owned(),
        what: what.to_owned(),
        source: Arc::new(source),
    })
}

fn read_text(path: &Path, what: &str) -> Result<String, AccessError> {
    read(path, what).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_scheme() {
        assert_eq!(server("192.0.2.1:6443", "x").unwrap(), "https://192.0.2.1:6443");
        assert_eq!(server("https://[fd00::1]:6443/k8s/", "x").unwrap().path(), "/k8s");
        for bad in ["", "ftp://a", "https://", "a b"] {
            assert!(
                server(bad, "--kube-api-url")
                    .unwrap_err()
                    .to_string()
                    .contains("--kube-api-url"),
                "{bad}"
            );
        }
    }

    #[test]
    fn tokens_stay_off_clear_wires_and_out_of_debug_texts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
        let options = |url: &str| KubeOptions {
            api_url: Some(url.to_owned()),
            kubeconfig: None,
            service_account: folder.path().to_owned(),
            in_cluster: None,
        };
        let error = Access::load(&options("http://192.0.2.1:8080")).unwrap_err();
        assert!(error.to_string().contains("in the clear"), "{error}");
        let access = Access::load(&options("http://127.0.0.1:8080")).unwrap();
        assert_eq!(access.bearer().unwrap().unwrap(), "hunter2");
        std::fs::write(folder.path().join("token"), "rotated").unwrap();
        assert_eq!(access.bearer().unwrap().unwrap(), "rotated");
        assert!(!format!("{access:?}").contains("rotated"));
    }
}
