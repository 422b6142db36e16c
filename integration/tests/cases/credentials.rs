//! Tokens that expire, a password and certificates that are changed, all while the nodes run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Flanneld, Lab, LabOptions, Pinger, Stillness, eventually, limit};

use super::common::{await_ping, await_route_everywhere, start_together};
use super::etcd_access::{ENDPOINT, FILES, make_certificates, secure_etcd, start_secure_etcd};

const FIRST: &str = "the first password";
/// One word: etcdctl reads no more from its standard input.
const SECOND: &str = "second-password";

pub fn tokens_passwords_and_certificates_change_under_traffic() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(2).without_config())?;
    let mut etcd = secure_etcd(&lab, false)?;
    for arguments in [
        vec!["user", "add", &format!("root:{FIRST}"), "--interactive=false"],
        vec!["user", "grant-role", "root", "root"],
        vec!["auth", "enable"],
    ] {
        control(&lab, None, &arguments)?;
    }
    let file = format!("{FILES}/password");
    std::fs::write(&file, FIRST)?;
    let from_file = format!("--etcd-password-file={file}");
    let flags = [
        "--etcd-insecure=false",
        "--etcd-endpoints=192.168.50.2:3379",
        "--etcd-cafile=/run/lab/tls/ca.pem",
        "--etcd-username=root",
        // It is renewed every five seconds, so always with a token that is two seconds old at the most or over.
        "--subnet-lease-ttl=15s",
        &from_file,
    ];
    let mut daemons = start_together(&lab, &flags)?;
    let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
    await_ping(&near, far.ip())?;
    await_ping(&far, near.ip())?;
    let stream = Pinger::start(&near, &far)?;

    throughout(
        Duration::from_secs(8),
        "the subnet with tokens that expire",
        || {
            ensure!(
                lab.node(1)?.file("/run/flannel/subnet.env").exists(),
                "it is gone"
            );
            Ok(())
        },
    )?;
    is_followed(&lab, FIRST, 201).context("with tokens that expired")?;

    // No hot loop and no write while the password is wrong, and it is said what is wrong. Connections that stand are not asked.
    control(
        &lab,
        Some(FIRST),
        &["user", "passwd", "root", "--interactive=false"],
    )?;
    etcd.kill()?;
    etcd = start_secure_etcd(&lab, false)?;
    daemons[0].wait_log("authentication failed")?;
    // The tries get rarer, down to one in three seconds.
    std::thread::sleep(Duration::from_secs(5));
    let still = Stillness::watch(lab.node(1)?, &daemons[0])?;
    std::thread::sleep(Duration::from_secs(5));
    still
        .end()
        .context("with a password that does not hold any more")?;
    std::fs::write(&file, SECOND)?;
    is_followed(&lab, SECOND, 202).context("with the new password")?;

    // Another authority on both sides.
    make_certificates(&lab)?;
    etcd.kill()?;
    let _etcd = start_secure_etcd(&lab, false)?;
    is_followed(&lab, SECOND, 203).context("with new certificates")?;
    let report = stream.stop()?;
    ensure!(report.sent >= 500 && report.lost.is_empty(), "lost: {report:?}");
    daemons.iter_mut().try_for_each(Flanneld::check_running)
}

/// A record comes through to both nodes.
fn is_followed(lab: &Lab, password: &str, third: usize) -> Result<()> {
    let key = format!("{SUBNETS_PREFIX}10.5.{third}.0-24");
    let value = format!(
        r#"{{"PublicIP":"192.168.50.{third}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:05:{third:02x}"}}}}"#
    );
    eventually(limit(40), "etcd to take a record", || {
        control(lab, Some(password), &["put", &key, &value])
    })?;
    await_route_everywhere(lab, third, limit(60))
}

/// etcdctl as the operator; a new password is read from its standard input.
fn control(lab: &Lab, password: Option<&str>, arguments: &[&str]) -> Result<()> {
    let user = password.map(|password| format!("root:{password}"));
    let mut argv = vec![
        "etcdctl",
        "--endpoints",
        ENDPOINT,
        "--cacert",
        "/run/lab/tls/ca.pem",
    ];
    argv.extend(user.iter().flat_map(|user| ["--user", user.as_str()]));
    argv.extend(arguments);
    let input = format!("{SECOND}\n");
    let output = lab
        .operator()
        .exec_with(&argv, input.as_bytes(), &flannel_lab::Environment::default())?;
    output.ok().map(drop)
}
