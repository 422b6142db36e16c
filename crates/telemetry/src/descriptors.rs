//! Descriptors that the service manager keeps while the service is down (FDSTORE in sd_notify(3), sd_listen_fds(3)).

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Mutex;

use sd_notify::NotifyState;

/// A message carries at most so many descriptors (SCM_MAX_FD in include/net/scm.h).
const A_MESSAGE: usize = 253;

/// They may be taken once: whoever has them closes them.
static TAKEN: Mutex<bool> = Mutex::new(false);

/// Gives descriptors to the service manager, under `name`, in the place of those that it has under that name.
///
/// # Errors
/// When it does not take the message.
pub fn store_descriptors(name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    forget_descriptors(name);
    for part in descriptors.chunks(A_MESSAGE) {
        sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], part)?;
    }
    Ok(())
}

/// Has the service manager close what it has under `name`. Without one, nothing is there to be closed.
pub fn forget_descriptors(name: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// What the service manager kept for this process, with the names; the first call gets them, later ones nothing.
pub fn stored_descriptors() -> Vec<(String, OwnedFd)> {
    let Ok(mut taken) = TAKEN.lock() else {
        return Vec::new();
    };
    if std::mem::replace(&mut *taken, true) {
        return Vec::new();
    }
    let Ok(descriptors) = sd_notify::listen_fds_with_names() else {
        return Vec::new();
    };
    descriptors
        .map(|(descriptor, name)| {
            // SAFETY: the service manager opened it for this process alone, and they are taken once.
            (name, unsafe { OwnedFd::from_raw_fd(descriptor) })
        })
        .collect()
}
