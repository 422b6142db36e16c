//! The connection to one member of the cluster.
//!
//! Each endpoint has a client of its own. A balanced channel over all of them would send every second call to a dead
//! endpoint, and flannel's default endpoints always hold a dead one (port 4001).

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::classify::classify;
use crate::credentials::{Credentials, Material, Version};
use crate::endpoint::Address;

/// HTTP/2 pings while a stream is open find a frozen server or a black hole within 15 s. etcd refuses clients that ping
/// more often than every 5 s (--grpc-keepalive-min-time), or without an open stream.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Replaced files that etcd does not take are tried again this often: its own half of a rotation may come later.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Longest message that is read: ten times what 20,000 ordinary leases take. Answers with larger values are asked for in pages.
pub(super) const DECODE_LIMIT: usize = 64 << 20;

/// The clients of one connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub kv: KvClient,
    pub lease: LeaseClient,
    pub watch: WatchClient,
    pub maintenance: MaintenanceClient,
}

pub(super) struct Member {
    address: Address,
    name: String,
    credentials: Arc<Credentials>,
    connect_timeout: Duration,
    connection: Mutex<Option<Open>>,
}

/// A connection, and the state of the credentials' files that it was made or kept with.
struct Open {
    connection: Connection,
    version: Version,
    /// Files that etcd did not take, and when they are tried again.
    refused: Option<(Version, Instant)>,
}

impl Open {
    /// Whether files that are not those in use are to be tried now.
    fn is_due(&self, files: &Version) -> bool {
        match &self.refused {
            Some((refused, again)) if refused == files => *again <= Instant::now(),
            _ => self.version != *files,
        }
    }
}

impl Member {
    pub(super) fn new(address: Address, credentials: Arc<Credentials>, connect_timeout: Duration) -> Self {
        Self {
            name: address.to_string(),
            address,
            credentials,
            connect_timeout,
            connection: Mutex::new(None),
        }
    }

    /// The endpoint as it is shown.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is reached by TLS without a certificate of ours.
    pub(super) fn is_reached_without_certificate(&self) -> bool {
        self.address.https && !self.credentials.has_certificate()
    }

    /// The connection; prepared, and authenticated if there is a user, at the first call. When a certificate, a key or the
    /// password was replaced on disk, a new connection takes its place as soon as it is known to work.
    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        let mut slot = self.connection.lock().await;
        let Some(open) = &mut *slot else {
            let open = self.open().await?.0;
            let connection = open.connection.clone();
            *slot = Some(open);
            return Ok(connection);
        };
        let version = self.credentials.version();
        if open.is_due(&version) {
            match self.open_proven().await {
                Ok(proven) => {
                    tracing::info!(
                        endpoint = self.name,
                        "the credentials for etcd were replaced and are in use"
                    );
                    *open = proven;
                }
                Err(error) => self.refuse(open, version, &error),
            }
        }
        Ok(open.connection.clone())
    }

    /// Goes on with what was there before, and says so once.
    fn refuse(&self, open: &mut Open, version: Version, error: &Error) {
        if open.refused.as_ref().is_none_or(|(known, _)| *known != version) {
            tracing::warn!(
                endpoint = self.name,
                reason = classify(error).reason,
                "the credentials for etcd were replaced, but etcd does not take them; those from before stay in use, \
                 the new ones are tried again"
            );
        }
        open.refused = Some((version, Instant::now() + TRY_AGAIN));
    }

    /// The next call connects (and authenticates) anew.
    pub(super) async fn forget(&self) {
        *self.connection.lock().await = None;
    }

    async fn open(&self) -> Result<(Open, Client), Error> {
        let material = self.credentials.fresh();
        let client = self.connect(&material).await?;
        let connection = Connection {
            kv: client.kv_client().max_decoding_message_size(DECODE_LIMIT),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(DECODE_LIMIT),
            maintenance: client.maintenance_client(),
        };
        let version = material.version().clone();
        let open = Open {
            connection,
            version,
            refused: None,
        };
        Ok((open, client))
    }

    /// A connection over which etcd answered. Making one sends nothing by itself.
    async fn open_proven(&self) -> Result<Open, Error> {
        let (open, client) = self.open().await?;
        match client.maintenance_client().status().await {
            Ok(_) => Ok(open),
            // It knows us; this call just is not ours to make.
            Err(Error::GRpcStatus(status)) if status.code() == tonic::Code::PermissionDenied => Ok(open),
            Err(error) => Err(error),
        }
    }

    fn options(&self, material: &Material) -> ConnectOptions {
        let options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        match self.address.https {
            true => options.with_tls(material.tls(self.address.host()).timeout(self.connect_timeout)),
            false => options,
        }
    }

    async fn connect(&self, material: &Material) -> Result<Client, Error> {
        let options = self.options(material);
        let Some((name, password)) = material.user() else {
            return Client::connect([&self.name], Some(options)).await;
        };
        let with_user = options.clone().with_user(name, password.expose());
        match Client::connect([&self.name], Some(with_user)).await {
            // A user for a cluster that has no authentication switched on is no error in flannel either.
            Err(Error::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
                tracing::warn!(endpoint = %self.name, "etcd does not ask for authentication; the user name is not used");
                Client::connect([&self.name], Some(options)).await
            }
            other => other,
        }
    }
}
