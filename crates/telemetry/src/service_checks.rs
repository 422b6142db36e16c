//! Health checks of load balancers: on a port of its own for each Service, whether this node has endpoints for it.
//!
//! The answers are kube-proxy's: status 200 with endpoints and 503 without, whatever path is asked for.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::task::JoinHandle;

/// Endpoints of a Service on this node: the weight that a load balancer may give to it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is answered for one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCheck {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many of its endpoints on this node are ready.
    pub local_endpoints: usize,
    /// Whether the node has programmed what it was told last.
    pub programmed: bool,
}

/// Why a check cannot be answered.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the healthCheckNodePort of Service {service}; is the port taken?")]
pub struct CheckError {
    address: SocketAddr,
    service: String,
    source: std::io::Error,
}

/// The listeners, one an address and port.
#[derive(Debug, Default)]
pub struct ServiceChecks {
    servers: BTreeMap<SocketAddr, Server>,
}

#[derive(Debug)]
struct Server {
    answer: Arc<RwLock<ServiceCheck>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServiceChecks {
    /// Listens exactly where `wanted` says and answers what it says; a listener that goes on is not interrupted. To be called
    /// within a runtime.
    ///
    /// # Errors
    /// One for each address that cannot be bound; all others are served.
    pub fn set(&mut self, wanted: BTreeMap<SocketAddr, ServiceCheck>) -> Vec<CheckError> {
        self.servers.retain(|address, _| wanted.contains_key(address));
        let mut errors = Vec::new();
        for (address, check) in wanted {
            if let Some(server) = self.servers.get(&address).filter(|s| !s.task.is_finished()) {
                *server.answer.write().unwrap_or_else(PoisonError::into_inner) = check;
                continue;
            }
            let service = format!("{}/{}", check.namespace, check.name);
            match Server::start(address, check) {
                Ok(server) => drop(self.servers.insert(address, server)),
                Err(source) => errors.push(CheckError {
                    address,
                    service,
                    source,
                }),
            }
        }
        errors
    }
}

impl Server {
    fn start(address: SocketAddr, check: ServiceCheck) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let answer = Arc::new(RwLock::new(check));
        let routes = Router::new().fallback(respond).with_state(answer.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                tracing::error!(%error, %address, "the health check of a Service ended");
            }
        });
        Ok(Self { answer, task })
    }
}

async fn respond(State(answer): State<Arc<RwLock<ServiceCheck>>>) -> Response {
    let check = answer.read().unwrap_or_else(PoisonError::into_inner).clone();
    let status = if check.local_endpoints > 0 && check.programmed {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    // names are DNS labels: nothing in them needs escaping
    let body = format!(
        "{{\"service\":{{\"namespace\":\"{}\",\"name\":\"{}\"}},\"localEndpoints\":{},\"serviceProxyHealthy\":{}}}\n",
        check.namespace, check.name, check.local_endpoints, check.programmed
    );
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        // a connection that outlived its listener would go on with the last answer
        (header::CONNECTION, HeaderValue::from_static("close")),
        (WEIGHT, HeaderValue::from(check.local_endpoints)),
    ];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn check(local_endpoints: usize) -> ServiceCheck {
        ServiceCheck {
            namespace: "shop".into(),
            name: "web".into(),
            local_endpoints,
            programmed: true,
        }
    }

    async fn ask(address: SocketAddr) -> std::io::Result<String> {
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
            stream.write_all(b"GET /any HTTP/1.1\r\nHost: node\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn answers_follow_the_endpoints_and_listeners_the_services() {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, other) = (free(), free());
        let mut checks = ServiceChecks::default();
        assert!(checks.set([(address, check(2))].into()).is_empty());
        let text = ask(address).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{text}");
        let body =
            r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#;
        assert!(text.ends_with(&format!("\r\n\r\n{body}\n")), "{text}");
        assert!(checks.set([(address, check(0))].into()).is_empty());
        let text = ask(address).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        let unhealthy = ServiceCheck {
            programmed: false,
            ..check(1)
        };
        checks.set([(address, unhealthy)].into());
        assert!(ask(address).await.unwrap().starts_with("HTTP/1.1 503 "));
        checks.set([(other, check(1))].into());
        tokio::task::yield_now().await;
        assert!(ask(other).await.is_ok());
        assert!(ask(address).await.is_err(), "it listens on");
    }

    #[tokio::test]
    async fn a_taken_port_is_named_and_harms_no_other() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut checks = ServiceChecks::default();
        let errors = checks.set([(address, check(1)), (free, check(1))].into());
        assert_eq!(errors.len(), 1);
        let text = errors[0].to_string();
        assert!(
            text.contains(&address.to_string()) && text.contains("shop/web"),
            "{text}"
        );
        assert!(ask(free).await.is_ok());
        drop(taken);
        assert!(
            checks
                .set([(address, check(1)), (free, check(1))].into())
                .is_empty()
        );
    }
}
