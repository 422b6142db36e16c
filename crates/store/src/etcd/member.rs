//! The connection to one member of the cluster.
//!
//! Each endpoint has a client of its own. A balanced channel over all of them would send every second call to a dead
//! endpoint, and flannel's default endpoints always hold a dead one (port 4001).

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, KvClient, LeaseClient, WatchClient};
use tokio::sync::Mutex;

use crate::Secret;
use crate::endpoint::Address;
use crate::tls::TlsFiles;

/// HTTP/2 pings while a stream is open find a frozen server or a black hole within 15 s. etcd refuses clients that ping
/// more often than every 5 s (--grpc-keepalive-min-time), or without an open stream.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest message that is read. A page of 1000 ordinary leases is about 300 kB; pages of larger values are shortened.
const DECODE_LIMIT: usize = 64 << 20;

/// The clients of one connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub kv: KvClient,
    pub lease: LeaseClient,
    pub watch: WatchClient,
}

pub(super) struct Member {
    name: String,
    options: ConnectOptions,
    user: Option<(String, Secret)>,
    connection: Mutex<Option<Connection>>,
}

impl Member {
    pub(super) fn new(
        address: &Address,
        tls: &TlsFiles,
        user: Option<(String, Secret)>,
        connect_timeout: Duration,
    ) -> Self {
        let options = ConnectOptions::new()
            .with_connect_timeout(connect_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let options = match address.https {
            true => options.with_tls(tls.options(address.host()).timeout(connect_timeout)),
            false => options,
        };
        Self {
            name: address.to_string(),
            options,
            user,
            connection: Mutex::new(None),
        }
    }

    /// The endpoint as it is shown.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The connection; prepared, and authenticated if there is a user, at the first call.
    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &*slot {
            return Ok(connection.clone());
        }
        let client = self.connect().await?;
        let connection = Connection {
            kv: client.kv_client().max_decoding_message_size(DECODE_LIMIT),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(DECODE_LIMIT),
        };
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// The next call connects (and authenticates) anew.
    pub(super) async fn forget(&self) {
        *self.connection.lock().await = None;
    }

    async fn connect(&self) -> Result<Client, Error> {
        let Some((name, password)) = &self.user else {
            return Client::connect([&self.name], Some(self.options.clone())).await;
        };
        let with_user = self.options.clone().with_user(name, password.expose());
        match Client::connect([&self.name], Some(with_user)).await {
            // A user for a cluster that has no authentication switched on is no error in flannel either.
            Err(Error::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
                tracing::warn!(endpoint = %self.name, "etcd does not ask for authentication; the user name is not used");
                Client::connect([&self.name], Some(self.options.clone())).await
            }
            other => other,
        }
    }
}
