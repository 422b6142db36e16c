//! kubeconfig files (k8s.io/client-go/tools/clientcmd/api/v1/types.go), as far as a daemon can use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_norway::Value;

use super::{Access, AccessError, Token, read, server};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
    contexts: Vec<Named<Context>>,
    current_context: String,
}

/// An entry of a list; what it holds stands under `cluster`, `user` or `context`.
#[derive(Debug, Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context")]
    entry: T,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    exec: Option<Value>,
    auth_provider: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

/// Reads the current context of the file; `api_url` replaces its server.
pub(super) fn load(path: &Path, api_url: Option<&str>) -> Result<Access, AccessError> {
    let text = read(path, "--kubeconfig-file")?;
    let file: File = serde_norway::from_slice(&text).map_err(|source| AccessError::Syntax {
        path: path.to_owned(),
        source: Arc::new(source),
    })?;
    let at = |problem: String| AccessError::Unusable(format!("{}: {problem}", path.display()));
    let context = current(&file).map_err(at)?;
    let cluster = entry(&file.clusters, &context.cluster, "cluster").map_err(at)?;
    let anonymous = User::default();
    let user = match context.user.as_str() {
        "" => &anonymous,
        name => entry(&file.users, name, "user").map_err(at)?,
    };
    refuse_unsupported(cluster, user).map_err(at)?;
    // Relative paths count from the file's own folder, as kubectl has it.
    let folder = path.parent().unwrap_or(Path::new("."));
    let material = |file: &Option<PathBuf>, data: &Option<String>, field: &str| {
        pem(folder, file.as_deref(), data.as_deref(), field, path)
    };
    let address = match api_url {
        Some(url) => server(url, "--kube-api-url")?,
        None => server(&cluster.server, "server").map_err(|error| at(error.to_string()))?,
    };
    let certificate = material(
        &user.client_certificate,
        &user.client_certificate_data,
        "client-certificate",
    )?;
    let key = material(&user.client_key, &user.client_key_data, "client-key")?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(at("client-certificate stands without client-key".to_owned())),
        (None, Some(_)) => return Err(at("client-key stands without client-certificate".to_owned())),
    };
    let token = match (&user.token_file, &user.token) {
        (Some(file), _) => Some(Token::File(folder.join(file))),
        (None, Some(token)) if !token.is_empty() => Some(Token::Fixed(token.clone())),
        (None, _) => None,
    };
    Ok(Access {
        server: address,
        authorities: material(
            &cluster.certificate_authority,
            &cluster.certificate_authority_data,
            "certificate-authority",
        )?,
        server_name: cluster.tls_server_name.clone().filter(|name| !name.is_empty()),
        identity,
        token,
    })
}

fn current(file: &File) -> Result<&Context, String> {
    match (file.current_context.as_str(), file.contexts.as_slice()) {
        ("", [only]) => Ok(&only.entry),
        ("", _) => Err("current-context is missing; expected the name of a context".to_owned()),
        (name, _) => entry(&file.contexts, name, "context"),
    }
}

fn entry<'a, T>(list: &'a [Named<T>], name: &str, what: &str) -> Result<&'a T, String> {
    let found = list.iter().find(|named| named.name == name);
    found
        .map(|named| &named.entry)
        .ok_or_else(|| format!("{what} {name:?} is named but not there"))
}

/// What would be worse to ignore than to refuse.
fn refuse_unsupported(cluster: &Cluster, user: &User) -> Result<(), String> {
    let unsupported = [
        (
            cluster.insecure_skip_tls_verify,
            "insecure-skip-tls-verify is not supported; give certificate-authority, or tls-server-name where only the name differs",
        ),
        (
            cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()),
            "proxy-url is not supported; the daemon reaches the API server directly",
        ),
        (
            user.exec.as_ref().is_some_and(|v| !v.is_null()),
            "exec is not supported, because the daemon runs no programs for credentials; use a service account's token in tokenFile, or a client certificate",
        ),
        (
            user.auth_provider.as_ref().is_some_and(|v| !v.is_null()),
            "auth-provider is not supported; use tokenFile or a client certificate",
        ),
        (
            user.username.as_ref().is_some_and(|name| !name.is_empty()),
            "username is not supported (Kubernetes took it out in 1.19); use tokenFile or a client certificate",
        ),
    ];
    let first = unsupported.iter().find(|(there, _)| *there);
    first.map_or(Ok(()), |(_, problem)| Err((*problem).to_owned()))
}

/// PEM from `<field>-data` (base64), else from the file `<field>`.
fn pem(
    folder: &Path,
    file: Option<&Path>,
    data: Option<&str>,
    field: &str,
    origin: &Path,
) -> Result<Option<Vec<u8>>, AccessError> {
    match (
        data.filter(|d| !d.is_empty()),
        file.filter(|f| !f.as_os_str().is_empty()),
    ) {
        (Some(data), _) => STANDARD.decode(data.trim()).map(Some).map_err(|error| {
            AccessError::Unusable(format!(
                "{}: {field}-data is not base64: {error}",
                origin.display()
            ))
        }),
        (None, Some(file)) => read(&folder.join(file), field).map(Some),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"https://192.0.2.1:6443\", {cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    fn load_text(text: &str, api_url: Option<&str>) -> Result<Access, AccessError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("ca.pem"), "CA").unwrap();
        load(&path, api_url)
    }

    #[test]
    fn files_data_and_tokens() {
        let cluster = "certificate-authority: ca.pem, tls-server-name: api.example";
        let user = "client-certificate-data: Q0VSVA==, client-key-data: S0VZ, tokenFile: t";
        let access = load_text(&config(cluster, user), None).unwrap();
        assert_eq!(
            access.authorities.as_deref(),
            Some(b"CA".as_slice()),
            "relative to the file"
        );
        assert_eq!(access.identity, Some((b"CERT".to_vec(), b"KEY".to_vec())));
        assert_eq!(access.server_name.as_deref(), Some("api.example"));
        assert!(matches!(access.token, Some(Token::File(path)) if path.is_absolute()));
        let access = load_text(&config("", "token: abc"), Some("192.0.2.9:443")).unwrap();
        assert_eq!(access.server.host(), Some("192.0.2.9"));
        assert_eq!(access.bearer().unwrap().as_deref(), Some("abc"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (cluster, user, part) in [
            ("insecure-skip-tls-verify: true", "", "insecure-skip-tls-verify"),
            ("proxy-url: \"http://p\"", "", "proxy-url"),
            ("", "exec: {command: aws}", "exec"),
            ("", "auth-provider: {name: oidc}", "auth-provider"),
            ("", "username: a, password: b", "username"),
            ("", "client-certificate-data: Q0VSVA==", "without client-key"),
            (
                "certificate-authority-data: \"%%\"",
                "",
                "certificate-authority-data is not base64",
            ),
            ("certificate-authority: nowhere.pem", "", "nowhere.pem"),
        ] {
            let error = load_text(&config(cluster, user), None).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
        let error = load_text("current-context: x", None).unwrap_err().to_string();
        assert!(error.contains("context \"x\" is named but not there"), "{error}");
        assert!(matches!(load_text("[1", None), Err(AccessError::Syntax { .. })));
    }

    #[test]
    fn one_context_needs_no_name() {
        let text = config("", "").replace("current-context: c\n", "");
        assert!(load_text(&text, None).is_ok());
    }
}
