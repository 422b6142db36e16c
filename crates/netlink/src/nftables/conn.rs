//! A connection that stays open: transactions and listings of a table's elements.
//!
//! The kernel frees what a transaction removed when the sender's socket is closed, and makes the closer wait for it; so whoever
//! changes often keeps its socket.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use super::expression::COUNTER;
use super::set::{ListedElement, read_elements};
use super::{Attributes, Family, Message, SUBSYSTEM, family_number, header, open, transaction};
use crate::conn::{DUMP, REQUEST};
use crate::error::{Failure, NetlinkError};
use crate::wire::{self, Answer, Frame, Frames};

/// NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETSETELEM, NFT_MSG_GETGEN
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENT: u16 = 13;
const GET_GENERATION: u16 = 16;
/// NFT_MSG_GETOBJ
const GET_OBJECT: u16 = 19;
/// A listing may take as long as it goes on: the kernel walks a set from its begin for every datagram (`nft_rhash_walk`), so the time grows
/// with the square of its size, and 100,000 elements take 3 seconds. No single answer may take longer than the deadline of the socket.
const LONGEST: Duration = Duration::from_secs(120);
/// Most bytes of one transaction: all of it has to fit the send buffer.
pub const TRANSACTION_BYTES: usize = 1024 * 1024;
/// Send buffer asked for: a transaction and the kernel's bookkeeping for it.
const SEND_BUFFER: usize = 8 * 1024 * 1024;
/// Bytes for one datagram. The kernel makes those of a listing as large as the reader's buffer up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// Listings begun before a table that keeps changing is given up.
const ATTEMPTS: u32 = 10;

/// A connection to nf_tables in the network namespace in which it was opened.
#[derive(Debug)]
pub struct NftConn {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NftConn {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink or no descriptors are left.
    pub fn open() -> Result<Self, NetlinkError> {
        let what = "open a netlink netfilter socket";
        let socket = open().map_err(|e| NetlinkError::socket(what, &e))?;
        // SO_SNDBUFFORCE needs CAP_NET_ADMIN, as everything here does.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER);
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    /// The port number that notifications of our own changes carry.
    pub fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        match self.socket.get_address(&mut address) {
            Ok(()) => address.port_number(),
            Err(_) => 0,
        }
    }

    /// Carries out all messages in the tables of `family` as one transaction: all of it or nothing. `what` says in words what
    /// it is for.
    ///
    /// # Errors
    /// The first refusal of the kernel.
    pub fn commit(&mut self, family: Family, messages: &[Message], what: &str) -> Result<(), NetlinkError> {
        if messages.is_empty() {
            return Ok(());
        }
        let first = self.sequence.wrapping_add(1);
        let datagram = transaction(family, messages, self.sequence);
        self.sequence = self
            .sequence
            .wrapping_add(u32::try_from(messages.len() + 1).unwrap_or(1));
        let last = self.sequence.wrapping_sub(1);
        self.send(&datagram).map_err(|failure| named(what, failure))?;
        self.answers(|frame| {
            if frame.sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                return Ok(false); // of an earlier transaction that failed
            }
            match frame.answer() {
                Answer::Failed(failure) => Err(failure),
                Answer::Acknowledged => Ok(frame.sequence == last),
                Answer::Data | Answer::Done | Answer::Ignored => Ok(false),
            }
        })
        .map_err(|failure| named(what, failure))
    }

    /// The elements of a set or map; `None` where there is no such set.
    ///
    /// # Errors
    /// When the kernel refuses, does not answer in time, or the set never holds still.
    pub fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> Result<Option<Vec<ListedElement>>, NetlinkError> {
        let what = format!("list set {set} of table {table}");
        // NFTA_SET_ELEM_LIST_TABLE, _SET
        let filter = Attributes::new().text(1, table).text(2, set);
        for _ in 0..ATTEMPTS {
            let mut out = Vec::new();
            let listed = self.dump(GET_ELEMENT, family, &filter, |frame| {
                read_elements(frame.payload, &mut out);
            });
            match listed {
                Ok(true) => return Ok(Some(out)),
                Ok(false) => {}
                Err(failure) => {
                    let error = named(&what, failure);
                    return if error.is_missing() { Ok(None) } else { Err(error) };
                }
            }
        }
        Err(named(&what, Failure::Inconsistent { attempts: ATTEMPTS }))
    }

    /// The rules of a table as the kernel has them: how many in each chain, and their expressions, without what changes by
    /// itself. Empty where there is no such table.
    ///
    /// # Errors
    /// When the kernel refuses, does not answer in time, or the table never holds still.
    pub fn rules(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<BTreeMap<String, Vec<Vec<u8>>>, NetlinkError> {
        let what = format!("list rules of table {table}");
        // NFTA_RULE_TABLE
        let filter = Attributes::new().text(1, table);
        for _ in 0..ATTEMPTS {
            let mut out: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
            let listed = self.dump(GET_RULE, family, &filter, |frame| {
                if let Some((chain, expressions)) = read_rule(frame.payload, table) {
                    out.entry(chain).or_default().push(expressions);
                }
            });
            match listed {
                Ok(true) => return Ok(out),
                Ok(false) => {}
                Err(failure) => {
                    let error = named(&what, failure);
                    return if error.is_missing() {
                        Ok(BTreeMap::new())
                    } else {
                        Err(error)
                    };
                }
            }
        }
        Err(named(&what, Failure::Inconsistent { attempts: ATTEMPTS }))
    }

    /// Names of the sets and maps of a table.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer in time.
    pub fn sets(&mut self, family: Family, table: &str) -> Result<Vec<String>, NetlinkError> {
        let mut out = Vec::new();
        // NFTA_SET_TABLE
        let filter = Attributes::new().text(1, table);
        let listed = self.dump(GET_SET, family, &filter, |frame| {
            // NFTA_SET_NAME
            out.extend(text_of(frame.payload, 2));
        });
        match listed.map_err(|failure| named(&format!("list sets of table {table}"), failure)) {
            Ok(_) => Ok(out),
            Err(error) if error.is_missing() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The named counters of a table, in packets; none where there is no such table.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer in time.
    pub fn counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<String, u64>, NetlinkError> {
        let mut out = BTreeMap::new();
        // NFTA_OBJ_TABLE, _TYPE
        let filter = Attributes::new().text(1, table).number(3, COUNTER);
        let listed = self.dump(GET_OBJECT, family, &filter, |frame| {
            // The kernel may list more than was asked for.
            let own = text_of(frame.payload, 1).is_some_and(|of| of == table);
            // NFTA_OBJ_NAME, _DATA
            let counter = text_of(frame.payload, 2).zip(attribute(frame.payload, 4).and_then(packets));
            out.extend(counter.filter(|_| own));
        });
        match listed.map_err(|failure| named(&format!("list counters of table {table}"), failure)) {
            Ok(_) => Ok(out),
            Err(error) if error.is_missing() => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// The number of transactions that this network namespace has seen, in all tables.
    ///
    /// # Errors
    /// When the kernel refuses or does not answer in time.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut generation = None;
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.request(GET_GENERATION, 0, Family::Ipv4, &Attributes::new())
            .and_then(|()| {
                self.answers(|frame| match frame.answer() {
                    _ if frame.sequence != sequence => Ok(false),
                    Answer::Data => {
                        // NFTA_GEN_ID
                        generation = attribute(frame.payload, 1)
                            .and_then(|v| Some(u32::from_be_bytes(v.try_into().ok()?)));
                        Ok(true)
                    }
                    Answer::Failed(failure) => Err(failure),
                    Answer::Done | Answer::Acknowledged | Answer::Ignored => Ok(false),
                })
            })
            .map_err(|failure| named("read the generation of nf_tables", failure))?;
        generation
            .ok_or_else(|| NetlinkError::malformed("read the generation of nf_tables", "no number in it"))
    }

    /// One listing; `false` when it was disturbed by a change.
    fn dump(
        &mut self,
        kind: u16,
        family: Family,
        filter: &Attributes,
        mut take: impl FnMut(&Frame<'_>),
    ) -> Result<bool, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.request(kind, DUMP, family, filter)?;
        let mut whole = true;
        self.answers(|frame| {
            if frame.sequence != sequence {
                return Ok(false);
            }
            whole &= !frame.interrupted();
            match frame.answer() {
                Answer::Data => {
                    take(frame);
                    Ok(false)
                }
                Answer::Failed(failure) => Err(failure),
                Answer::Done | Answer::Acknowledged => Ok(true),
                Answer::Ignored => Ok(false),
            }
        })?;
        Ok(whole)
    }

    fn request(&mut self, kind: u16, flags: u16, family: Family, filter: &Attributes) -> Result<(), Failure> {
        let mut payload = header(family_number(family), 0);
        payload.extend_from_slice(filter.as_bytes());
        let mut datagram = Vec::new();
        wire::append(
            &mut datagram,
            SUBSYSTEM << 8 | kind,
            REQUEST | flags,
            self.sequence,
            &payload,
        );
        self.send(&datagram)
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Failure> {
        loop {
            match self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(of_socket(&e)),
            }
        }
    }

    /// Hands the kernel's messages to `take` until that says that it has seen enough.
    fn answers(&mut self, mut take: impl FnMut(&Frame<'_>) -> Result<bool, Failure>) -> Result<(), Failure> {
        let begin = Instant::now();
        while begin.elapsed() < LONGEST {
            self.buffer.clear();
            self.buffer.reserve(DATAGRAM);
            match self.socket.recv_from(&mut self.buffer, 0) {
                Ok((_, sender)) if sender.port_number() != 0 => continue,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(of_socket(&e)),
            }
            for frame in Frames(&self.buffer) {
                let frame = frame.map_err(|reason| Failure::Malformed { reason })?;
                if take(&frame)? {
                    return Ok(());
                }
            }
        }
        Err(Failure::Deadline {
            waited: begin.elapsed(),
        })
    }
}

/// Chain and expressions of a rule of `table`. The kernel may list more than was asked for.
fn read_rule(payload: &[u8], table: &str) -> Option<(String, Vec<u8>)> {
    // NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS
    if text_of(payload, 1)? != table {
        return None;
    }
    let expressions = attribute(payload, 4).unwrap_or_default();
    Some((text_of(payload, 2)?, expressions.to_vec()))
}

/// An attribute of a message, behind struct nfgenmsg.
pub(super) fn attribute(payload: &[u8], kind: u16) -> Option<&[u8]> {
    wire::attributes(payload.get(4..)?)
        .find(|(k, _)| *k == kind)
        .map(|(_, v)| v)
}

pub(super) fn text_of(payload: &[u8], kind: u16) -> Option<String> {
    let bytes = attribute(payload, kind)?;
    Some(String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned())
}

/// NFTA_COUNTER_PACKETS
fn packets(counter: &[u8]) -> Option<u64> {
    let (_, packets) = wire::attributes(counter).find(|(kind, _)| *kind == 2)?;
    Some(u64::from_be_bytes(packets.try_into().ok()?))
}

fn named(what: &str, failure: Failure) -> NetlinkError {
    NetlinkError {
        what: what.to_owned(),
        failure,
    }
}

fn of_socket(error: &io::Error) -> Failure {
    Failure::Socket {
        errno: error.raw_os_error().unwrap_or(0),
    }
}
