//! Certificates and passwords that are replaced on disk while the store is in use, against a real etcd.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed step of a test is a failed test"
)]

use std::path::Path;

use etcd_client::Client;
use flannel_store::fixture::EtcdProcess;
use flannel_store::{ErrorKind, EtcdOptions, EtcdStore, Password, Store};

fn with_tls() -> EtcdProcess {
    EtcdProcess::start_with_tls(true).unwrap_or_else(|error| panic!("{error}"))
}

/// Puts the files of `from` in the place of those of `to`.
fn replace(to: &EtcdOptions, from: &EtcdOptions) {
    for (to, from) in [
        (&to.ca_file, &from.ca_file),
        (&to.cert_file, &from.cert_file),
        (&to.key_file, &from.key_file),
    ] {
        std::fs::copy(from.as_ref().unwrap(), to.as_ref().unwrap()).unwrap();
    }
}

fn private_copy(options: &EtcdOptions, directory: &Path) -> EtcdOptions {
    let copy = EtcdOptions {
        ca_file: Some(directory.join("ca.pem")),
        cert_file: Some(directory.join("node.pem")),
        key_file: Some(directory.join("node.key")),
        ..options.clone()
    };
    replace(&copy, options);
    copy
}

#[tokio::test]
async fn rotated_certificates_are_used_without_a_restart() {
    let (mut etcd, other) = (with_tls(), with_tls());
    let store = EtcdStore::connect(etcd.options()).unwrap();
    store.put("/k", "1").await.unwrap();
    etcd.kill();
    replace(&etcd.options(), &other.options());
    etcd.restart().unwrap_or_else(|error| panic!("{error}"));
    store.put("/k", "2").await.unwrap();
    assert_eq!(store.get("/k").await.unwrap().0.unwrap().value, b"2");
}

#[tokio::test]
async fn certificates_that_do_not_work_leave_those_before_in_use() {
    let (etcd, other) = (with_tls(), with_tls());
    let directory = tempfile::tempdir().unwrap();
    let options = private_copy(&etcd.options(), directory.path());
    let store = EtcdStore::connect(options.clone()).unwrap();
    store.put("/k", "1").await.unwrap();
    replace(&options, &other.options());
    store.put("/k", "2").await.unwrap();
    std::fs::write(options.key_file.as_ref().unwrap(), "half a ke").unwrap();
    store.put("/k", "3").await.unwrap();
    replace(&options, &etcd.options());
    store.put("/k", "4").await.unwrap();
}

#[tokio::test]
async fn a_password_that_was_changed_is_read_from_its_file() {
    let etcd = EtcdProcess::start().unwrap_or_else(|error| panic!("{error}"));
    let mut admin = Client::connect([etcd.endpoint()], None).await.unwrap();
    admin.user_add("root", "first", None).await.unwrap();
    admin.role_add("root").await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "first\n").unwrap();
    admin.auth_enable().await.unwrap();
    let store = EtcdStore::connect(EtcdOptions {
        username: Some("root".to_owned()),
        password: Some(Password::File(file.path().into())),
        ..etcd.options()
    })
    .unwrap();
    store.put("/k", "1").await.unwrap();

    let options = etcd_client::ConnectOptions::new().with_user("root", "first");
    let mut admin = Client::connect([etcd.endpoint()], Some(options)).await.unwrap();
    admin.user_change_password("root", "the second").await.unwrap();
    // The file still holds the old one: told, and nothing hangs.
    let mut refused = None;
    for _ in 0..3 {
        refused = store.put("/k", "2").await.err().or(refused);
    }
    let refused = refused.unwrap();
    assert_eq!(refused.kind(), ErrorKind::Auth, "{refused}");
    std::fs::write(&file, "the second\n").unwrap();
    store.put("/k", "3").await.unwrap();
}
