//! How the node stands and what it knows of its Services, as JSON over HTTP on a Unix socket, for `flannelctl` on the same node. It only tells: nothing
//! can be changed there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path as Segments, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flannel_model::{Explanation, NodeReport, ServiceProtocol, ServicesReport};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// Longest that somebody waits for an answer: a first pass over many Services may be under way.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Questions that wait at the same time.
const QUESTIONS: usize = 8;

/// A question, and where its answer goes.
#[derive(Debug)]
pub enum StatusRequest {
    /// All Services of the node, with the connections of this moment.
    Services(oneshot::Sender<ServicesReport>),
    /// What happens to packets for one address, of one protocol or of all.
    Explain(SocketAddr, Option<ServiceProtocol>, oneshot::Sender<Explanation>),
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StatusSocketError {
    /// Somebody serves it.
    #[error(
        "{0} is served by another process; flannelctl on this node asks that one (is flanneld running twice?)"
    )]
    Served(PathBuf),
    /// A file that is no socket stands there.
    #[error("{0} is no socket; expected a path for --status-socket where nothing else is")]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("cannot listen on {path} for flannelctl (--status-socket)")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the socket, readable by root and its group, and serves it until the process ends. A socket that a former process left is
/// replaced.
///
/// `node` is what the node tells of itself at `/status`.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve_status(
    path: &Path,
    node: watch::Receiver<Option<NodeReport>>,
) -> Result<mpsc::Receiver<StatusRequest>, StatusSocketError> {
    let bind = |source| StatusSocketError::Bind {
        path: path.to_owned(),
        source,
    };
    remove_stale(path)?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(bind)?;
    }
    let listener = UnixListener::bind(path).map_err(bind)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(bind)?;
    let (requests, receiver) = mpsc::channel(QUESTIONS);
    let routes = Router::new()
        .route("/v1/services", get(services))
        .route("/v1/explain/{protocol}/{address}/{port}", get(explain))
        .with_state(requests)
        .merge(Router::new().route("/status", get(status)).with_state(node));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the status socket ended");
        }
    });
    Ok(receiver)
}

fn remove_stale(path: &Path) -> Result<(), StatusSocketError> {
    let Ok(present) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !present.file_type().is_socket() {
        return Err(StatusSocketError::NoSocket(path.to_owned()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(StatusSocketError::Served(path.to_owned()));
    }
    // Where it cannot be removed, binding says why.
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn status(State(node): State<watch::Receiver<Option<NodeReport>>>) -> Response {
    let now = node.borrow().clone();
    match now {
        Some(report) => answer(&report),
        None => {
            let text = "flanneld has only just started, or waits for the network config; see its log\n";
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn services(State(requests): State<mpsc::Sender<StatusRequest>>) -> Response {
    let (answer, wait) = oneshot::channel();
    ask(&requests, StatusRequest::Services(answer), wait).await
}

async fn explain(
    State(requests): State<mpsc::Sender<StatusRequest>>,
    Segments((protocol, address, port)): Segments<(String, String, String)>,
) -> Response {
    let protocol = match protocol.as_str() {
        "any" => Ok(None),
        name => name.to_uppercase().parse().map(Some),
    };
    let (Ok(protocol), Ok(ip), Ok(port)) = (protocol, address.parse::<IpAddr>(), port.parse::<u16>()) else {
        let text = "expected /v1/explain/PROTOCOL/ADDRESS/PORT with tcp, udp, sctp or any\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let (answer, wait) = oneshot::channel();
    let request = StatusRequest::Explain(SocketAddr::new(ip, port), protocol, answer);
    ask(&requests, request, wait).await
}

async fn ask<T: Serialize>(
    requests: &mpsc::Sender<StatusRequest>,
    request: StatusRequest,
    wait: oneshot::Receiver<T>,
) -> Response {
    let unavailable = |text: &'static str| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    if requests.try_send(request).is_err() {
        return unavailable(
            "flanneld programs no Services now: too early, too many questions, or --service-source=none\n",
        );
    }
    match timeout(ANSWER_WITHIN, wait).await {
        Ok(Ok(found)) => answer(&found),
        Ok(Err(_)) => unavailable("flanneld programs no Services (--service-source=none?)\n"),
        Err(_) => unavailable("flanneld is busy with a pass over the Services; try again\n"),
    }
}

fn answer(found: &impl Serialize) -> Response {
    match serde_json::to_string(found) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn fetch(path: &Path, what: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
        let request = format!("GET {what} HTTP/1.1\r\nHost: flanneld\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("flannel-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir.join("flanneld.sock")
    }

    #[tokio::test]
    async fn questions_are_answered() {
        let path = scratch("status");
        let (node, seen) = watch::channel(None);
        let mut requests = serve_status(&path, seen).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o660
        );
        let answering = async {
            match requests.recv().await.unwrap() {
                StatusRequest::Explain(at, protocol, answer) => {
                    assert_eq!(
                        (at.to_string().as_str(), protocol),
                        ("[fd00::a]:80", Some(ServiceProtocol::Udp))
                    );
                    answer.send(Explanation::default()).unwrap();
                }
                other => panic!("{other:?}"),
            }
        };
        let (text, ()) = tokio::join!(fetch(&path, "/v1/explain/udp/fd00::a/80"), answering);
        assert!(
            text.starts_with("HTTP/1.1 200") && text.contains("\"verdict\":[]"),
            "{text}"
        );
        assert!(fetch(&path, "/v1/explain/udp/here/80").await.contains("400"));
        assert!(fetch(&path, "/status").await.contains("503"));
        let report = NodeReport {
            state: "ready".to_owned(),
            peers: 7,
            ..NodeReport::default()
        };
        node.send(Some(report)).unwrap();
        let told = fetch(&path, "/status").await;
        assert!(
            told.contains(r#""state":"ready""#) && told.contains(r#""peers":7"#),
            "{told}"
        );
        drop(requests);
        assert!(fetch(&path, "/v1/services").await.contains("503"));
    }

    #[tokio::test]
    async fn a_socket_is_taken_over_from_the_dead_only() {
        let path = scratch("stale");
        let nobody = || watch::channel(None).1;
        let first = serve_status(&path, nobody()).unwrap();
        assert!(matches!(
            serve_status(&path, nobody()),
            Err(StatusSocketError::Served(_))
        ));
        drop(first);
        let dead = path.with_extension("dead");
        let _ = std::fs::remove_file(&dead);
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        serve_status(&dead, nobody()).unwrap();
        let file = path.with_extension("txt");
        std::fs::write(&file, "mine").unwrap();
        assert!(matches!(
            serve_status(&file, nobody()),
            Err(StatusSocketError::NoSocket(_))
        ));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }
}
