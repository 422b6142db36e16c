//! Network namespaces: open, compare, work inside.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::Stat;
use rustix::thread::LinkNameSpaceType;

use crate::error::NetlinkError;
use crate::route_conn::RouteConn;

/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC` (linux/magic.h): the file system that namespaces live in.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// `CLONE_NEWNET` (linux/sched.h): how NS_GET_NSTYPE names a network namespace.
const CLONE_NEWNET: i32 = 0x4000_0000;

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    identity: (u64, u64),
}

/// Why a path did not lead to a usable network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("cannot open the network namespace {path}")]
    Open {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The path leads to something else.
    #[error("{path} is not a network namespace: {what}")]
    NotNetns {
        /// The path.
        path: String,
        /// What it is instead.
        what: &'static str,
    },
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace (CAP_SYS_ADMIN is needed)")]
    Enter {
        /// Why.
        source: io::Error,
    },
    /// The thread cannot leave the namespace again.
    #[error("cannot return from the network namespace")]
    Return {
        /// Why.
        source: io::Error,
    },
    /// Netlink failed inside the namespace.
    #[error("no netlink connection in the network namespace")]
    Netlink {
        /// Why.
        source: NetlinkError,
    },
}

impl NetnsError {
    /// Whether the path does not exist: for a deletion, the namespace is gone already.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/NAME`, `/proc/PID/ns/net`, …).
    ///
    /// # Errors
    /// When the path cannot be opened or is no network namespace: container runtimes leave an empty plain file where
    /// a namespace was unmounted.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let text = || path.display().to_string();
        // O_NONBLOCK: a FIFO at that path must not hang us.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            .map(File::from)
            .map_err(|e| NetnsError::Open {
                path: text(),
                source: e.into(),
            })?;
        let io_error = |source: rustix::io::Errno| NetnsError::Open {
            path: text(),
            source: source.into(),
        };
        let filesystem = rustix::fs::fstatfs(&file).map_err(io_error)?;
        if u64::try_from(filesystem.f_type).ok() != Some(NSFS_MAGIC) {
            return Err(NetnsError::NotNetns {
                path: text(),
                what: "no namespace file",
            });
        }
        if namespace_type(file.as_fd()).map_err(io_error)? != CLONE_NEWNET {
            return Err(NetnsError::NotNetns {
                path: text(),
                what: "a namespace of another kind",
            });
        }
        let stat: Stat = rustix::fs::fstat(&file).map_err(io_error)?;
        Ok(Self {
            file,
            identity: (stat.st_dev, stat.st_ino),
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn own() -> Result<Self, NetnsError> {
        Self::open(OWN)
    }

    /// A new namespace with nothing in it, which goes with this value.
    ///
    /// # Errors
    /// When the caller may not make one.
    pub fn fresh() -> Result<Self, NetnsError> {
        let make = || {
            // SAFETY: only the network namespace is unshared, and only by this thread, which ends here; descriptors stay common.
            let made = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
            made.map_err(|e| NetnsError::Enter { source: e.into() })?;
            Self::own()
        };
        let ended = std::thread::scope(|scope| scope.spawn(make).join());
        ended.unwrap_or_else(|_| {
            let source = io::Error::other("the thread that made it ended early");
            Err(NetnsError::Enter { source })
        })
    }

    /// Whether both are one and the same namespace, by device and inode.
    pub fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Device and inode number, which together name a namespace for as long as it lives.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Runs `work` inside the namespace, on the calling thread, which is back in its own when this returns, also by a panic of
    /// `work`. Other threads stay where they are. (A thread of its own would cost as much as all that is usually done inside.)
    ///
    /// # Errors
    /// When the namespace cannot be entered, or, [`NetnsError::Return`], the way back fails: then the thread must do nothing
    /// more that depends on the namespace.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        self.run_from(&Self::own()?, work)
    }

    /// The same for who has opened the calling thread's namespace already, `own`: that takes longer than going there and back.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn run_from<T>(&self, own: &Self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let refused = |e: rustix::io::Errno| NetnsError::Enter { source: e.into() };
        enter(&self.file).map_err(refused)?;
        let back = Back(Some(&own.file));
        let result = work();
        back.now().map_err(|e| NetnsError::Return { source: e.into() })?;
        Ok(result)
    }

    /// Opens an rtnetlink connection that is bound to the namespace; it may be used from any thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no socket can be had in it.
    pub fn connect(&self) -> Result<RouteConn, NetnsError> {
        self.run(RouteConn::open)?
            .map_err(|source| NetnsError::Netlink { source })
    }
}

/// The way back into the thread's own namespace.
struct Back<'a>(Option<&'a File>);

impl Back<'_> {
    fn now(mut self) -> rustix::io::Result<()> {
        self.0.take().map_or(Ok(()), enter)
    }
}

impl Drop for Back<'_> {
    /// In a panic: the thread may be of use to somebody still.
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            let _ = enter(own);
        }
    }
}

fn enter(namespace: &File) -> rustix::io::Result<()> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Asks a namespace file what kind of namespace it is.
fn namespace_type(fd: BorrowedFd<'_>) -> rustix::io::Result<i32> {
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours; its result is the return value, as
    // `NamespaceType` says (ioctl_ns(2)).
    unsafe { rustix::ioctl::ioctl(fd, NamespaceType) }
}

/// The request NS_GET_NSTYPE of ioctl_ns(2).
struct NamespaceType;

// SAFETY: the request reads and writes no memory, so the null pointer is never followed, and the output is made of the
// return value alone.
unsafe impl rustix::ioctl::Ioctl for NamespaceType {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        // NSIO is 0xb7 (linux/nsfs.h).
        rustix::ioctl::opcode::none(0xb7, 0x3)
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut rustix::ffi::c_void,
    ) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_namespaces_are_taken() {
        assert!(matches!(
            Netns::open("/proc/self/ns/uts"),
            Err(NetnsError::NotNetns { .. })
        ));
        assert!(matches!(
            Netns::open("/etc/hostname"),
            Err(NetnsError::NotNetns { .. })
        ));
        assert!(matches!(
            Netns::open("/dev/null"),
            Err(NetnsError::NotNetns { .. })
        ));
        assert!(
            Netns::open("/run/netns/there-is-no-such-namespace")
                .unwrap_err()
                .is_missing()
        );
    }

    #[test]
    fn the_same_namespace_is_known_again_by_another_path() {
        let own = Netns::own().unwrap();
        assert!(own.is_same(&Netns::open("/proc/self/ns/net").unwrap()));
    }
}
