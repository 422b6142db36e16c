//! TLS towards etcd. A CA alone is enough; a client certificate needs its key.

use std::path::Path;

use etcd_client::{Certificate, Identity, TlsOptions};

use crate::{EtcdOptions, StoreError};

/// The PEM texts of the files, read once.
#[derive(Clone, Default)]
pub(crate) struct TlsFiles {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    /// Reads what the options name.
    pub(crate) fn read(options: &EtcdOptions) -> Result<Self, StoreError> {
        let ca = options.ca_file.as_deref();
        let ca = ca
            .map(|path| pem(path, "--etcd-cafile", "CERTIFICATE"))
            .transpose()?;
        let identity = match (options.cert_file.as_deref(), options.key_file.as_deref()) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((
                pem(cert, "--etcd-certfile", "CERTIFICATE")?,
                pem(key, "--etcd-keyfile", "PRIVATE KEY")?,
            )),
            (Some(_), None) => return Err(alone("--etcd-certfile", "--etcd-keyfile")),
            (None, Some(_)) => return Err(alone("--etcd-keyfile", "--etcd-certfile")),
        };
        Ok(Self { ca, identity })
    }

    /// Options for one server, whose certificate must bear the name `host`.
    pub(crate) fn options(&self, host: &str) -> TlsOptions {
        let tls = TlsOptions::new().domain_name(host);
        let tls = match &self.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
            None => tls.with_native_roots(),
        };
        match &self.identity {
            Some((cert, key)) => tls.identity(Identity::from_pem(cert, key)),
            None => tls,
        }
    }
}

fn alone(given: &str, missing: &str) -> StoreError {
    StoreError::config(format!(
        "{given} is given without {missing}; a client certificate needs both"
    ))
}

/// Reads a PEM file; a file without the expected kind of block would only fail later, with a stranger text.
fn pem(path: &Path, flag: &str, block: &str) -> Result<Vec<u8>, StoreError> {
    let shown = path.display();
    let text = std::fs::read(path)
        .map_err(|cause| StoreError::config(format!("cannot read {shown} ({flag}): {cause}")))?;
    let found = String::from_utf8_lossy(&text)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.contains(block));
    match found {
        true => Ok(text),
        false => Err(StoreError::config(format!(
            "{shown} ({flag}) holds no PEM block of the kind {block}"
        ))),
    }
}
