//! `/healthz` and `/readyz` over HTTP, with flannel's answers, and `/metrics`.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::{CONTENT_TYPE, Metrics};

/// Whether the daemon is ready, and if not, why. Clones share one state.
#[derive(Debug, Clone)]
pub struct Health(Arc<RwLock<Option<String>>>);

/// Why the endpoints cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for /healthz, /readyz and /metrics; is the port taken? (--healthz-ip, --healthz-port)"
)]
pub struct ServeError {
    address: SocketAddr,
    source: std::io::Error,
}

impl Health {
    /// Not ready, because of `reason`.
    pub fn starting(reason: &str) -> Self {
        Self(Arc::new(RwLock::new(Some(reason.to_owned()))))
    }

    /// Ready from now on.
    pub fn set_ready(&self) {
        self.set(None);
    }

    /// Not ready, because of `reason`.
    pub fn set_waiting(&self, reason: &str) {
        self.set(Some(reason.to_owned()));
    }

    fn set(&self, reason: Option<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    fn reason(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Binds `address` and serves the endpoints until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, health: Health, metrics: Metrics) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError { address, source })?;
    let routes = Router::new()
        .route("/healthz", get(|| async { "flanneld is running\n" }))
        .route("/readyz", get(readyz))
        .with_state(health)
        .merge(Router::new().route("/metrics", get(scrape)).with_state(metrics));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the health endpoints ended");
        }
    });
    Ok(())
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics.text().await)
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    match health.reason() {
        None => (StatusCode::OK, "flanneld is ready\n".to_owned()),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("flanneld is not ready yet: {reason}\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readiness_comes_and_goes() {
        let health = Health::starting("no lease");
        let (status, text) = readyz(State(health.clone())).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("no lease"));
        health.set_ready();
        assert_eq!(readyz(State(health.clone())).await.0, StatusCode::OK);
        health.set_waiting("etcd is away");
        assert_eq!(readyz(State(health)).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
