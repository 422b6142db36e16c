//! Notifications that the kernel sends to everybody who listens, as datagrams.

use std::io;

use netlink_sys::Socket;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime wait for a socket that was bound to its groups and does not block.
///
/// # Errors
/// When the runtime has no I/O.
pub(crate) fn listen(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: `Socket` owns its descriptor, names the same one all its life and closes it only when dropped; nothing
    // takes it out of the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// The length of the next datagram from the kernel; `None` when some were lost (ENOBUFS) or it did not fit.
pub(crate) async fn receive(socket: &AsyncFd<Socket>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            rustix::net::recv(socket.get_ref(), &mut *buffer, RecvFlags::TRUNC).map_err(io::Error::from)
        });
        match received {
            Ok(Ok((read, length))) if length > read => return Ok(None),
            Ok(Ok((read, _))) => return Ok(Some(read)),
            Ok(Err(e)) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                return Ok(None);
            }
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
}
