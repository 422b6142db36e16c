//! The UDP socket: batches of datagrams and trains of equal ones (UDP_SEGMENT, UDP_GRO), with fallbacks.

mod message;
mod receive;
mod send;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::offloads::Offloads;

pub use receive::{Datagram, ReceiveBatch};
pub use send::{Outgoing, send_all};

/// Socket buffers in bytes. The kernel's default of 212,992 holds about 90 full packets; measured on two nodes of one machine, large
/// buffers are worth 1.6 times the throughput.
const BUFFER: usize = 7 << 20;

/// A bound socket that never blocks.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    local: SocketAddr,
    /// Trains go out in one call. Turned off for good when the device behind the route cannot.
    trains: AtomicBool,
    receives_trains: bool,
}

impl Socket {
    /// Binds `count` sockets to one address. Several share the port, and the kernel spreads peers among them.
    ///
    /// # Errors
    /// The kernel's, such as an address that is in use.
    pub fn bind(address: SocketAddr, count: usize, wanted: Offloads) -> io::Result<Vec<Self>> {
        (0..count.max(1))
            .map(|_| Self::bind_one(address, count > 1, wanted))
            .collect()
    }

    fn bind_one(address: SocketAddr, shared: bool, wanted: Offloads) -> io::Result<Self> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let socket = rustix::net::socket_with(
            family,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        if shared {
            sockopt::set_socket_reuseport(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        Self::adopt(socket, wanted)
    }

    /// Takes over a bound socket and asks the kernel for what is wanted.
    ///
    /// # Errors
    /// When it is no UDP socket with an address.
    pub fn adopt(descriptor: OwnedFd, wanted: Offloads) -> io::Result<Self> {
        let socket = UdpSocket::from(descriptor);
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        // Without CAP_NET_ADMIN the plain options stop at net.core.{r,w}mem_max.
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, BUFFER))?;
        if set_int(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER as i32).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, BUFFER)?;
        }
        let trains = wanted.udp_segment && set_int(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        // Old kernels have neither; each datagram comes by itself then, and a counter is missing.
        let gro = set_int(&socket, libc::SOL_UDP, libc::UDP_GRO, wanted.udp_gro.into()).is_ok();
        set_int(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1).ok();
        if local.is_ipv4() {
            set_int(&socket, libc::SOL_IP, libc::IP_RECVTOS, 1)?;
        } else {
            set_int(&socket, libc::SOL_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
        Ok(Self {
            socket,
            local,
            trains: AtomicBool::new(trains),
            receives_trains: gro && wanted.udp_gro,
        })
    }

    /// Where it is bound.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether trains go out in one call.
    #[must_use]
    pub fn has_trains(&self) -> bool {
        self.trains.load(Ordering::Relaxed)
    }

    /// Whether trains come in one call.
    #[must_use]
    pub fn receives_trains(&self) -> bool {
        self.receives_trains
    }

    /// Whether what waits to be received takes half of the room for it. Unknown, and so false, before Linux 4.12.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        // SK_MEMINFO_VARS numbers (linux/sock_diag.h): the first is the memory of what waits (SK_MEMINFO_RMEM_ALLOC), the second its bound
        // (SK_MEMINFO_RCVBUF). What was just read may count for as much as a quarter (udp_rmem_release).
        let mut numbers = [0_u32; 9];
        let mut length = size_of_val(&numbers) as libc::socklen_t;
        // SAFETY: the descriptor is open; the kernel writes at most `length` bytes into `numbers`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                numbers.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let [waiting, room, ..] = numbers;
        result == 0 && waiting > room / 2
    }

    /// Sends each datagram by itself from now on.
    pub fn without_trains(&self) {
        self.trains.store(false, Ordering::Relaxed);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the kernel knows of the path from `local` to `peer`: the longest IP packet that goes through in one piece.
///
/// # Errors
/// The kernel's, such as no route.
pub fn path_mtu(local: SocketAddr, peer: SocketAddr) -> io::Result<u16> {
    let probe = UdpSocket::bind(SocketAddr::new(local.ip(), 0))?;
    probe.connect(peer)?;
    let (level, option) = if peer.is_ipv4() {
        (libc::SOL_IP, libc::IP_MTU)
    } else {
        (libc::SOL_IPV6, libc::IPV6_MTU)
    };
    let mut mtu: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes into `mtu`.
    let result = unsafe {
        libc::getsockopt(
            probe.as_raw_fd(),
            level,
            option,
            (&raw mut mtu).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn set_int(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open; the kernel reads one int, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
