//! The typed level for rtnetlink: requests as messages that can be built, looked at and batched.

use std::time::Duration;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;

use crate::conn::{Conn, Outcome, Protocol, Reply, Request};
use crate::error::NetlinkError;

/// One rtnetlink request, as the builder functions of this crate make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRequest {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// Flags besides REQUEST, ACK and DUMP ([`crate::conn::CREATE`] and its like).
    pub flags: u16,
    /// The request in words, for errors.
    pub what: String,
}

/// What became of one request: the message that answered it, if it had one besides the acknowledgement.
pub type RouteOutcome = Result<Option<RouteNetlinkMessage>, NetlinkError>;

/// A connection to rtnetlink in one network namespace.
#[derive(Debug)]
pub struct RouteConn {
    conn: Conn,
}

impl RouteConn {
    /// Opens a connection in the calling thread's network namespace (see [`crate::netns::Netns::connect`] for another).
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            conn: Conn::open(Protocol::Route)?,
        })
    }

    /// Sets the longest wait for one call; see [`Conn::set_deadline`].
    ///
    /// # Errors
    /// When the kernel refuses the time, as it does for zero.
    pub fn set_deadline(&mut self, deadline: Duration) -> Result<(), NetlinkError> {
        self.conn.set_deadline(deadline)
    }

    /// Sends many requests in few system calls. The results are in the order of the requests; no failure stops the rest.
    pub fn batch(&mut self, requests: &[RouteRequest]) -> Vec<RouteOutcome> {
        let outcomes = self.ask_all(requests).into_iter().zip(requests);
        outcomes
            .map(|(outcome, request)| typed(outcome?, request))
            .collect()
    }

    /// The same for requests of which only success matters; what answers them besides is not read.
    pub fn run_all(&mut self, requests: &[RouteRequest]) -> Vec<Result<(), NetlinkError>> {
        let outcomes = self.ask_all(requests).into_iter();
        outcomes.map(|outcome| outcome.map(drop)).collect()
    }

    /// Sends many requests of which only success matters, in few system calls, with one answer for hundreds that succeed: for thousands of
    /// routes, neighbours or FDB entries. The results are in the order of the requests; no failure stops the rest.
    pub fn batch_quietly(&mut self, requests: &[RouteRequest]) -> Vec<Result<(), NetlinkError>> {
        let mut failures = self.conn.quietly_of_kinds(
            requests,
            |request| (request.message.message_type(), request.flags),
            RouteRequest::append_to,
        );
        let result = |(place, request): (usize, &RouteRequest)| match failures.remove(&place) {
            Some(failure) => Err(NetlinkError {
                what: request.what.clone(),
                failure,
            }),
            None => Ok(()),
        };
        requests.iter().enumerate().map(result).collect()
    }

    /// Sends many requests in few system calls, for who reads what answers them himself.
    pub(crate) fn ask_all(&mut self, requests: &[RouteRequest]) -> Vec<Outcome> {
        let raw: Vec<Request> = requests.iter().map(RouteRequest::serialise).collect();
        self.conn.batch(&raw)
    }

    /// Sends one request and gives the message that answers it.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer in time.
    pub fn request(&mut self, request: &RouteRequest) -> RouteOutcome {
        let reply = self.conn.request(&request.serialise())?;
        typed(reply, request)
    }

    /// The same for who reads the message himself.
    pub(crate) fn ask(&mut self, request: &RouteRequest) -> Outcome {
        self.conn.request(&request.serialise())
    }

    /// Sends one request of which only success matters.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer in time.
    pub fn run(&mut self, request: &RouteRequest) -> Result<(), NetlinkError> {
        self.conn.request(&request.serialise()).map(|_| ())
    }

    /// Lists. Objects that cannot be read are left out: what we cannot read we did not make, and one odd object of
    /// somebody else's must not blind us to all others.
    ///
    /// # Errors
    /// When the kernel refuses, does not answer in time, or the table never holds still.
    pub fn dump(&mut self, request: &RouteRequest) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let replies = self.list(request)?;
        Ok(replies.iter().filter_map(|reply| parse(reply).ok()).collect())
    }

    /// Lists all objects of a kind, for who reads the messages himself. Errors as [`dump`](Self::dump).
    pub(crate) fn list(&mut self, request: &RouteRequest) -> Result<Vec<Reply>, NetlinkError> {
        self.conn.dump(&request.serialise())
    }
}

impl RouteRequest {
    /// A request with these flags; `what` says in words what it asks for.
    pub fn new(message: RouteNetlinkMessage, flags: u16, what: impl Into<String>) -> Self {
        Self {
            message,
            flags,
            what: what.into(),
        }
    }

    /// Appends what follows the header.
    fn append_to(&self, mut datagram: Vec<u8>) -> Vec<u8> {
        let begin = datagram.len();
        datagram.resize(begin + self.message.buffer_len(), 0);
        if let Some(room) = datagram.get_mut(begin..) {
            self.message.serialize(room);
        }
        datagram
    }

    fn serialise(&self) -> Request {
        let payload = self.append_to(Vec::new());
        Request {
            kind: self.message.message_type(),
            flags: self.flags,
            payload,
            what: self.what.clone(),
        }
    }
}

fn typed(reply: Option<Reply>, request: &RouteRequest) -> RouteOutcome {
    reply
        .map(|reply| parse(&reply).map_err(|reason| NetlinkError::malformed(request.what.clone(), reason)))
        .transpose()
}

/// Reads one message of the family.
pub(crate) fn parse(reply: &Reply) -> Result<RouteNetlinkMessage, String> {
    let mut header = NetlinkHeader::default();
    header.message_type = reply.kind;
    header.flags = reply.flags;
    RouteNetlinkMessage::deserialize(&header, &reply.payload).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_or_random_replies_are_errors_and_not_panics() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_ne_bytes()[0]
        };
        // RTM_NEWLINK, NEWADDR, NEWROUTE, NEWNEIGH: the kinds that we list.
        for kind in [16, 20, 24, 28] {
            for length in 0..200_usize {
                for _ in 0..50 {
                    let mut payload: Vec<u8> = (0..length).map(|_| next()).collect();
                    // Attributes with small lengths and known types get further than noise does.
                    for at in (12..length.saturating_sub(4)).step_by(4) {
                        if payload[at] & 1 == 0 {
                            payload[at] %= 12;
                            payload[at + 1] = 0;
                            payload[at + 2] %= 64;
                            payload[at + 3] = 0;
                        }
                    }
                    let _ = parse(&Reply {
                        kind,
                        flags: 0,
                        sequence: 1,
                        payload,
                    });
                }
            }
        }
        assert!(
            parse(&Reply {
                kind: 24,
                flags: 0,
                sequence: 1,
                payload: vec![]
            })
            .is_err()
        );
    }
}
