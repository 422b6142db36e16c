//! What proves who we are, and who etcd is: files that may be replaced while we run.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use etcd_client::{Certificate, Identity, TlsOptions};

use crate::{EtcdOptions, Password, Secret};

/// The files and the user of one cluster.
#[derive(Debug)]
pub(crate) struct Credentials {
    options: EtcdOptions,
    /// What was read last and was whole: a rotation that is half done must not cost us a reconnect.
    last_good: Mutex<Material>,
}

/// What the files held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Material {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Secret)>,
    user: Option<(String, Secret)>,
    version: Version,
}

/// Tells one state of the files from another, without reading them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Version(Vec<Option<(SystemTime, u64)>>);

impl Credentials {
    /// Reads what the options name.
    ///
    /// # Errors
    /// Every file that cannot be used and every option without its counterpart, one sentence each.
    pub(crate) fn read(options: EtcdOptions) -> Result<Self, Vec<String>> {
        let material = Material::read(&options)?;
        Ok(Self {
            options,
            last_good: Mutex::new(material),
        })
    }

    /// What the files hold now; when they cannot be used now, what they held last.
    pub(crate) fn fresh(&self) -> Material {
        let read = Material::read(&self.options);
        let mut last_good = self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(material) => *last_good = material,
            Err(problems) => {
                let problems = problems.join("; ");
                tracing::warn!("{problems}; what was read before stays in use");
            }
        }
        last_good.clone()
    }

    /// Whether servers can learn who we are by a certificate.
    pub(crate) fn has_certificate(&self) -> bool {
        self.options.cert_file.is_some()
    }

    /// The state of the files now.
    pub(crate) fn version(&self) -> Version {
        Version::of(&self.options)
    }
}

impl Version {
    fn of(options: &EtcdOptions) -> Self {
        let password = match &options.password {
            Some(Password::File(path)) => Some(path),
            Some(Password::Text(_)) | None => None,
        };
        let files = [
            options.ca_file.as_ref(),
            options.cert_file.as_ref(),
            options.key_file.as_ref(),
            password,
        ];
        let state = |path: &std::path::PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Self(files.into_iter().flatten().map(state).collect())
    }
}

impl Material {
    fn read(options: &EtcdOptions) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        // Taken before the files are read: a change in between is found again.
        let version = Version::of(options);
        let mut read = |path: &Option<std::path::PathBuf>, flag: &str, block: &str| {
            let text = pem(path.as_deref()?, flag, block);
            text.map_err(|problem| problems.push(problem)).ok()
        };
        let ca = read(&options.ca_file, "--etcd-cafile", "CERTIFICATE");
        let cert = read(&options.cert_file, "--etcd-certfile", "CERTIFICATE");
        let key = read(&options.key_file, "--etcd-keyfile", "PRIVATE KEY");
        match (&options.cert_file, &options.key_file) {
            (Some(_), None) => problems.push(alone("--etcd-certfile", "--etcd-keyfile")),
            (None, Some(_)) => problems.push(alone("--etcd-keyfile", "--etcd-certfile")),
            (Some(_), Some(_)) | (None, None) => {}
        }
        let user = user(options, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let key = key.map(|key| Secret::new(String::from_utf8_lossy(&key)));
        Ok(Self {
            ca,
            identity: cert.zip(key),
            user,
            version,
        })
    }

    /// Options for one server, whose certificate must bear the name `host`.
    pub(crate) fn tls(&self, host: &str) -> TlsOptions {
        let tls = TlsOptions::new().domain_name(host);
        let tls = match &self.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
            None => tls.with_native_roots(),
        };
        match &self.identity {
            Some((cert, key)) => tls.identity(Identity::from_pem(cert, key.expose())),
            None => tls,
        }
    }

    /// Name and password for etcd's own authentication.
    pub(crate) fn user(&self) -> Option<&(String, Secret)> {
        self.user.as_ref()
    }

    /// The state of the files that this was read from.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }
}

fn user(options: &EtcdOptions, problems: &mut Vec<String>) -> Option<(String, Secret)> {
    let name = options.username.clone().filter(|name| !name.is_empty());
    match (name, &options.password) {
        (None, None) => None,
        (Some(name), Some(password)) => match password_text(password) {
            Ok(text) => Some((name, text)),
            Err(problem) => {
                problems.push(problem);
                None
            }
        },
        (Some(_), None) => {
            problems.push(
                "--etcd-username is given without a password: name a file with it by --etcd-password-file, or set \
                 FLANNELD_ETCD_PASSWORD"
                    .to_owned(),
            );
            None
        }
        (None, Some(_)) => {
            problems.push("an etcd password is given without --etcd-username".to_owned());
            None
        }
    }
}

fn password_text(password: &Password) -> Result<Secret, String> {
    let path = match password {
        Password::Text(secret) => return Ok(secret.clone()),
        Password::File(path) => path,
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|cause| {
        format!("cannot read the etcd password from {shown} (--etcd-password-file): {cause}")
    })?;
    // Editors and `echo` end a file with a line break, which is no part of the password.
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(format!(
            "{shown} (--etcd-password-file) is empty; it holds the password and nothing else"
        )),
        text => Ok(Secret::new(text)),
    }
}

fn alone(given: &str, missing: &str) -> String {
    format!("{given} is given without {missing}; a client certificate needs both")
}

/// Reads a PEM file; a file without the expected kind of block would only fail later, with a stranger text.
fn pem(path: &Path, flag: &str, block: &str) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|cause| format!("cannot read {shown} ({flag}): {cause}"))?;
    let found = String::from_utf8_lossy(&text)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.contains(block));
    match found {
        true => Ok(text),
        false => Err(format!("{shown} ({flag}) holds no PEM block of the kind {block}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_told_at_once() {
        let problems = Credentials::read(EtcdOptions {
            ca_file: Some("/nonexistent/ca.pem".into()),
            cert_file: Some("/dev/null".into()),
            username: Some("u".to_owned()),
            password: Some(Password::File("/nonexistent/password".into())),
            ..EtcdOptions::default()
        })
        .unwrap_err();
        for part in [
            "--etcd-cafile",
            "/dev/null (--etcd-certfile) holds no PEM",
            "without --etcd-keyfile",
            "/nonexistent/password",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(part)),
                "{part}: {problems:?}"
            );
        }
        assert_eq!(problems.len(), 4);
    }

    #[test]
    fn a_password_file_is_read_anew_and_a_half_written_one_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "first\n").unwrap();
        let credentials = Credentials::read(EtcdOptions {
            username: Some("flannel".to_owned()),
            password: Some(Password::File(file.path().into())),
            ..EtcdOptions::default()
        })
        .unwrap();
        let password = || credentials.fresh().user().unwrap().1.clone();
        let before = credentials.version();
        assert_eq!(password(), Secret::new("first"));
        std::fs::write(&file, "").unwrap();
        assert_ne!(credentials.version(), before);
        assert_eq!(password(), Secret::new("first"));
        std::fs::write(&file, "the second\r\n").unwrap();
        assert_eq!(password(), Secret::new("the second"));
        assert!(!format!("{credentials:?} {:?}", credentials.fresh()).contains("second"));
    }
}
