//! nf_tables by netlink: transactions of raw messages, for what changes with every pod and is not worth a process.
//!
//! Numbers are those of linux/netfilter/nf_tables.h; integers inside attributes are big-endian.

mod conn;
mod draw;
mod encap;
mod expression;
#[cfg(feature = "monitor")]
mod follow;
mod guard;
mod presence;
mod remember;
#[cfg(feature = "overlay")]
mod ruleset;
mod set;
mod socket;
mod watch;

use std::io;
use std::time::{Duration, Instant};

use flannel_model::IpFamily;
use netlink_sys::{Socket, SocketAddr};

use crate::conn::{ACK, CREATE, DUMP, REQUEST};
use crate::error::{Failure, NetlinkError};
use crate::wire::{self, Answer, Frame, Frames};
use socket::{open, with_socket};

pub use conn::{NftConn, TRANSACTION_BYTES};
pub use draw::{Draw, DrawBy, draw_chain};
pub use encap::{
    ENCAP_REASONS, EncapFilter, EncapKey, EncapKind, EncapSet, delete_table, encap_bases, encap_counters,
    encap_element, encap_key, encap_rules, encap_sets,
};
#[cfg(feature = "monitor")]
pub use follow::follow_tables;
pub use guard::{DEFAULT_TUNNEL_PORTS, GUARD_TABLE, GUARDED_PORTS, guard_ports, port_element};
pub use presence::{BaseChain, base_chains, chains, has_table};
pub use remember::remember_chain;
#[cfg(feature = "overlay")]
pub use ruleset::{delete_chain, ruleset};
pub use set::{Counter, Data, Element, ListedElement, add_elements, delete_elements};
pub use socket::with_kept_sockets;
pub use watch::TableWatch;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFT_MSG_GETRULE
const GET_RULE: u16 = 7;
/// NFT_MSG_GETSETELEM
const GET_ELEMENT: u16 = 13;
/// Longest wait for the answer; the kernel works inside the send.
const DEADLINE: Duration = Duration::from_secs(10);

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `ip`
    Ipv4,
    /// `ip6`
    Ipv6,
    /// `inet`: both
    Inet,
    /// `bridge`
    Bridge,
}

impl From<IpFamily> for Family {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self::Ipv4,
            IpFamily::V6 => Self::Ipv6,
        }
    }
}

/// Kinds of messages that are used, with the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// NFT_MSG_NEWTABLE
    NewTable = 0,
    /// NFT_MSG_DELTABLE
    DeleteTable = 2,
    /// NFT_MSG_NEWCHAIN
    NewChain = 3,
    /// NFT_MSG_DELCHAIN
    DeleteChain = 5,
    /// NFT_MSG_NEWRULE
    NewRule = 6,
    /// NFT_MSG_DELRULE; without a handle all rules of a chain.
    DeleteRule = 8,
    /// NFT_MSG_NEWSET
    NewSet = 9,
    /// NFT_MSG_NEWSETELEM
    NewElement = 12,
    /// NFT_MSG_DELSETELEM
    DeleteElement = 14,
    /// NFT_MSG_NEWOBJ
    NewObject = 18,
}

/// One message of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it does.
    pub kind: Kind,
    /// Attributes, as [`Attributes`] builds them.
    pub attributes: Attributes,
}

/// Attributes under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes they take.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// With bytes as they are.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(wire::align(self.0.len()), 0);
        self
    }

    /// With a text, closed by a zero.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// With a number.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// With attributes inside.
    #[must_use]
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        // NLA_F_NESTED
        self.bytes(kind | 0x8000, &inner.0)
    }
}

/// Carries out all messages in the tables of `family` as one transaction: all of it or nothing, and no packet sees half.
/// `what` says in words what it is for. Existing tables, chains, sets and elements are no error.
///
/// # Errors
/// The first refusal of the kernel.
pub fn commit(family: Family, messages: &[Message], what: &str) -> Result<(), NetlinkError> {
    let failed = |failure| NetlinkError {
        what: what.to_owned(),
        failure,
    };
    with_socket(what, |socket| {
        // The two bounds of a batch have numbers as well.
        let before = socket.take_numbers(messages.len() + 2);
        let datagram = transaction(family, messages, before);
        let last = before.wrapping_add(u32::try_from(messages.len()).unwrap_or(u32::MAX));
        let send = socket.socket().send_to(&datagram, &SocketAddr::new(0, 0), 0);
        send.map_err(|e| NetlinkError::socket(what, &e))?;
        answer(socket.socket(), (before, last)).map_err(failed)
    })
}

/// Whether a chain has any rule. `false` also when there is no such chain or table.
///
/// # Errors
/// When the kernel has no nf_tables or does not answer.
pub fn has_rules(family: Family, table: &str, chain: &str) -> Result<bool, NetlinkError> {
    let what = format!("list rules of chain {chain} in table {table}");
    // NFTA_RULE_TABLE, NFTA_RULE_CHAIN: the kernel filters by them.
    let attributes = Attributes::new().text(1, table).text(2, chain);
    let asked = Question {
        kind: GET_RULE,
        flags: DUMP,
        attributes: &attributes,
    };
    let mut found = false;
    ask(family, &asked, &what, &mut |_| found = true)?;
    Ok(found)
}

/// Whether a set or map holds the element with this key. `false` also when there is no such set or table.
///
/// # Errors
/// When the kernel has no nf_tables or does not answer.
pub fn has_element(family: Family, table: &str, set: &str, key: &[u8]) -> Result<bool, NetlinkError> {
    let what = format!("look up an element of set {set} in table {table}");
    // NFTA_DATA_VALUE in NFTA_SET_ELEM_KEY in NFTA_LIST_ELEM
    let element = Attributes::new().nest(1, &Attributes::new().bytes(1, key));
    let list = Attributes::new().nest(1, &element);
    // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS
    let attributes = Attributes::new().text(1, table).text(2, set).nest(3, &list);
    let asked = Question {
        kind: GET_ELEMENT,
        flags: ACK,
        attributes: &attributes,
    };
    let mut found = false;
    ask(family, &asked, &what, &mut |_| found = true)?;
    Ok(found)
}

/// The keys of all elements of a set or map; none when there is no such set or table.
///
/// # Errors
/// When the kernel has no nf_tables or does not answer.
pub fn keys(family: Family, table: &str, set: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let what = format!("list the elements of set {set} in table {table}");
    let attributes = Attributes::new().text(1, table).text(2, set);
    let asked = Question {
        kind: GET_ELEMENT,
        flags: DUMP,
        attributes: &attributes,
    };
    let mut found = Vec::new();
    ask(family, &asked, &what, &mut |payload| {
        found.extend(element_keys(payload));
    })?;
    Ok(found)
}

/// The keys in one message of a listing.
fn element_keys(payload: &[u8]) -> Vec<Vec<u8>> {
    // Behind struct nfgenmsg.
    let attributes = payload.get(4..).unwrap_or_default();
    let inside = |bytes, wanted| {
        wire::Attributes(bytes)
            .filter(move |(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    inside(attributes, 3)
        .flat_map(|list| inside(list, 1))
        .filter_map(|element| inside(element, 1).next())
        .filter_map(|data| inside(data, 1).next())
        .map(<[u8]>::to_vec)
        .collect()
}

/// A request that is not part of a transaction.
struct Question<'a> {
    kind: u16,
    flags: u16,
    attributes: &'a Attributes,
}

/// Hands the payload of every answer to `take`. What is asked about not being there is no error.
fn ask(
    family: Family,
    question: &Question<'_>,
    what: &str,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), NetlinkError> {
    let mut payload = header(family_number(family), 0);
    payload.extend_from_slice(&question.attributes.0);
    let kind = SUBSYSTEM << 8 | question.kind;
    let asked = with_socket(what, |socket| {
        let number = socket.take_numbers(1).wrapping_add(1);
        let mut datagram = Vec::new();
        wire::append(&mut datagram, kind, REQUEST | question.flags, number, &payload);
        let send = socket.socket().send_to(&datagram, &SocketAddr::new(0, 0), 0);
        send.map_err(|e| NetlinkError::socket(what, &e))?;
        let read = answers(socket.socket(), |frame| match frame.answer() {
            _ if frame.sequence != number => Ok(false),
            Answer::Data => {
                take(frame.payload);
                Ok(false)
            }
            Answer::Failed(failure) => Err(failure),
            Answer::Done | Answer::Acknowledged => Ok(true),
            Answer::Ignored => Ok(false),
        });
        let what = what.to_owned();
        read.map_err(|failure| NetlinkError { what, failure })
    });
    match asked {
        Err(e) if e.is_missing() => Ok(()),
        result => result,
    }
}

/// The messages between begin and end. Only the last asks for an answer, because kernels differ on whether begin and end give
/// one; a refusal is answered in any case. The messages are numbered from `before` + 1.
fn transaction(family: Family, messages: &[Message], before: u32) -> Vec<u8> {
    let mut datagram = Vec::new();
    // The resource of a batch's bounds is the subsystem.
    wire::append(&mut datagram, BATCH_BEGIN, REQUEST, before, &header(0, SUBSYSTEM));
    for (index, message) in messages.iter().enumerate() {
        let sequence = before.wrapping_add(u32::try_from(index + 1).unwrap_or(u32::MAX));
        let mut flags = REQUEST | flags(message.kind);
        if index + 1 == messages.len() {
            flags |= ACK;
        }
        let mut payload = header(family_number(family), 0);
        payload.extend_from_slice(&message.attributes.0);
        wire::append(
            &mut datagram,
            SUBSYSTEM << 8 | message.kind as u16,
            flags,
            sequence,
            &payload,
        );
    }
    let end = before.wrapping_add(u32::try_from(messages.len() + 1).unwrap_or(u32::MAX));
    wire::append(&mut datagram, BATCH_END, REQUEST, end, &header(0, SUBSYSTEM));
    datagram
}

/// `struct nfgenmsg`: family, version 0, resource.
fn header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

fn family_number(family: Family) -> u8 {
    match family {
        // NFPROTO_IPV4, NFPROTO_IPV6
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
        // NFPROTO_INET
        Family::Inet => 1,
        // NFPROTO_BRIDGE
        Family::Bridge => 7,
    }
}

fn flags(kind: Kind) -> u16 {
    match kind {
        Kind::NewTable | Kind::NewChain | Kind::NewSet | Kind::NewElement | Kind::NewObject => CREATE,
        Kind::NewRule => CREATE | crate::conn::APPEND,
        Kind::DeleteTable | Kind::DeleteRule | Kind::DeleteChain | Kind::DeleteElement => 0,
    }
}

/// Waits for the first refusal or the last message's success. The messages are those after the number `before`, up to `last`.
fn answer(socket: &Socket, (before, last): (u32, u32)) -> Result<(), Failure> {
    let count = last.wrapping_sub(before);
    answers(socket, |frame| match frame.answer() {
        // The end of the batch, too, may be refused.
        _ if frame.sequence.wrapping_sub(before) > count + 1 => Ok(false),
        Answer::Failed(failure) => Err(failure),
        Answer::Acknowledged => Ok(frame.sequence == last),
        Answer::Data | Answer::Done | Answer::Ignored => Ok(false),
    })
}

/// Hands the kernel's messages to `take` until that says that it has seen enough.
fn answers(
    socket: &Socket,
    mut take: impl FnMut(&Frame<'_>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut buffer = Vec::new();
    while begin.elapsed() < DEADLINE {
        buffer.clear();
        buffer.reserve(64 * 1024);
        match socket.recv_from(&mut buffer, 0) {
            Ok((_, sender)) if sender.port_number() != 0 => continue,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => {
                return Err(Failure::Socket {
                    errno: e.raw_os_error().unwrap_or(0),
                });
            }
        }
        for frame in Frames(&buffer) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_nested() {
        let inner = Attributes::new().number(1, 0x0102_0304);
        let outer = Attributes::new().text(2, "ab").nest(3, &inner);
        let mut expected = vec![];
        expected.extend_from_slice(&7u16.to_ne_bytes());
        expected.extend_from_slice(&2u16.to_ne_bytes());
        expected.extend_from_slice(b"ab\0\0");
        expected.extend_from_slice(&12u16.to_ne_bytes());
        expected.extend_from_slice(&0x8003u16.to_ne_bytes());
        expected.extend_from_slice(&8u16.to_ne_bytes());
        expected.extend_from_slice(&1u16.to_ne_bytes());
        expected.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(outer.0, expected);
    }

    #[test]
    fn a_transaction_is_bounded_and_asks_for_one_answer() {
        let message = |kind| Message {
            kind,
            attributes: Attributes::new().text(1, "t"),
        };
        let bytes = transaction(
            Family::Ipv6,
            &[message(Kind::NewTable), message(Kind::DeleteRule)],
            0,
        );
        let frames: Vec<_> = Frames(&bytes).map(Result::unwrap).collect();
        let kinds: Vec<u16> = frames.iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, [BATCH_BEGIN, 10 << 8, 10 << 8 | 8, BATCH_END]);
        let asked: Vec<bool> = frames.iter().map(|frame| frame.flags & ACK != 0).collect();
        assert_eq!(asked, [false, false, true, false]);
        assert_eq!(frames[1].payload[0], 10);
        assert_eq!(frames[0].payload, [0, 0, 0, 10]);
    }
}
