//! Who changes a table: notifications of nf_tables, reduced to the one fact that somebody else touched it.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use super::SUBSYSTEM;
use super::conn::text_of;
use crate::error::NetlinkError;
use crate::wire::Frames;

/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h), as a bit of the mask.
const GROUP: u32 = 1 << (7 - 1);
/// NFT_MSG_NEWGEN: closes a transaction and names no table.
const NEW_GENERATION: u16 = 15;
/// Receive buffer asked for. A burst that does not fit counts as a change.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
const DATAGRAM: usize = 64 * 1024;
/// Datagrams taken at one look, so that a storm cannot hold the caller.
const AT_ONCE: usize = 10_000;

/// A look-out for changes of one table, in both families.
#[derive(Debug)]
pub struct TableWatch {
    socket: Socket,
    table: String,
}

pub(super) fn open_socket() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, GROUP))?;
    Ok(socket)
}

impl TableWatch {
    /// Begins to watch in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn open(table: &str) -> Result<Self, NetlinkError> {
        let socket = open_socket().map_err(|e| NetlinkError::socket(format!("watch table {table}"), &e))?;
        Ok(Self {
            socket,
            table: table.to_owned(),
        })
    }

    /// Whether somebody other than the socket with the port `own` changed the table since the last look, or may have:
    /// notifications that were lost count as well.
    pub fn touched(&self, own: u32) -> bool {
        let mut touched = false;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        for _ in 0..AT_ONCE {
            buffer.clear();
            match self.socket.recv_from(&mut buffer, 0) {
                Ok(_) => touched |= self.concerns_us(&buffer, own),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return touched,
                // ENOBUFS: some were lost
                Err(_) => touched = true,
            }
        }
        true
    }

    fn concerns_us(&self, datagram: &[u8], own: u32) -> bool {
        touches(datagram, own, |table| table == self.table)
    }
}

/// Whether somebody other than the socket with the port `own` changed one of these tables.
pub(super) fn touches(datagram: &[u8], own: u32, is_ours: impl Fn(&str) -> bool) -> bool {
    Frames(datagram).any(|frame| match frame {
        Ok(frame) if frame.kind >> 8 != SUBSYSTEM || frame.kind & 0xff == NEW_GENERATION => false,
        // NFTA_*_TABLE is the first attribute of everything but rules' and sets' own names
        Ok(frame) => frame.port != own && text_of(frame.payload, 1).is_some_and(|table| is_ours(&table)),
        Err(_) => true,
    })
}
