//! Deletes what the CNI plugin cut off, so that no runtime waits for it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flannel_netlink::link::released;
use flannel_netlink::{NetlinkError, RouteConn};

/// Looked at this often without being told, for what a deletion that failed left.
const INTERVAL: Duration = Duration::from_secs(30);
/// Deleting holds the kernel's lock for all devices for some ten milliseconds, in which no container comes or goes. So it begins when
/// nobody has said a word for this long.
const QUIET: Duration = Duration::from_millis(100);
/// Under load without a pause it begins this long after the first word.
const LONGEST: Duration = Duration::from_secs(2);
/// Sockets held at the most; each is an open file.
const MOST_HELD: usize = 256;

/// Listens beside `subnet_file`, where the CNI plugin looks for a daemon, and deletes from then on, first of all what an
/// earlier run left. Where it cannot listen, the plugin deletes by itself.
pub fn start(subnet_file: &Path) {
    let path = subnet_file.with_file_name(released::SOCKET);
    let listening = listen(&path).and_then(|socket| {
        let thread = std::thread::Builder::new().name("reaper".to_owned());
        thread.spawn(move || serve(&socket)).map(drop)
    });
    if let Err(e) = listening {
        let path = path.display();
        tracing::warn!(
            "cannot listen on {path}, so that the CNI plugin deletes devices itself, which takes longer: {e}"
        );
    }
}

fn listen(path: &PathBuf) -> io::Result<UnixDatagram> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    // A daemon that ended leaves its socket, to which nobody listens. Anything else of that name is not ours to remove.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let socket = UnixDatagram::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

fn serve(socket: &UnixDatagram) {
    let mut said = None;
    loop {
        let failed = reap().err().map(|e| e.to_string());
        if let Some(reason) = failed.as_ref().filter(|_| failed != said) {
            tracing::warn!("devices of containers that are gone stay for now: {reason}");
        }
        said = failed;
        // Nobody knows what ails it; the interval stays.
        if wait(socket, INTERVAL).is_err() {
            std::thread::sleep(INTERVAL);
        }
    }
}

fn reap() -> Result<(), NetlinkError> {
    let count = released::reap(&mut RouteConn::open()?)?;
    if count > 0 {
        tracing::debug!(count, "deleted devices of containers that are gone");
    }
    Ok(())
}

/// Until words that came are followed by none for a while, or for `interval` without any. What came with them is closed then: by
/// that time the kernel has destroyed what made closing it slow.
fn wait(socket: &UnixDatagram, interval: Duration) -> io::Result<()> {
    let Some(mut held) = word(socket, interval)? else {
        return Ok(());
    };
    let first = Instant::now();
    while first.elapsed() < LONGEST && held.len() < MOST_HELD {
        match word(socket, QUIET)? {
            Some(more) => held.extend(more),
            None => break,
        }
    }
    Ok(())
}

/// A word, and what came with it. `None` when none came within `patience`.
fn word(socket: &UnixDatagram, patience: Duration) -> io::Result<Option<Vec<OwnedFd>>> {
    socket.set_read_timeout(Some(patience))?;
    match released::hear(socket) {
        Ok(held) => Ok(Some(held)),
        Err(e) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&e.kind()) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/flannel").join(released::SOCKET);
        drop(listen(&path).unwrap());
        let socket = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let plugin = UnixDatagram::unbound().unwrap();
        plugin.connect(&path).unwrap();
        released::tell(&plugin, &[]).unwrap();
        plugin.send(&[1]).unwrap();
        wait(&socket, INTERVAL).unwrap();
        socket.set_nonblocking(true).unwrap();
        assert_eq!(
            socket.recv(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );

        wait(&socket, Duration::from_millis(1)).unwrap();

        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        listen(&file).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }
}
