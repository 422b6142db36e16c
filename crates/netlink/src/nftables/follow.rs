//! Changes of tables as they happen, for a reader that waits.

use std::io;

use netlink_sys::Socket;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::watch::{open_socket, touches};
use crate::error::NetlinkError;
use crate::multicast;

const DATAGRAM: usize = 64 * 1024;
/// No socket has this port: changes by anybody count.
const NOBODY: u32 = 0;

/// Begins to watch tables by their names, in all families, in the network namespace of the calling thread. Each word from the
/// receiver means that one of them was changed, by whomever but the socket with the port `own`, or may have been. The returned driver
/// has to be polled; it ends when the receiver is dropped or the socket fails.
///
/// # Errors
/// When no socket can be had. Has to be called inside a tokio runtime with I/O enabled.
pub fn follow_tables(
    tables: &[&'static str],
    own: Option<u32>,
) -> Result<
    (
        impl Future<Output = Result<(), NetlinkError>> + Send + use<>,
        mpsc::Receiver<()>,
    ),
    NetlinkError,
> {
    let own = own.unwrap_or(NOBODY);
    let what = format!("watch tables {}", tables.join(", "));
    let error = |e: &io::Error| NetlinkError::socket(what.clone(), e);
    let socket = open_socket().map_err(|e| error(&e))?;
    let socket = multicast::listen(socket).map_err(|e| error(&e))?;
    // One word is as good as many.
    let (sender, receiver) = mpsc::channel(1);
    let tables = tables.to_vec();
    let driver = async move {
        let result = drive(&socket, &tables, own, &sender).await;
        result.map_err(|e| NetlinkError::socket(what, &e))
    };
    Ok((driver, receiver))
}

async fn drive(
    socket: &AsyncFd<Socket>,
    tables: &[&'static str],
    own: u32,
    sender: &mpsc::Sender<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = tokio::select! {
            received = multicast::receive(socket, &mut buffer) => received?,
            () = sender.closed() => return Ok(()),
        };
        // What was lost may have told of them.
        let touched = length.is_none_or(|length| {
            let datagram = buffer.get(..length).unwrap_or_default();
            touches(datagram, own, |table| tables.contains(&table))
        });
        if touched {
            // Full: the reader has a word to read already.
            let _ = sender.try_send(());
        }
    }
}
