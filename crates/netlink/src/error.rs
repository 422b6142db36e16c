//! The one error of this crate: what was asked of the kernel and why it did not happen.

use std::fmt;
use std::io;
use std::time::Duration;

/// A request that the kernel refused or that could not be carried to it.
///
/// The text reads like `add route 10.5.2.0/24: File exists (EEXIST)`, followed by the kernel's own words where it
/// gave some (the extended acknowledgement).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {failure}")]
pub struct NetlinkError {
    /// What was asked, in words: `add route 10.5.2.0/24`.
    pub what: String,
    /// Why it did not happen.
    pub failure: Failure,
}

/// Why a request did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The kernel looked at the request and refused it.
    Refused {
        /// Error number, positive (`errno(3)`).
        errno: i32,
        /// The kernel's explanation; empty when it gave none.
        explanation: String,
    },
    /// The socket or the namespace failed before the kernel looked at the request.
    Socket {
        /// Error number, positive (`errno(3)`).
        errno: i32,
    },
    /// No answer came in time.
    Deadline {
        /// How long the answer was awaited.
        waited: Duration,
    },
    /// The answers did not fit into the socket's receive buffer: whether the request was carried out is unknown.
    Lost,
    /// The kernel's tables changed under every attempt to list them (NLM_F_DUMP_INTR).
    Inconsistent {
        /// How many listings were begun.
        attempts: u32,
    },
    /// The answer was not understood.
    Malformed {
        /// What was wrong with it.
        reason: String,
    },
}

impl NetlinkError {
    /// A failure of the socket or of a system call beside it.
    pub fn socket(what: impl Into<String>, error: &io::Error) -> Self {
        // 0 stands for "no number": io::Error values that were not made by the system carry none.
        let errno = error.raw_os_error().unwrap_or(0);
        Self {
            what: what.into(),
            failure: Failure::Socket { errno },
        }
    }

    /// Something that this kernel does not have, found out without asking for it (EOPNOTSUPP).
    pub fn unsupported(what: impl Into<String>, explanation: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            failure: Failure::Refused {
                errno: rustix::io::Errno::OPNOTSUPP.raw_os_error(),
                explanation: explanation.into(),
            },
        }
    }

    /// An answer of the kernel that could not be read.
    pub fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            failure: Failure::Malformed {
                reason: reason.into(),
            },
        }
    }

    /// The error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self.failure {
            Failure::Refused { errno, .. } | Failure::Socket { errno } => Some(errno),
            Failure::Deadline { .. }
            | Failure::Lost
            | Failure::Inconsistent { .. }
            | Failure::Malformed { .. } => None,
        }
    }

    /// The kind that an [`io::Error`] of the same cause has.
    pub fn kind(&self) -> io::ErrorKind {
        match self.failure {
            Failure::Refused { errno, .. } | Failure::Socket { errno } => {
                io::Error::from_raw_os_error(errno).kind()
            }
            Failure::Deadline { .. } => io::ErrorKind::TimedOut,
            Failure::Lost => io::ErrorKind::OutOfMemory,
            Failure::Inconsistent { .. } => io::ErrorKind::Interrupted,
            Failure::Malformed { .. } => io::ErrorKind::InvalidData,
        }
    }

    /// The object exists already (EEXIST).
    pub fn is_exists(&self) -> bool {
        self.has_errno(rustix::io::Errno::EXIST)
    }

    /// The object, its device or its route is not there (ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL): what a deletion of
    /// something that is gone already reports, depending on the kind of object.
    pub fn is_missing(&self) -> bool {
        use rustix::io::Errno;
        [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::ADDRNOTAVAIL]
            .iter()
            .any(|e| self.has_errno(*e))
    }

    /// Whether the kernel refused with this very number.
    pub fn has_errno(&self, errno: rustix::io::Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errno, explanation } if explanation.is_empty() => errno_text(*errno, f),
            Self::Refused { errno, explanation } => {
                errno_text(*errno, f)?;
                write!(f, ": {explanation}")
            }
            Self::Socket { errno } => {
                f.write_str("netlink socket: ")?;
                errno_text(*errno, f)
            }
            Self::Deadline { waited } => {
                write!(
                    f,
                    "no answer from the kernel within {:.1} s",
                    waited.as_secs_f64()
                )
            }
            Self::Lost => f.write_str("the answer was lost, the receive buffer was full (ENOBUFS)"),
            Self::Inconsistent { attempts } => {
                write!(
                    f,
                    "the kernel's table changed during each of {attempts} attempts to list it"
                )
            }
            Self::Malformed { reason } => write!(f, "unreadable answer from the kernel: {reason}"),
        }
    }
}

/// `File exists (EEXIST)`.
fn errno_text(errno: i32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    match errno_name(errno) {
        Some(name) => write!(f, "{words} ({name})"),
        None => write!(f, "{words} (errno {errno})"),
    }
}

/// The symbolic name of the numbers that netlink requests meet.
fn errno_name(errno: i32) -> Option<&'static str> {
    use rustix::io::Errno;
    const NAMES: [(Errno, &str); 29] = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::SRCH, "ESRCH"),
        (Errno::INTR, "EINTR"),
        (Errno::IO, "EIO"),
        (Errno::NXIO, "ENXIO"),
        (Errno::BADF, "EBADF"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::NODEV, "ENODEV"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NFILE, "ENFILE"),
        (Errno::MFILE, "EMFILE"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::RANGE, "ERANGE"),
        (Errno::MSGSIZE, "EMSGSIZE"),
        (Errno::PROTONOSUPPORT, "EPROTONOSUPPORT"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::AFNOSUPPORT, "EAFNOSUPPORT"),
        (Errno::ADDRINUSE, "EADDRINUSE"),
        (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (Errno::NETDOWN, "ENETDOWN"),
        (Errno::NETUNREACH, "ENETUNREACH"),
        (Errno::NOBUFS, "ENOBUFS"),
        (Errno::HOSTUNREACH, "EHOSTUNREACH"),
        (Errno::NOTCONN, "ENOTCONN"),
    ];
    NAMES
        .iter()
        .find(|(e, _)| e.raw_os_error() == errno)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32, explanation: &str) -> NetlinkError {
        NetlinkError {
            what: "add route 10.5.2.0/24".into(),
            failure: Failure::Refused {
                errno,
                explanation: explanation.into(),
            },
        }
    }

    #[test]
    fn the_text_names_the_request_the_reason_and_the_number() {
        assert_eq!(
            refused(17, "").to_string(),
            "add route 10.5.2.0/24: File exists (EEXIST)"
        );
        let explained = refused(22, "Nexthop has invalid gateway").to_string();
        assert_eq!(
            explained,
            "add route 10.5.2.0/24: Invalid argument (EINVAL): Nexthop has invalid gateway"
        );
    }

    #[test]
    fn kinds_are_those_of_io_errors() {
        assert_eq!(refused(17, "").kind(), io::ErrorKind::AlreadyExists);
        assert!(refused(17, "").is_exists() && !refused(17, "").is_missing());
        assert!(refused(3, "").is_missing() && refused(2, "").is_missing());
    }
}
