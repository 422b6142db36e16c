//! Changes of tables as they happen, for a reader that waits.

use std::io;

use netlink_sys::Socket;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::watch::{open_socket, touches};
use crate::error::NetlinkError;

const DATAGRAM: usize = 64 * 1024;
/// No socket has this port: changes by anybody count.
const NOBODY: u32 = 0;

/// Begins to watch tables by their names, in all families, in the network namespace of the calling thread. Each word from the
/// receiver means that one of them was changed, by whomever, or may have been. The returned driver has to be polled; it ends when the
/// receiver is dropped or the socket fails.
///
/// # Errors
/// When no socket can be had. Has to be called inside a tokio runtime with I/O enabled.
pub fn follow_tables(
    tables: &[&'static str],
) -> Result<
    (
        impl Future<Output = Result<(), NetlinkError>> + Send + use<>,
        mpsc::Receiver<()>,
    ),
    NetlinkError,
> {
    let what = format!("watch tables {}", tables.join(", "));
    let error = |e: &io::Error| NetlinkError::socket(what.clone(), e);
    let socket = open_socket().map_err(|e| error(&e))?;
    // SAFETY: `Socket` owns its descriptor, names the same one all its life and closes it only when dropped; nothing
    // takes it out of the `AsyncFd`.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
        .map_err(|e| error(&io::Error::from(e)))?;
    // One word is as good as many.
    let (sender, receiver) = mpsc::channel(1);
    let tables = tables.to_vec();
    let driver = async move {
        let result = drive(&socket, &tables, &sender).await;
        result.map_err(|e| NetlinkError::socket(what, &e))
    };
    Ok((driver, receiver))
}

async fn drive(
    socket: &AsyncFd<Socket>,
    tables: &[&'static str],
    sender: &mpsc::Sender<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let touched = tokio::select! {
            touched = receive(socket, &mut buffer, tables) => touched?,
            () = sender.closed() => return Ok(()),
        };
        if touched {
            // Full: the reader has a word to read already.
            let _ = sender.try_send(());
        }
    }
}

/// Whether the next datagram tells of one of the tables; also when some were lost (ENOBUFS).
async fn receive(socket: &AsyncFd<Socket>, buffer: &mut [u8], tables: &[&'static str]) -> io::Result<bool> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            rustix::net::recv(socket.get_ref(), &mut *buffer, RecvFlags::TRUNC).map_err(io::Error::from)
        });
        match received {
            Ok(Ok((read, length))) if length > read => return Ok(true),
            Ok(Ok((read, _))) => {
                let datagram = buffer.get(..read).unwrap_or_default();
                return Ok(touches(datagram, NOBODY, |table| tables.contains(&table)));
            }
            Ok(Err(e)) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                return Ok(true);
            }
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
}
