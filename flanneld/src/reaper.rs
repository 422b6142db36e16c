//! Deletes what the CNI plugin cut off, so that no runtime waits for it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_netlink::link::released;
use flannel_netlink::{NetlinkError, RouteConn};
use rustix::net::RecvFlags;

/// Looked at this often without being told, for what a deletion that failed left.
const INTERVAL: Duration = Duration::from_secs(30);

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
    socket.set_read_timeout(Some(INTERVAL))?;
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
        wait(socket);
    }
}

fn reap() -> Result<(), NetlinkError> {
    let count = released::reap(&mut RouteConn::open()?)?;
    if count > 0 {
        tracing::debug!(count, "deleted devices of containers that are gone");
    }
    Ok(())
}

/// Until the next word, or for the interval; the words that came meanwhile mean the same.
fn wait(socket: &UnixDatagram) {
    let mut word = [0; 8];
    match socket.recv(&mut word) {
        Ok(_) => while rustix::net::recv(socket, &mut word, RecvFlags::DONTWAIT).is_ok() {},
        Err(e) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&e.kind()) => {}
        // Nobody knows what ails it; the interval stays.
        Err(_) => std::thread::sleep(INTERVAL),
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
        plugin.send(&[1]).unwrap();
        plugin.send(&[1]).unwrap();
        wait(&socket);
        socket.set_nonblocking(true).unwrap();
        assert_eq!(
            socket.recv(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );

        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        listen(&file).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }
}
