//! Users, passwords and certificates.

use etcd_client::Client;
use flannel_store::fixture::EtcdProcess;
use flannel_store::{ErrorKind, EtcdOptions, EtcdStore, Password, Secret, Store, follow};

use crate::support::{PREFIX, complete_state, start};

#[tokio::test]
async fn a_user_is_authenticated_and_a_wrong_password_is_told() {
    let (etcd, plain) = start();
    let with = |password: &str| {
        EtcdStore::connect(EtcdOptions {
            username: Some("root".to_owned()),
            password: Some(Password::Text(Secret::new(password))),
            ..etcd.options()
        })
        .unwrap()
    };
    // Not switched on yet: a user name is no obstacle.
    with("secret").put("/k", "1").await.unwrap();
    let mut admin = Client::connect([etcd.endpoint()], None).await.unwrap();
    admin.user_add("root", "secret", None).await.unwrap();
    admin.role_add("root").await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.auth_enable().await.unwrap();
    let store = with("secret");
    store.put("/k", "2").await.unwrap();
    let (_task, mut events) = follow(store.clone(), PREFIX.to_owned());
    complete_state(&mut events).await;
    for refused in [
        with("wrong").get("/k").await.unwrap_err(),
        plain.get("/k").await.unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::Auth, "{refused}");
        assert!(!refused.to_string().contains("wrong"), "{refused}");
    }
}

#[tokio::test]
async fn tls_with_a_ca_alone_and_with_a_client_certificate() {
    let etcd = EtcdProcess::start_with_tls(false).unwrap_or_else(|error| panic!("{error}"));
    let ca_only = EtcdOptions {
        cert_file: None,
        key_file: None,
        ..etcd.options()
    };
    let store = EtcdStore::connect(ca_only.clone()).unwrap();
    store.put("/k", "1").await.unwrap();
    let untrusted = EtcdStore::connect(EtcdOptions {
        ca_file: None,
        ..ca_only
    })
    .unwrap();
    let error = untrusted.get("/k").await.unwrap_err();
    assert!(error.to_string().contains("--etcd-cafile"), "{error}");

    let etcd = EtcdProcess::start_with_tls(true).unwrap_or_else(|error| panic!("{error}"));
    EtcdStore::connect(etcd.options())
        .unwrap()
        .put("/k", "1")
        .await
        .unwrap();
    let without = EtcdOptions {
        cert_file: None,
        key_file: None,
        ..etcd.options()
    };
    let error = EtcdStore::connect(without).unwrap().get("/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}
