//! Who is asked and who asks: TLS, client certificates, tokens that are replaced.

use std::path::Path;
use std::process::Command;

use super::support::{Mirror, options, server, service};
use flannel_kube::fixture::{ApiServer, Collection, ServerTls};
use flannel_kube::{Client, KubeOptions, Resource};

/// Runs openssl, which the tests of the etcd client need as well.
fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(arguments.split(' '))
        .output();
    let output = output.expect("openssl is installed (Debian: apt-get install openssl)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An authority, and a certificate for 127.0.0.1 and one for a client, both signed by it.
fn certificates(folder: &Path) {
    std::fs::write(
        folder.join("server.ext"),
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
    )
    .unwrap();
    std::fs::write(folder.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        folder,
        &format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=ca -days 2"),
    );
    for name in ["server", "client"] {
        openssl(
            folder,
            &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"),
        );
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.crt"
            ),
        );
    }
}

fn tls(folder: &Path, clients: bool) -> ServerTls {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    ServerTls {
        certificate: read("server.crt"),
        key: read("server.key"),
        client_authority: clients.then(|| read("ca.crt")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_token_is_used_and_read_again_when_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    std::fs::write(folder.path().join("token"), "first").unwrap();
    let server = ApiServer::start_tls("127.0.0.1:0".parse().unwrap(), &tls(folder.path(), false)).unwrap();
    server.behave(|b| b.token = Some("first".to_owned()));
    server.put(Collection::Services, service("a", "10.96.0.1"));
    let options = KubeOptions {
        service_account: folder.path().to_owned(),
        in_cluster: Some(server.url()),
        api_url: None,
        kubeconfig: None,
    };
    let mut mirror = Mirror::new(Client::new(options).unwrap(), Resource::Services);
    mirror.until("the list", |m| m.objects.len() == 1).await;
    // The server takes another token only, and ends the watch; the file follows a moment later.
    server.behave(|b| b.token = Some("second".to_owned()));
    server.break_watches();
    mirror
        .until("the refusal", |m| {
            m.lost.iter().any(|reason| reason.contains("HTTP 401"))
        })
        .await;
    std::fs::write(folder.path().join("token"), "second\n").unwrap();
    server.put(Collection::Services, service("b", "10.96.0.2"));
    mirror.until("the change", |m| m.objects.len() == 2).await;
    assert!(
        mirror.lost.iter().all(|reason| !reason.contains("first")),
        "a token in a message: {:?}",
        mirror.lost
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_of_a_kubeconfig_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let server = ApiServer::start_tls("127.0.0.1:0".parse().unwrap(), &tls(folder.path(), true)).unwrap();
    server.put(Collection::Services, service("a", "10.96.0.1"));
    let config = |user: &str| {
        let path = folder.path().join("config");
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"{}\", certificate-authority: ca.crt}}}}]\n",
            server.url()
        );
        std::fs::write(&path, text).unwrap();
        KubeOptions {
            kubeconfig: Some(path),
            ..options("")
        }
    };
    let with = KubeOptions {
        api_url: None,
        ..config("client-certificate: client.crt, client-key: client.key")
    };
    let mut mirror = Mirror::new(Client::new(with).unwrap(), Resource::Services);
    mirror.until("the list", |m| m.objects.len() == 1).await;
    let without = KubeOptions {
        api_url: None,
        ..config("token: x")
    };
    let mut stranger = Mirror::new(Client::new(without).unwrap(), Resource::Services);
    stranger.until("the refusal", |m| !m.lost.is_empty()).await;
    assert_eq!(stranger.inits, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_of_another_authority_is_refused() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(theirs.path());
    certificates(ours.path());
    std::fs::write(ours.path().join("token"), "secret").unwrap();
    let server = ApiServer::start_tls("127.0.0.1:0".parse().unwrap(), &tls(theirs.path(), false)).unwrap();
    let options = KubeOptions {
        service_account: ours.path().to_owned(),
        in_cluster: Some(server.url()),
        api_url: None,
        kubeconfig: None,
    };
    let mut mirror = Mirror::new(Client::new(options).unwrap(), Resource::Services);
    mirror.until("the refusal", |m| !m.lost.is_empty()).await;
    assert!(
        mirror.lost[0].contains("certificate"),
        "the cause is told: {:?}",
        mirror.lost
    );
    assert_eq!(server.requests(&[""]), 0, "nothing was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_first_is_waited_for() {
    let mut server = server();
    server.put(Collection::Services, service("a", "10.96.0.1"));
    server.stop();
    let mut mirror = Mirror::new(Client::new(options(&server.url())).unwrap(), Resource::Services);
    mirror.until("the outage", |m| m.lost.len() == 1).await;
    assert!(mirror.lost[0].contains("refused"), "{:?}", mirror.lost);
    server.restart().unwrap();
    mirror.until("the list", |m| m.objects.len() == 1).await;
}
