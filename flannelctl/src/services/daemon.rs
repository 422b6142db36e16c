//! Asking the flanneld of this node, over its Unix socket.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use flannel_model::{Explanation, NodeReport, ServiceProtocol, ServicesReport};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::failure::Failure;

/// Longer than flanneld itself waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Largest answer, in bytes: some 100,000 Services.
const LARGEST: usize = 256 << 20;

/// How the node stands; `None` when no flanneld listens here.
pub async fn node(socket: &Path) -> Result<Option<NodeReport>, Failure> {
    ask(socket, "/status").await
}

/// All Services of this node; `None` when no flanneld listens here.
pub async fn services(socket: &Path) -> Result<Option<ServicesReport>, Failure> {
    ask(socket, "/v1/services").await
}

/// What happens to packets for `at` on this node; `None` when no flanneld listens here.
pub async fn explain(
    socket: &Path,
    at: SocketAddr,
    protocol: Option<ServiceProtocol>,
) -> Result<Option<Explanation>, Failure> {
    let protocol = protocol.map_or_else(|| "any".to_owned(), |p| p.to_string().to_lowercase());
    ask(
        socket,
        &format!("/v1/explain/{protocol}/{}/{}", at.ip(), at.port()),
    )
    .await
}

async fn ask<T: DeserializeOwned>(socket: &Path, what: &str) -> Result<Option<T>, Failure> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(failure(socket, &error.to_string())),
            };
        }
    };
    let answer = timeout(ANSWER_WITHIN, fetch(stream, what)).await;
    let (status, body) = match answer {
        Err(_) => return Err(failure(socket, "no answer in time")),
        Ok(Err(error)) => return Err(failure(socket, &error.to_string())),
        Ok(Ok(answer)) => answer,
    };
    if status != StatusCode::OK {
        return Err(failure(socket, String::from_utf8_lossy(&body).trim()));
    }
    match serde_json::from_slice(&body) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(failure(
            socket,
            &format!("its answer is not understood ({error}); are flanneld and flannelctl of one version?"),
        )),
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn fetch(stream: UnixStream, what: &str) -> Result<(StatusCode, Bytes), AnyError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(what)
        .header(hyper::header::HOST, "flanneld")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await?;
        Ok::<_, AnyError>((status, body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection ends when all was read; what is left then is in the exchange.
        _ = &mut connection => exchange.await,
    }
}

fn failure(socket: &Path, why: &str) -> Failure {
    Failure::Daemon(format!("flanneld at {} gives no answer: {why}", socket.display()))
}
