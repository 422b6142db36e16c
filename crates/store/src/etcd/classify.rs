//! What an error of the client library means for us.

use std::error::Error as StdError;
use std::io;

use etcd_client::Error;
use tonic::Code;

use crate::ErrorKind;

/// An error, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub kind: ErrorKind,
    /// The innermost cause in a few words.
    pub reason: String,
    /// The call was certainly not sent.
    pub unsent: bool,
    /// Better advice than the kind alone gives.
    pub hint: Option<&'static str>,
}

impl Failure {
    pub(super) fn timeout() -> Self {
        Self {
            kind: ErrorKind::Timeout,
            reason: format!("no answer within {} s", super::CALL_DEADLINE.as_secs()),
            unsent: false,
            hint: None,
        }
    }
}

/// Sorts an error.
pub(super) fn classify(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => of_status(status),
        Error::TransportError(transport) => transport_failure(transport, transport.to_string()),
        other => Failure {
            kind: ErrorKind::Other,
            reason: other.to_string(),
            unsent: false,
            hint: None,
        },
    }
}

/// Whether etcd says that a revision is not kept any more.
pub(super) fn is_compacted(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(s) if s.message().contains("has been compacted"))
}

/// Whether a message was longer than the decode limit (the words are tonic's).
pub(super) fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(s) if s.code() == Code::OutOfRange && s.message().contains("message length too large"))
}

/// Whether etcd says that there is no such lease.
pub(super) fn is_lease_gone(error: &Error) -> bool {
    match error {
        Error::LeaseKeepAliveError(text) => text.contains("lease not found"),
        Error::GRpcStatus(status) => {
            status.code() == Code::NotFound && status.message().contains("lease not found")
        }
        _ => false,
    }
}

/// Whether etcd says that there is a lease of that number already.
pub(super) fn is_lease_there(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(s) if s.message().contains("lease already exists"))
}

fn of_status(status: &tonic::Status) -> Failure {
    let message = status.message().to_owned();
    if let Some(source) = status.source() {
        // The status was made on this side, from a failure of the connection.
        return transport_failure(source, message);
    }
    let kind = match status.code() {
        // etcd answers "user name is empty" as an invalid argument, after authentication was switched on.
        Code::InvalidArgument if message.contains("user name is empty") => ErrorKind::Auth,
        Code::InvalidArgument if message.contains("authentication failed") => ErrorKind::Auth,
        Code::Unauthenticated | Code::PermissionDenied => ErrorKind::Auth,
        Code::Unavailable if message.contains("leader") => ErrorKind::NoLeader,
        Code::Unavailable if message.contains("timed out") => ErrorKind::Timeout,
        Code::DeadlineExceeded => ErrorKind::Timeout,
        Code::Unavailable | Code::Cancelled => ErrorKind::Unreachable,
        _ => ErrorKind::Other,
    };
    let hint = message
        .contains("too many operations")
        .then_some("etcd takes 128 keys in one transaction: write fewer at once or raise its --max-txn-ops");
    let hint = hint.or(message
        .contains("space exceeded")
        .then_some("etcd's database is full: compact and defragment it, then disarm the alarm"));
    Failure {
        kind,
        reason: message.trim_start_matches("etcdserver: ").to_owned(),
        unsent: false,
        hint,
    }
}

/// A failure below gRPC: the innermost cause says most.
fn transport_failure(error: &(dyn StdError + 'static), outer: String) -> Failure {
    let chain = || std::iter::successors(Some(error), |error| (**error).source());
    let io = chain().filter_map(|e| e.downcast_ref::<io::Error>()).last();
    let tls = io.is_some_and(|io| io.kind() == io::ErrorKind::InvalidData);
    let reason = match io {
        Some(io) if tls => io.to_string(),
        Some(io) if io.kind() == io::ErrorKind::TimedOut => "no connection in time".to_owned(),
        Some(io) if io.raw_os_error().is_some() => io.kind().to_string(),
        _ => chain().last().map_or(outer, ToString::to_string),
    };
    Failure {
        kind: ErrorKind::Unreachable,
        reason,
        unsent: chain().any(|e| e.is::<tonic::ConnectError>()),
        hint: tls.then_some(
            "TLS failed: check the scheme of the endpoint, --etcd-cafile and the names in the server's certificate",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: Code, message: &str) -> ErrorKind {
        classify(&Error::GRpcStatus(tonic::Status::new(code, message))).kind
    }

    #[test]
    fn etcds_answers_are_told_apart() {
        for (code, message, expected) in [
            (Code::Unavailable, "etcdserver: no leader", ErrorKind::NoLeader),
            (
                Code::Unavailable,
                "etcdserver: leader changed",
                ErrorKind::NoLeader,
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out",
                ErrorKind::Timeout,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                ErrorKind::Auth,
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                ErrorKind::Auth,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: user name is empty",
                ErrorKind::Auth,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                ErrorKind::Other,
            ),
        ] {
            assert_eq!(kind(code, message), expected, "{message}");
        }
    }
}
