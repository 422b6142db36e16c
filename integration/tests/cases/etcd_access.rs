//! The way to etcd: plain http, TLS, users and passwords.

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::process::Process;
use flannel_lab::{Flanneld, Lab, LabOptions, eventually, limit};

use super::common::leases;

/// A second etcd on the lab's etcd host, which speaks TLS.
pub const ENDPOINT: &str = "https://192.168.50.2:3379";
/// Where its certificates are; everybody in the sandbox sees them.
pub const FILES: &str = "/run/lab/tls";
const PASSWORD: &str = "correct horse battery staple";

pub fn plain_http_to_another_host_asks_for_a_flag() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    let mut daemon = node.start_flanneld(&["--etcd-insecure=false"])?;
    let status = daemon.wait_exit()?;
    ensure!(status.code() == Some(2), "ended with {status}");
    let log = daemon.log()?;
    ensure!(
        log.contains("http://192.168.50.2:2379") && log.contains("--etcd-insecure"),
        "does not say what and how: {log}"
    );
    ensure!(leases(&lab)?.is_empty(), "a refused start left a lease");
    let ctl = lab.flannelctl(&["--etcd-insecure=false", "subnets"])?;
    ensure!(
        ctl.status.code() == Some(1) && ctl.stderr.contains("--etcd-insecure"),
        "flannelctl: {ctl:?}"
    );
    node.start_ready_flanneld(&["--etcd-insecure=true"]).map(drop)
}

pub fn tls_with_any_of_the_files() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(3))?;
    let _etcd = secure_etcd(&lab, true)?;
    let ca = format!("--etcd-cafile={FILES}/ca.pem");
    let (cert, key) = (
        format!("--etcd-certfile={FILES}/node.pem"),
        format!("--etcd-keyfile={FILES}/node.key"),
    );
    let endpoint = format!("--etcd-endpoints={ENDPOINT}");
    let bare = "--etcd-endpoints=192.168.50.2:3379";
    // A client certificate that etcd asks for, and an endpoint without a scheme.
    let mut with_all = lab
        .node(1)?
        .start_flanneld(&["--etcd-insecure=false", bare, &ca, &cert, &key])?;
    with_all.wait_ready()?;
    // The authority alone is enough for TLS, but not for an etcd that wants to know who we are.
    let mut ca_only = lab
        .node(2)?
        .start_flanneld(&["--etcd-insecure=false", &endpoint, &ca])?;
    ca_only.wait_log("certificate")?;
    ensure!(!ca_only.is_ready(), "ready without a certificate");
    // Without the authority, its certificate is not trusted, and the way out is named.
    let mut untrusting = lab
        .node(3)?
        .start_flanneld(&["--etcd-insecure=false", &endpoint, &cert, &key])?;
    untrusting.wait_log("--etcd-cafile")?;
    ca_only.check_running()
}

pub fn password_comes_from_a_file_and_is_never_told() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2))?;
    let _etcd = secure_etcd(&lab, false)?;
    let control = |arguments: &[&str]| -> Result<String> {
        let fixed = [
            "etcdctl",
            "--endpoints",
            ENDPOINT,
            "--cacert",
            "/run/lab/tls/ca.pem",
        ];
        lab.operator().run(&[&fixed[..], arguments].concat())
    };
    control(&["user", "add", &format!("root:{PASSWORD}"), "--interactive=false"])?;
    control(&["user", "grant-role", "root", "root"])?;
    control(&["auth", "enable"])?;
    let file = format!("{FILES}/password");
    std::fs::write(&file, "wrong\n")?;
    let options = [
        "--etcd-insecure=false",
        "--etcd-endpoints=192.168.50.2:3379",
        "--etcd-cafile=/run/lab/tls/ca.pem",
        "--etcd-username=root",
        "-v=10",
    ];
    let from_file = format!("--etcd-password-file={file}");
    let mut waiting = lab
        .node(1)?
        .start_flanneld(&[&options[..], &[&from_file]].concat())?;
    waiting.wait_log("authentication failed")?;
    std::fs::write(&file, format!("{PASSWORD}\n"))?;
    waiting.wait_ready()?;
    let variables = [("FLANNELD_ETCD_PASSWORD", PASSWORD)];
    let mut by_variable = Flanneld::start_with(lab.node(2)?, &options, &variables)?;
    by_variable.wait_ready()?;
    for daemon in [&waiting, &by_variable] {
        ensure!(
            !daemon.log()?.contains(PASSWORD) && !daemon.notifications().contains(PASSWORD),
            "the password is told"
        );
    }
    Ok(())
}

/// Starts the etcd that speaks TLS, with certificates and the network config in it.
pub fn secure_etcd(lab: &Lab, client_auth: bool) -> Result<Process> {
    make_certificates(lab)?;
    let mut etcd = start_secure_etcd(lab, client_auth)?;
    eventually(limit(20), "the secure etcd to take the config", || {
        etcd.check_running()?;
        let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let fixed = format!(
            "etcdctl --endpoints {ENDPOINT} --cacert {FILES}/ca.pem --cert {FILES}/node.pem --key {FILES}/node.key \
             put /coreos.com/network/config '{config}'"
        );
        lab.operator().shell(&fixed).map(drop)
    })?;
    Ok(etcd)
}

/// The same on the data and the certificates that are there.
pub fn start_secure_etcd(lab: &Lab, client_auth: bool) -> Result<Process> {
    let file = |flag: &str, name: &str| format!("{flag}={FILES}/{name}");
    let mut argv: Vec<String> = vec![
        "etcd".into(),
        "--name=secure".into(),
        format!("--data-dir={FILES}/data"),
        "--log-level=warn".into(),
        format!("--listen-client-urls={ENDPOINT}"),
        format!("--advertise-client-urls={ENDPOINT}"),
        "--listen-peer-urls=http://127.0.0.1:3380".into(),
        "--initial-advertise-peer-urls=http://127.0.0.1:3380".into(),
        "--initial-cluster=secure=http://127.0.0.1:3380".into(),
        file("--cert-file", "node.pem"),
        file("--key-file", "node.key"),
        // So short that every test meets tokens that are over.
        "--auth-token-ttl=2".into(),
    ];
    if client_auth {
        argv.push(file("--trusted-ca-file", "ca.pem"));
        argv.push("--client-cert-auth".into());
    }
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let env = Environment {
        clean: true,
        ..Environment::default()
    };
    lab.etcd().place().spawn("secure-etcd", &argv, &env)
}

/// An authority, and a certificate for the etcd host that serves as a client's as well.
pub fn make_certificates(lab: &Lab) -> Result<()> {
    let script = format!(
        "mkdir -p {FILES}; cd {FILES}
         key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
         openssl req -x509 $key -keyout ca.key -out ca.pem -subj /CN=lab-ca -days 2
         openssl req $key -keyout node.key -out node.csr -subj /CN=root
         printf 'subjectAltName=IP:192.168.50.2\\nextendedKeyUsage=serverAuth,clientAuth\\n' > extensions
         openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out node.pem -days 2 -extfile extensions"
    );
    lab.operator().shell(&script).map(drop).context("certificates")
}
