//! Why a request to the API server failed.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

/// Longest excerpt of a server's message, in characters.
const EXCERPT: usize = 300;

/// Why a request failed. The text names the request; what to do about a refusal stands in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// No connection, or it broke.
    #[error("{what}: {server} cannot be reached")]
    Unreachable {
        /// The request.
        what: String,
        /// Base address of the server.
        server: String,
        /// Why.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{what}: {server} gave no answer within {} s", within.as_secs())]
    Timeout {
        /// The request.
        what: String,
        /// Base address of the server.
        server: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// The server refused, with an HTTP status or in a watch.
    #[error("{what}: HTTP {code}{reason}: {message}{hint}", hint = hint(*.code), reason = spaced(.reason))]
    Refused {
        /// The request.
        what: String,
        /// HTTP status code.
        code: u16,
        /// Machine-readable reason, such as `Expired`; may be empty.
        reason: String,
        /// What the server says.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The answer is not what the API promises.
    #[error("{what}: the answer is {problem}")]
    Content {
        /// The request.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server stands before what it said earlier: its storage was restored from a backup.
    #[error(
        "{what}: the server went back from resource version {before} to {now}: restored from a backup? Reading everything again"
    )]
    WentBack {
        /// The request.
        what: String,
        /// The version seen before.
        before: u64,
        /// The version of now.
        now: u64,
    },
    /// The credentials cannot be read.
    #[error("{what}: no credentials")]
    Credentials {
        /// The request.
        what: String,
        /// Why.
        source: Arc<crate::AccessError>,
    },
}

/// `Status` of the API (k8s.io/apimachinery/pkg/apis/meta/v1/types.go), as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) message: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) code: Option<u16>,
    pub(crate) details: Option<StatusDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatusDetails {
    pub(crate) retry_after_seconds: Option<u64>,
}

impl ApiError {
    /// A refusal from what the server sent along: a `Status`, or any text.
    pub(crate) fn refused(what: &str, code: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let status: Status = serde_json::from_slice(body).unwrap_or_default();
        let message = status
            .message
            .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
        let of_body = status.details.and_then(|d| d.retry_after_seconds);
        Self::Refused {
            what: what.to_owned(),
            code: status.code.filter(|_| code == 200).unwrap_or(code),
            reason: status.reason.unwrap_or_default(),
            message: message.chars().take(EXCERPT).collect(),
            retry_after: retry_after.or(of_body.map(Duration::from_secs)),
        }
    }

    /// Whether the resource version that was asked for is gone or not there yet, so that only a new list helps.
    pub(crate) fn is_expired(&self) -> bool {
        match self {
            Self::Refused {
                code,
                reason,
                message,
                ..
            } => {
                *code == 410
                    || matches!(reason.as_str(), "Expired" | "Gone" | "ResourceExpired")
                    // A server behind the one that was read before, or a restored backup.
                    || (*code == 504 && message.contains("Too large resource version"))
            }
            Self::WentBack { .. } => true,
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Content { .. }
            | Self::Credentials { .. } => false,
        }
    }

    /// Whether the server does not know the collection.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// How long the server wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Content { .. }
            | Self::WentBack { .. }
            | Self::Credentials { .. } => None,
        }
    }
}

fn spaced(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" {reason}")
    }
}

/// What an operator can do about a status code.
fn hint(code: u16) -> &'static str {
    match code {
        401 => "; the token or certificate is not (or no longer) valid",
        403 => {
            "; the account needs the verbs get, list and watch (docs/services-kubernetes.md has the ClusterRole)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_the_servers_words() {
        let body =
            br#"{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}"#;
        let error = ApiError::refused("watch Services", 410, body, None);
        assert!(error.is_expired());
        assert_eq!(error.to_string(), "watch Services: HTTP 410 Expired: too old");
        let error = ApiError::refused(
            "list Services",
            429,
            br#"{"details":{"retryAfterSeconds":7}}"#,
            None,
        );
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        let error = ApiError::refused("list Services", 502, b"<html>bad gateway</html>", None);
        assert!(error.to_string().contains("bad gateway") && !error.is_expired());
        let error = ApiError::refused("list Services", 403, b"{}", None);
        assert!(error.to_string().contains("ClusterRole"), "{error}");
        let ahead =
            br#"{"message":"Too large resource version: 9, current: 3","reason":"Timeout","code":504}"#;
        assert!(ApiError::refused("list Services", 504, ahead, None).is_expired());
    }
}
