//! Notifications of changes to links, addresses, routes and neighbours of both families.
//!
//! Notifications can be lost, so a reader that must be right lists the objects anew now and then. Loss is told, too ([`Change::Overrun`]).

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteType;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::conn::Reply;
use crate::error::NetlinkError;
use crate::fdb::{FdbEntry, read_entry};
use crate::link::decode::{HEADER, NEW_LINK, number, text};
use crate::multicast;
use crate::neighbour::{Neighbour, read_neighbour};
use crate::route::{Route, read_route};
use crate::route_conn::parse;
use crate::wire::{Frames, attributes};

/// Multicast groups (RTNLGRP_*): link 1, neighbour 3, IPv4 address 5, IPv4 route 7, IPv6 address 9, IPv6 route 11; bit n − 1
/// of the mask.
const GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10;
/// Those of links and addresses alone.
const INTERFACES: u32 = 1 | 1 << 4 | 1 << 8;
/// `RTM_DELLINK` (linux/rtnetlink.h).
const DEL_LINK: u16 = 17;
/// `IFLA_IFNAME` (linux/if_link.h).
const IFLA_IFNAME: u16 = 3;
/// Receive buffer asked for. A burst that does not fit is told as an overrun.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Bytes for one notification; the largest are links with many virtual functions.
const DATAGRAM: usize = 64 * 1024;
/// Changes that wait for a slow reader. More are told as one overrun.
const QUEUE: usize = 1024;

/// Something changed in the kernel, by whomever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A link appeared, vanished or changed.
    Link {
        /// Index of the link.
        ifindex: u32,
        /// Its name; empty when the kernel does not tell.
        name: String,
        /// It vanished.
        deleted: bool,
    },
    /// An address came or went.
    Address {
        /// Index of the link.
        ifindex: u32,
        /// It went.
        deleted: bool,
    },
    /// A route came or went. One that takes another's place only comes.
    Route {
        /// The route.
        route: Route,
        /// It went.
        deleted: bool,
    },
    /// A neighbour came, went or changed.
    Neighbour {
        /// What is known of it now.
        neighbour: Neighbour,
        /// It went.
        deleted: bool,
    },
    /// An entry of a forwarding table came, went or changed.
    Fdb {
        /// What it is now.
        entry: FdbEntry,
        /// It went.
        deleted: bool,
    },
    /// Notifications were lost: everything has to be looked at again.
    Overrun,
}

/// Begins to watch the network namespace of the calling thread. Changes from this moment on arrive, provided that the
/// returned driver is polled; it ends when the receiver is dropped or the socket fails.
///
/// # Errors
/// When no socket can be had. Has to be called inside a tokio runtime with I/O enabled.
pub fn watch_changes() -> Result<
    (
        impl Future<Output = Result<(), NetlinkError>> + Send + use<>,
        mpsc::Receiver<Change>,
    ),
    NetlinkError,
> {
    watch_groups(GROUPS)
}

/// The same, of links and addresses alone: with thousands of peers, most of the rest is routes and neighbours.
///
/// # Errors
/// As [`watch_changes`].
pub fn watch_interfaces() -> Result<
    (
        impl Future<Output = Result<(), NetlinkError>> + Send + use<>,
        mpsc::Receiver<Change>,
    ),
    NetlinkError,
> {
    watch_groups(INTERFACES)
}

fn watch_groups(
    groups: u32,
) -> Result<
    (
        impl Future<Output = Result<(), NetlinkError>> + Send + use<>,
        mpsc::Receiver<Change>,
    ),
    NetlinkError,
> {
    let error = |e: &io::Error| NetlinkError::socket("watch network changes", e);
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(|e| error(&e))?;
    // SO_RCVBUFFORCE needs CAP_NET_ADMIN; a smaller buffer only means more overruns.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
    socket.set_non_blocking(true).map_err(|e| error(&e))?;
    socket.bind(&SocketAddr::new(0, groups)).map_err(|e| error(&e))?;
    let socket = multicast::listen(socket).map_err(|e| error(&e))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let driver = async move {
        Watch {
            socket,
            sender,
            missed: false,
        }
        .drive()
        .await
        .map_err(|e| error(&e))
    };
    Ok((driver, receiver))
}

struct Watch {
    socket: AsyncFd<Socket>,
    sender: mpsc::Sender<Change>,
    /// The queue was full; the reader has to be told when there is room again.
    missed: bool,
}

impl Watch {
    async fn drive(mut self) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            if self.missed {
                let Ok(room) = self.sender.reserve().await else {
                    return Ok(());
                };
                room.send(Change::Overrun);
                self.missed = false;
            }
            let length = tokio::select! {
                received = multicast::receive(&self.socket, &mut buffer) => received?,
                () = self.sender.closed() => return Ok(()),
            };
            match length {
                Some(length) => self.tell(&buffer[..length]),
                None => self.queue(Change::Overrun),
            }
        }
    }

    fn tell(&mut self, datagram: &[u8]) {
        for frame in Frames(datagram) {
            match frame {
                Ok(frame) => {
                    if let Some(change) = read_change(&Reply::from(&frame)) {
                        self.queue(change);
                    }
                }
                // What cannot be read may have been anything.
                Err(_) => self.queue(Change::Overrun),
            }
        }
    }

    fn queue(&mut self, change: Change) {
        // A closed queue is noticed by the loop.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.sender.try_send(change) {
            self.missed = true;
        }
    }
}

/// What a notification tells; `None` for what does not concern us.
fn read_change(notification: &Reply) -> Option<Change> {
    use RouteNetlinkMessage as M;
    if [NEW_LINK, DEL_LINK].contains(&notification.kind) {
        return link_change(notification);
    }
    // A message that cannot be read counts as a loss: it may have concerned us.
    let Ok(message) = parse(notification) else {
        return Some(Change::Overrun);
    };
    let deleted = matches!(message, M::DelAddress(_) | M::DelRoute(_) | M::DelNeighbour(_));
    match &message {
        M::NewAddress(m) | M::DelAddress(m) => Some(Change::Address {
            ifindex: m.header.index,
            deleted,
        }),
        M::NewNeighbour(_) | M::DelNeighbour(_) => neighbour_change(&message, deleted),
        M::NewRoute(m) | M::DelRoute(m) if m.header.kind != RouteType::Broadcast => {
            let route = read_route(&message)?;
            Some(Change::Route { route, deleted })
        }
        _ => None,
    }
}

/// Each pod that comes or goes is told of a dozen times, in messages of some sixty attributes, of which the name is enough.
fn link_change(notification: &Reply) -> Option<Change> {
    let Some((header, rest)) = notification.payload.split_at_checked(HEADER) else {
        return Some(Change::Overrun);
    };
    // Bridges report their ports in the same group under their own family; AF_UNSPEC is 0.
    if header.first() != Some(&0) {
        return None;
    }
    let name = attributes(rest).find_map(|(kind, value)| (kind == IFLA_IFNAME).then(|| text(value)));
    Some(Change::Link {
        ifindex: header.get(4..8).and_then(number).unwrap_or_default(),
        name: name.unwrap_or_default(),
        deleted: notification.kind == DEL_LINK,
    })
}

/// Entries of bridges, and of VXLAN links without an outer destination, are nobody's business here.
fn neighbour_change(message: &RouteNetlinkMessage, deleted: bool) -> Option<Change> {
    let entry = read_entry(message).map(|entry| Change::Fdb { entry, deleted });
    let neighbour = || {
        Some(Change::Neighbour {
            neighbour: read_neighbour(message)?,
            deleted,
        })
    };
    entry.or_else(neighbour)
}
