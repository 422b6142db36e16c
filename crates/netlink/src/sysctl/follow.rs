//! Words of writes to kernel settings.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;

use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::path_of;

/// Room for some hundred events: one on a file has no name and takes 16 bytes (inotify(7)).
const BUFFER: usize = 4096;

/// Tells when somebody writes to one of a few settings. The kernel does so for writes through the same mount of /proc as ours, so that
/// who must be right looks now and then as well. Files vanish with their device, and new ones of the same name are others:
/// [`follow`](Self::follow) has to be called again then.
#[derive(Debug)]
pub struct Follow {
    queue: AsyncFd<OwnedFd>,
    /// By path below /proc/sys, the number of the watch.
    watched: BTreeMap<String, i32>,
}

impl Follow {
    /// Follows nothing yet.
    ///
    /// # Errors
    /// When no queue can be had: there are `fs.inotify.max_user_instances` for each user. Has to be called inside a tokio runtime
    /// with I/O enabled.
    pub fn new() -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // SAFETY: `OwnedFd` names the same descriptor all its life and closes it only when dropped; nothing takes it out of the
        // `AsyncFd`.
        let queue = unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) }?;
        Ok(Self {
            queue,
            watched: BTreeMap::new(),
        })
    }

    /// Follows these, paths below /proc/sys, and no others. One that is not there is left out.
    pub fn follow(&mut self, names: &BTreeSet<String>) {
        let gone = self.watched.keys().filter(|name| !names.contains(*name));
        let gone: Vec<String> = gone.cloned().collect();
        for name in gone {
            self.forget(&name, None);
        }
        for name in names {
            // The same file has the same number again, which is how a new one is known.
            match inotify::add_watch(self.queue.get_ref(), path_of(name), WatchFlags::MODIFY) {
                Ok(number) => {
                    self.forget(name, Some(number));
                    self.watched.insert(name.clone(), number);
                }
                Err(_) => self.forget(name, None),
            }
        }
    }

    fn forget(&mut self, name: &str, unless: Option<i32>) {
        if let Some(number) = self.watched.get(name).copied()
            && Some(number) != unless
        {
            // One that the kernel has taken away by itself is no loss.
            let _ = inotify::remove_watch(self.queue.get_ref(), number);
            self.watched.remove(name);
        }
    }

    /// Waits until one of them was written to, by whomever, or may have been.
    ///
    /// # Errors
    /// When the kernel does not tell any more.
    pub async fn written(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.queue.readable().await?;
            match ready.try_io(|queue| drain(queue.get_ref())) {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

/// Takes what has come, and answers whether it is more than words of watches that went.
fn drain(queue: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(queue, &mut buffer);
    let mut written = !reader.next()?.events().contains(ReadFlags::IGNORED);
    // Somebody who writes without end is not followed without end.
    for _ in 0..BUFFER {
        match reader.next() {
            Ok(event) => written |= !event.events().contains(ReadFlags::IGNORED),
            Err(Errno::WOULDBLOCK) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}
