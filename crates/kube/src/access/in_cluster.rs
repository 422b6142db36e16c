//! The credentials of a pod: files in a folder that Kubernetes mounts and renews.

use super::{Access, AccessError, KubeOptions, Token, read, server};

/// The pod's token and the cluster's authority, with the address from the environment unless another is given.
pub(super) fn load(options: &KubeOptions) -> Result<Access, AccessError> {
    let folder = &options.service_account;
    let token = folder.join("token");
    let (address, origin) = match (&options.api_url, &options.in_cluster) {
        (Some(url), _) => (url, "--kube-api-url"),
        (None, Some(url)) => (url, "KUBERNETES_SERVICE_HOST"),
        (None, None) => {
            return Err(AccessError::Unusable(
                "no API server is named; expected --kubeconfig-file, --kube-api-url, or a pod with KUBERNETES_SERVICE_HOST"
                    .to_owned(),
            ));
        }
    };
    let server = server(address, origin)?;
    if options.api_url.is_some() && !token.exists() {
        // As with kubectl --server: an address alone, for a proxy on this host.
        return Ok(Access {
            server,
            authorities: None,
            server_name: None,
            identity: None,
            token: None,
        });
    }
    let authority = folder.join("ca.crt");
    let authorities = match server.scheme_str() {
        Some("http") => None,
        _ => Some(read(&authority, "the cluster's certificate authority")?),
    };
    // Read now, so that a missing token is told at start.
    read(&token, "the pod's token")?;
    Ok(Access {
        server,
        authorities,
        server_name: None,
        identity: None,
        token: Some(Token::File(token)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn options(api_url: Option<&str>, folder: PathBuf, in_cluster: Option<&str>) -> KubeOptions {
        KubeOptions {
            api_url: api_url.map(str::to_owned),
            kubeconfig: None,
            service_account: folder,
            in_cluster: in_cluster.map(str::to_owned),
        }
    }

    #[test]
    fn the_pods_credentials_and_a_replaced_address() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "t").unwrap();
        let path = || folder.path().to_owned();
        let missing = load(&options(None, path(), Some("https://10.96.0.1:443"))).unwrap_err();
        assert!(missing.to_string().contains("ca.crt"), "{missing}");
        std::fs::write(folder.path().join("ca.crt"), "pem").unwrap();
        let access = load(&options(None, path(), Some("https://10.96.0.1:443"))).unwrap();
        assert_eq!(access.server.host(), Some("10.96.0.1"));
        assert!(access.authorities.is_some() && access.token.is_some());
        let access = load(&options(
            Some("https://192.0.2.7:6443"),
            path(),
            Some("https://10.96.0.1"),
        ))
        .unwrap();
        assert_eq!(access.server.host(), Some("192.0.2.7"));
        assert!(
            access.token.is_some(),
            "the pod's token goes to the address that the operator named"
        );
    }

    #[test]
    fn an_address_alone_and_nothing_at_all() {
        let nowhere = PathBuf::from("/nonexistent");
        let access = load(&options(Some("http://127.0.0.1:8001"), nowhere.clone(), None)).unwrap();
        assert!(access.token.is_none());
        let error = load(&options(None, nowhere, None)).unwrap_err().to_string();
        assert!(
            error.contains("--kubeconfig-file") && error.contains("--kube-api-url"),
            "{error}"
        );
    }
}
