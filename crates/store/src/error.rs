//! What can go wrong with a store, told so that somebody can act on it.

use std::fmt;

/// What kind of trouble it is; it decides who may try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No endpoint took a connection, or the connection broke.
    Unreachable,
    /// No answer within the deadline. A write may have happened all the same.
    Timeout,
    /// etcd refuses who we are or what we may do.
    Auth,
    /// etcd has lost its leader (quorum); a write may have happened all the same.
    NoLeader,
    /// The options contradict themselves or name a file that cannot be used.
    Config,
    /// Anything else that etcd answered.
    Other,
}

impl ErrorKind {
    /// Whether a write that ended so may nevertheless have happened.
    pub fn is_ambiguous(self) -> bool {
        matches!(self, Self::Unreachable | Self::Timeout | Self::NoLeader)
    }

    fn hint(self) -> Option<&'static str> {
        match self {
            Self::Unreachable => Some("is etcd running and reachable from this node?"),
            Self::Timeout => Some("etcd is overloaded, frozen or cut off; see `etcdctl endpoint status`"),
            Self::Auth => Some("check the etcd user name, the password and the rights of the user's roles"),
            Self::NoLeader => Some("etcd has no quorum; see `etcdctl endpoint status`"),
            Self::Config | Self::Other => None,
        }
    }
}

/// A call that failed: what was tried, where, and why it failed.
///
/// The text holds the innermost cause already, so [`std::error::Error::source`] is empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct StoreError {
    doing: String,
    tried: Vec<Tried>,
    kind: ErrorKind,
    hint: Option<&'static str>,
}

/// One endpoint and what it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tried {
    pub endpoint: String,
    pub reason: String,
}

impl StoreError {
    /// `doing` completes "cannot … etcd", such as `read /coreos.com/network/config from`.
    pub(crate) fn new(doing: &str, kind: ErrorKind, tried: Vec<Tried>) -> Self {
        Self {
            doing: doing.to_owned(),
            tried,
            kind,
            hint: kind.hint(),
        }
    }

    /// Options that cannot work; `problem` is a whole sentence.
    pub(crate) fn config(problem: String) -> Self {
        Self {
            doing: problem,
            tried: Vec::new(),
            kind: ErrorKind::Config,
            hint: None,
        }
    }

    pub(crate) fn with_hint(mut self, hint: Option<&'static str>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The endpoints that were tried, in order.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.tried.iter().map(|tried| tried.endpoint.as_str())
    }

    fn text(&self) -> String {
        if self.tried.is_empty() {
            return self.doing.clone();
        }
        let hint = self.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        format!("cannot {} etcd at {}{hint}", self.doing, Attempts(&self.tried))
    }
}

/// `A, B: reason` when all say the same, else `A: reason, B: reason`.
struct Attempts<'a>(&'a [Tried]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.0.len().saturating_sub(1);
        let same = self.0.windows(2).all(|pair| pair[0].reason == pair[1].reason);
        for (i, Tried { endpoint, reason }) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            if same && i != last {
                write!(f, "{separator}{endpoint}")?;
            } else {
                write!(f, "{separator}{endpoint}: {reason}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(endpoint: &str, reason: &str) -> Tried {
        Tried {
            endpoint: endpoint.to_owned(),
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn the_text_says_what_where_why_and_what_to_check() {
        let error = StoreError::new(
            "read /coreos.com/network/config from",
            ErrorKind::Unreachable,
            vec![tried("http://127.0.0.1:2379", "connection refused")],
        );
        assert_eq!(
            error.to_string(),
            "cannot read /coreos.com/network/config from etcd at http://127.0.0.1:2379: connection refused; \
             is etcd running and reachable from this node?"
        );
    }

    #[test]
    fn equal_reasons_are_told_once() {
        let list = |a, b| Attempts(&[tried("a", a), tried("b", b)]).to_string();
        assert_eq!(list("refused", "refused"), "a, b: refused");
        assert_eq!(list("refused", "timed out"), "a: refused, b: timed out");
    }
}
