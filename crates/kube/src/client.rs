//! HTTP to one API server: over TLS with HTTP/2 where the server has it, so that all watches share one connection.

use std::io::Cursor;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::access::{Access, AccessError, KubeOptions};
use crate::error::ApiError;

/// How long a server may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest wait for the head of an answer, and for the next piece of a list.
    pub answer: Duration,
    /// A watch that says nothing for this long is ended and begun again where it stood, which costs one request: API servers
    /// send a bookmark about every minute (k8s.io/apiserver/pkg/storage/cacher/cacher.go, bookmarkFrequency).
    pub silence: Duration,
    /// The server is asked to end a watch after so many seconds, or up to twice as many, as client-go does (five to ten minutes in
    /// tools/cache/reflector.go): the watches of a cluster's nodes then spread over the API servers and do not end all at once.
    pub watch: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(150),
            watch: 300,
        }
    }
}

const CONNECT: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is found in under a minute, by pings (HTTP/2) or probes of TCP: client-go's numbers
/// (k8s.io/apimachinery/pkg/util/net/http.go).
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(15);
/// Longest text of a refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;

type Hyper = HyperClient<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A client of one API server. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    options: KubeOptions,
    patience: Patience,
    session: Mutex<Arc<Session>>,
}

struct Session {
    access: Access,
    hyper: Hyper,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("access", &self.session().access)
            .finish()
    }
}

impl Client {
    /// Reads the credentials. Nothing is sent before the first request, so success says nothing about the server.
    ///
    /// # Errors
    /// Credentials that cannot be read or used.
    pub fn new(options: KubeOptions) -> Result<Self, AccessError> {
        Self::with_patience(options, Patience::default())
    }

    /// The same with other waits.
    ///
    /// # Errors
    /// Credentials that cannot be read or used.
    pub fn with_patience(options: KubeOptions, patience: Patience) -> Result<Self, AccessError> {
        let session = Session::new(Access::load(&options)?)?;
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                patience,
                session: Mutex::new(Arc::new(session)),
            }),
        })
    }

    /// How long the server may take.
    pub(crate) fn patience(&self) -> Patience {
        self.shared.patience
    }

    /// Base address of the server.
    pub fn server(&self) -> String {
        self.session().access.server.to_string()
    }

    /// Its host: a name or an address.
    pub fn server_host(&self) -> Option<String> {
        self.session().access.server.host().map(str::to_owned)
    }

    /// Its address, where it is named by one.
    pub fn server_address(&self) -> Option<IpAddr> {
        self.server_host()?.trim_matches(['[', ']']).parse().ok()
    }

    /// Reads the credentials again and takes fresh connections when they changed. Files that cannot be read leave things as
    /// they are: the next request tells whether they still serve.
    pub(crate) fn refresh(&self) {
        let before = self.session();
        let renewed = Access::load(&self.shared.options).and_then(|access| match access == before.access {
            true => Ok(None),
            false => Session::new(access).map(Some),
        });
        match renewed {
            Ok(None) => {}
            Ok(Some(session)) => {
                tracing::info!("the credentials for the API server were renewed");
                *self.shared.session.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(session);
            }
            Err(error) => {
                tracing::warn!(%error, "the credentials for the API server cannot be read again; the former ones stay in use")
            }
        }
    }

    fn session(&self) -> Arc<Session> {
        let session = self.shared.session.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&session)
    }

    /// Sends a GET and gives the answer when its status is 200; its body is still to come. `what` names it in errors.
    pub(crate) async fn get(&self, target: &str, what: &str) -> Result<Response<Incoming>, ApiError> {
        let session = self.session();
        let request = session.request(target, what)?;
        let server = session.access.server.to_string();
        let within = self.patience().answer;
        let answer = timeout(within, session.hyper.request(request)).await;
        let answer = match answer {
            Err(_) => {
                return Err(ApiError::Timeout {
                    what: what.to_owned(),
                    server,
                    within,
                });
            }
            Ok(Err(source)) => {
                return Err(ApiError::Unreachable {
                    what: what.to_owned(),
                    server,
                    source: Arc::new(source),
                });
            }
            Ok(Ok(answer)) => answer,
        };
        if answer.status().as_u16() == 200 {
            return Ok(answer);
        }
        Err(refusal(answer, what, within).await)
    }
}

async fn refusal(answer: Response<Incoming>, what: &str, within: Duration) -> ApiError {
    let code = answer.status().as_u16();
    let seconds = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let retry_after = seconds
        .and_then(|s| s.trim().parse().ok())
        .map(Duration::from_secs);
    let body = timeout(within, Limited::new(answer.into_body(), MAX_REFUSAL).collect()).await;
    let body = body
        .ok()
        .and_then(Result::ok)
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    ApiError::refused(what, code, &body, retry_after)
}

impl Session {
    fn new(access: Access) -> Result<Self, AccessError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(PING_ANSWER));
        tcp.set_keepalive_interval(Some(PING_ANSWER / 3));
        tcp.set_keepalive_retries(Some(3));
        tcp.set_tcp_user_timeout(Some(PING_EVERY));
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(tls(&access)?)
            .https_or_http();
        let builder = match &access.server_name {
            None => builder,
            Some(name) => {
                let name = ServerName::try_from(name.clone())
                    .map_err(|error| AccessError::Unusable(format!("tls-server-name {name:?}: {error}")))?;
                builder.with_server_name_resolver(FixedServerNameResolver::new(name))
            }
        };
        let connector = builder.enable_http1().enable_http2().wrap_connector(tcp);
        let hyper = HyperClient::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_ANSWER)
            .http2_keep_alive_while_idle(true)
            .build(connector);
        Ok(Self { access, hyper })
    }

    fn request(&self, target: &str, what: &str) -> Result<Request<Empty<Bytes>>, ApiError> {
        let content = |problem: String| ApiError::Content {
            what: what.to_owned(),
            problem,
        };
        let base = self.access.server.to_string();
        let uri: Uri = format!("{}{target}", base.trim_end_matches('/'))
            .parse()
            .map_err(|error| content(format!("not asked for: {error}")))?;
        let mut request = Request::get(uri)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("flanneld/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| content(format!("not asked for: {error}")))?;
        let token = self.access.bearer().map_err(|source| ApiError::Credentials {
            what: what.to_owned(),
            source: Arc::new(source),
        })?;
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                content("not asked for: the token holds characters that no header can".to_owned())
            })?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(request)
    }
}

fn tls(access: &Access) -> Result<ClientConfig, AccessError> {
    let bad = |what: &str, why: String| AccessError::Tls(format!("{what}: {why}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad("protocol versions", error.to_string()))?
        .with_root_certificates(roots(access)?);
    let Some((certificate, key)) = &access.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate).map_err(|why| bad("client-certificate", why))?;
    let key = PrivateKeyDer::from_pem_reader(Cursor::new(key))
        .map_err(|error| bad("client-key", error.to_string()))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| bad("client-certificate and client-key", error.to_string()))
}

fn roots(access: &Access) -> Result<RootCertStore, AccessError> {
    let mut roots = RootCertStore::empty();
    match &access.authorities {
        Some(pem) => {
            let bad = |why: String| AccessError::Tls(format!("certificate-authority: {why}"));
            for certificate in certificates(pem).map_err(bad)? {
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
        }
        // An authority of the system that cannot be read is no reason to refuse the others.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(Cursor::new(pem)).collect();
    match found {
        Ok(list) if list.is_empty() => Err("it holds no PEM block of the kind CERTIFICATE".to_owned()),
        Ok(list) => Ok(list),
        Err(error) => Err(error.to_string()),
    }
}
