//! A synchronous netlink connection: serialised requests in, one result each.
//!
//! This is the raw level. It knows nothing of routes or virtual servers, so that every netlink family can stand on
//! it; [`crate::RouteConn`] is the typed level for rtnetlink. There is no runtime underneath, because the CNI plugin
//! lives for milliseconds and has none.

mod listing;
mod pending;
mod quiet;

use std::io;
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{self, Timeout};

use crate::error::{Failure, NetlinkError};
use crate::wire::{self, Frame, Frames};
use listing::Listing;
use pending::Pending;

/// `NLM_F_REQUEST`: every request carries it.
pub const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`: the kernel answers success as well.
pub const ACK: u16 = 0x04;
/// `NLM_F_DUMP`: list everything that matches.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`: an existing object is overwritten.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: an existing object is an error.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`: a missing object is made.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: add beside what exists.
pub const APPEND: u16 = 0x800;

/// Longest wait for one call unless [`Conn::set_deadline`] says otherwise. All network namespaces share one lock for
/// changes (RTNL), so another tenant's bulk deletion can delay us by seconds without anything being wrong.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// Most bytes of requests in one send. The kernel takes up to the send buffer (212,992 bytes by default) and works
/// through one send in one go; smaller pieces let others in between.
const CHUNK_BYTES: usize = 64 * 1024;

/// Receive buffer asked for. The answers of a whole send pile up in it before we read the first.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Room in the receive buffer that one answer may take. An acknowledgement costs under 1 KiB including the kernel's
/// bookkeeping, a link with its details about 3 KiB.
const ANSWER_COST: usize = 4096;

/// Listings begun before a table that keeps changing is given up.
const DUMP_ATTEMPTS: u32 = 10;

/// Bytes for one datagram. The kernel makes those of a listing as large as the reader's buffer up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// A netlink protocol family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours (NETLINK_ROUTE).
    Route,
    /// Families known by name, IPVS among them (NETLINK_GENERIC).
    Generic,
    /// Connection tracking (NETLINK_NETFILTER).
    Netfilter,
}

/// One serialised request. Sequence number, REQUEST and ACK flags are added on sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Message type (`nlmsg_type`).
    pub kind: u16,
    /// Flags besides REQUEST, ACK and DUMP: [`CREATE`], [`REPLACE`], [`EXCL`], [`APPEND`].
    pub flags: u16,
    /// All that follows `struct nlmsghdr`.
    pub payload: Vec<u8>,
    /// The request in words, for errors: `add route 10.5.2.0/24`.
    pub what: String,
}

/// One message of the family that answers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Message type (`nlmsg_type`).
    pub kind: u16,
    /// Flags of the message.
    pub flags: u16,
    /// Sequence number of the request that it answers.
    pub sequence: u32,
    /// All that follows `struct nlmsghdr`.
    pub payload: Vec<u8>,
}

/// What became of one request: the first message that answered it, if it had one besides the acknowledgement.
pub type Outcome = Result<Option<Reply>, NetlinkError>;

/// A connection to the kernel in the network namespace in which it was opened; it stays bound to that namespace.
#[derive(Debug)]
pub struct Conn {
    socket: Socket,
    sequence: u32,
    deadline: Duration,
    /// Most requests in one send, from the size of the receive buffer that the kernel granted.
    chunk_requests: usize,
    buffer: Vec<u8>,
    /// What is sent by [`Self::quietly`], kept for the next call: one of this size is mapped anew each time it is asked for.
    outgoing: Vec<u8>,
}

impl Conn {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no such protocol or no descriptors are left.
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let (number, name) = match protocol {
            Protocol::Route => (NETLINK_ROUTE, "route"),
            Protocol::Generic => (NETLINK_GENERIC, "generic"),
            Protocol::Netfilter => (NETLINK_NETFILTER, "netfilter"),
        };
        let what = || format!("open a netlink {name} socket");
        let mut socket = Socket::new(number).map_err(|e| NetlinkError::socket(what(), &e))?;
        socket.bind_auto().map_err(|e| NetlinkError::socket(what(), &e))?;
        // Without these two (kernels before 4.12) errors come without words; everything else works.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        if protocol == Protocol::Route {
            // Before 4.20 the kernel ignores filters in listings; ours are applied a second time on our side.
            let _ = socket.set_netlink_get_strict_chk(true);
        }
        let chunk_requests = grow_receive_buffer(&socket).map_err(|e| NetlinkError::socket(what(), &e))?;
        let mut conn = Self {
            socket,
            sequence: 0,
            deadline: DEFAULT_DEADLINE,
            chunk_requests,
            buffer: Vec::new(),
            outgoing: Vec::new(),
        };
        conn.set_deadline(DEFAULT_DEADLINE)?;
        Ok(conn)
    }

    /// Sets the longest wait for the answers of one send. A wait ends at the latest after twice this time.
    ///
    /// The kernel carries out a request inside the send itself, and that part cannot be cut short.
    ///
    /// # Errors
    /// When the kernel refuses the time, as it does for zero.
    pub fn set_deadline(&mut self, deadline: Duration) -> Result<(), NetlinkError> {
        sockopt::set_socket_timeout(&self.socket, Timeout::Recv, Some(deadline))
            .map_err(|e| NetlinkError::socket(format!("set a deadline of {deadline:?}"), &e.into()))?;
        self.deadline = deadline;
        Ok(())
    }

    /// Sends many requests in few system calls. The results are in the order of the requests; no failure stops the rest.
    pub fn batch(&mut self, requests: &[Request]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(self.chunk_length(rest));
            outcomes.extend(self.chunk(chunk));
            rest = later;
        }
        outcomes
    }

    /// Sends one request and awaits its acknowledgement.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer in time.
    pub fn request(&mut self, request: &Request) -> Outcome {
        self.chunk(std::slice::from_ref(request))
            .pop()
            .unwrap_or(Ok(None))
    }

    /// Lists: every message that answers a request with the DUMP flag. A listing that was disturbed by a change is
    /// begun anew, up to ten times.
    ///
    /// # Errors
    /// When the kernel refuses, does not answer in time, or the table never holds still.
    pub fn dump(&mut self, request: &Request) -> Result<Vec<Reply>, NetlinkError> {
        until_undisturbed(|| self.dump_once(request)).map_err(|failure| NetlinkError {
            what: request.what.clone(),
            failure,
        })
    }

    /// Lists, and hands the payload of each message to `take` instead of keeping it. For listings that may be disturbed: what
    /// changes meanwhile may or may not be among them.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer in time.
    pub fn each(&mut self, request: &Request, mut take: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
        self.listing(request, |frame| take(frame.payload))
            .map(|_| ())
            .map_err(|failure| NetlinkError {
                what: request.what.clone(),
                failure,
            })
    }

    /// How many of `requests`, at least one, go into the next send.
    fn chunk_length(&self, requests: &[Request]) -> usize {
        let mut bytes = 0;
        let fitting = requests.iter().take(self.chunk_requests).take_while(|r| {
            bytes += wire::align(wire::HEADER + r.payload.len());
            bytes <= CHUNK_BYTES
        });
        fitting.count().max(1)
    }

    fn chunk(&mut self, requests: &[Request]) -> Vec<Outcome> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(requests.len() * 64);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            wire::append(
                &mut datagram,
                request.kind,
                request.flags | REQUEST | ACK,
                self.sequence,
                &request.payload,
            );
        }
        let mut pending = Pending::new(first, requests.len());
        let failure = match self.send(&datagram) {
            Ok(()) => self.collect(&mut pending).err().unwrap_or(Failure::Lost),
            Err(failure) => failure,
        };
        pending.finish(requests, &failure)
    }

    /// Reads until every pending request has its answer.
    fn collect(&mut self, pending: &mut Pending) -> Result<(), Failure> {
        let begin = Instant::now();
        while !pending.complete() {
            self.receive(begin)?;
            for frame in Frames(&self.buffer) {
                pending.take(&frame.map_err(|reason| Failure::Malformed { reason })?);
            }
        }
        Ok(())
    }

    /// One listing; `None` when it was disturbed.
    fn dump_once(&mut self, request: &Request) -> Result<Option<Vec<Reply>>, Failure> {
        let mut replies = Vec::new();
        let undisturbed = self.listing(request, |frame| replies.push(Reply::from(frame)))?;
        Ok(undisturbed.then_some(replies))
    }

    /// One listing; `false` when it was disturbed.
    fn listing(&mut self, request: &Request, mut take: impl FnMut(&Frame<'_>)) -> Result<bool, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        let flags = request.flags | REQUEST | DUMP;
        wire::append(
            &mut datagram,
            request.kind,
            flags,
            self.sequence,
            &request.payload,
        );
        self.send(&datagram)?;
        let mut listing = Listing::new(self.sequence);
        let begin = Instant::now();
        loop {
            self.receive(begin)?;
            if let Some(undisturbed) = listing.take(&self.buffer, &mut take)? {
                return Ok(undisturbed);
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Failure> {
        let kernel = SocketAddr::new(0, 0);
        retry_interrupted(|| self.socket.send_to(datagram, &kernel, 0))
            .map(|_| ())
            .map_err(|e| failure(&e))
    }

    /// Fills the buffer with one datagram from the kernel. Those of other processes are passed over.
    fn receive(&mut self, begin: Instant) -> Result<(), Failure> {
        // Asks for the true length of a datagram that is longer than the buffer.
        let truncation = i32::try_from(rustix::net::RecvFlags::TRUNC.bits()).unwrap_or(0);
        loop {
            let waited = begin.elapsed();
            if waited >= self.deadline {
                return Err(Failure::Deadline { waited });
            }
            self.buffer.clear();
            self.buffer.reserve(DATAGRAM);
            let (socket, buffer) = (&self.socket, &mut self.buffer);
            let (length, sender) =
                retry_interrupted(|| socket.recv_from(buffer, truncation)).map_err(|e| {
                    if e.kind() == io::ErrorKind::WouldBlock {
                        Failure::Deadline {
                            waited: begin.elapsed(),
                        }
                    } else {
                        failure(&e)
                    }
                })?;
            if length > self.buffer.len() {
                let reason = format!("{length} bytes where {} were read", self.buffer.len());
                return Err(Failure::Malformed { reason });
            }
            if sender.port_number() == 0 {
                return Ok(());
            }
        }
    }
}

impl From<&Frame<'_>> for Reply {
    fn from(frame: &Frame<'_>) -> Self {
        Self {
            kind: frame.kind,
            flags: frame.flags,
            sequence: frame.sequence,
            payload: frame.payload.to_vec(),
        }
    }
}

/// Lists until a listing was not disturbed (`None`), a bounded number of times.
fn until_undisturbed(
    mut list: impl FnMut() -> Result<Option<Vec<Reply>>, Failure>,
) -> Result<Vec<Reply>, Failure> {
    for _ in 0..DUMP_ATTEMPTS {
        if let Some(replies) = list()? {
            return Ok(replies);
        }
    }
    Err(Failure::Inconsistent {
        attempts: DUMP_ATTEMPTS,
    })
}

/// Asks for a large receive buffer and says how many answers fit into what was granted.
fn grow_receive_buffer(socket: &Socket) -> io::Result<usize> {
    // SO_RCVBUFFORCE needs CAP_NET_ADMIN; without it the plain option is capped by net.core.rmem_max.
    if sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER)?;
    }
    let granted = sockopt::socket_recv_buffer_size(socket)?;
    Ok((granted / ANSWER_COST).max(1))
}

fn failure(error: &io::Error) -> Failure {
    if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) {
        return Failure::Lost;
    }
    Failure::Socket {
        errno: error.raw_os_error().unwrap_or(0),
    }
}

fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(what: &str) -> Request {
        Request {
            kind: 24,
            flags: 0,
            payload: vec![0; 8],
            what: what.into(),
        }
    }

    #[test]
    fn a_disturbed_listing_is_begun_anew_a_bounded_number_of_times() {
        let mut begun = 0;
        let third = until_undisturbed(|| {
            begun += 1;
            Ok((begun == 3).then(Vec::new))
        });
        assert_eq!((third, begun), (Ok(vec![]), 3));
        let mut begun = 0;
        let never = until_undisturbed(|| {
            begun += 1;
            Ok(None)
        });
        assert_eq!((never, begun), (Err(Failure::Inconsistent { attempts: 10 }), 10));
        assert_eq!(until_undisturbed(|| Err(Failure::Lost)), Err(Failure::Lost));
    }

    #[test]
    fn sends_are_bounded_in_bytes_and_in_number() {
        let mut conn = Conn::open(Protocol::Route).unwrap();
        conn.chunk_requests = 10;
        let many: Vec<_> = (0..50).map(|_| request("x")).collect();
        assert_eq!(conn.chunk_length(&many), 10);
        conn.chunk_requests = usize::MAX;
        let large = Request {
            payload: vec![0; CHUNK_BYTES / 2 - wire::HEADER],
            ..request("x")
        };
        assert_eq!(
            conn.chunk_length(&[large.clone(), large.clone(), large.clone()]),
            2
        );
        let huge = Request {
            payload: vec![0; CHUNK_BYTES * 2],
            ..request("x")
        };
        assert_eq!(conn.chunk_length(&[huge, large]), 1);
    }
}
