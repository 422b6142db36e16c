//! The packet filter of a host, of whomever, and what it does with a packet: as far as that can be told without sending one.

mod old;
mod registers;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;
use std::net::IpAddr;

pub use old::{OldChain, old_chains};
pub use walk::{Fate, Met, met};

/// All chains that one address family sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// In no order.
    pub chains: Vec<Chain>,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its table with the family, as `ip filter`.
    pub table: String,
    /// Its name in that table.
    pub name: String,
    /// Where packets come to it by themselves; `None` for a chain that others jump to.
    pub base: Option<Base>,
    /// In their order.
    pub rules: Vec<Rule>,
}

/// Where packets come to a chain by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// At which point of a packet's way.
    pub hook: Hook,
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Order at the hook, lowest first.
    pub priority: i32,
    /// Packets that no rule decides about are dropped.
    pub drops: bool,
}

/// A point of a packet's way through the host, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Forwarded packets (NF_INET_FORWARD).
    Forward,
    /// Packets that leave (NF_INET_POST_ROUTING).
    Postrouting,
    /// Another.
    Other(u32),
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The kernel's number for it in its table.
    pub handle: u64,
    /// What it does, one after the other; the first condition that fails ends it.
    pub steps: Vec<Step>,
    /// Packets and bytes that it counted, where it counts.
    pub counter: Option<(u64, u64)>,
}

/// A step of a rule. Registers are of four bytes, from 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Loads something of the packet.
    Load {
        /// The first register that it fills.
        register: u32,
        /// What.
        field: Field,
    },
    /// `(register & mask) ^ xor`
    Mask {
        /// Where from.
        from: u32,
        /// Where to.
        to: u32,
        /// The bits that stay.
        mask: Vec<u8>,
        /// The bits that turn over.
        xor: Vec<u8>,
    },
    /// Goes on only where the register compares so.
    Compare {
        /// The first register.
        register: u32,
        /// How.
        how: Comparison,
        /// With what, byte for byte.
        value: Vec<u8>,
    },
    /// Goes on only where connection tracking's state is one of these bits, or is none of them.
    State {
        /// Bits as in [`NEW`].
        bits: u32,
        /// None of them.
        inverted: bool,
    },
    /// A condition that is not understood.
    Unknown,
    /// The end of the rule.
    Verdict(Verdict),
}

/// A new connection, among the bits of connection tracking's state (`NF_CT_STATE_BIT(IP_CT_NEW)`, linux/netfilter/nf_conntrack_common.h).
pub const NEW: u32 = 8;

/// What can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Bytes of the network header.
    Network {
        /// From which byte on.
        offset: usize,
        /// How many.
        length: usize,
    },
    /// Name of the interface that the packet came by, with zeros behind it.
    InputName,
    /// Name of the interface that it leaves by.
    OutputName,
    /// State of its connection ([`NEW`]).
    State,
    /// Status bits of its connection: no address translation yet.
    Status,
    /// Its mark: 0.
    Mark,
    /// IPv4 or IPv6 (NFPROTO_*), one byte.
    Protocol,
    /// Something that is not known.
    Other,
}

/// How bytes compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same.
    Equal,
    /// Not the same.
    Different,
    /// In the order of bytes.
    Less,
    /// The same or less.
    LessOrEqual,
    /// Greater.
    Greater,
    /// The same or greater.
    GreaterOrEqual,
}

/// What becomes of a packet at the end of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves the base chain.
    Accept,
    /// It is gone.
    Drop,
    /// It gets the address of this host, and leaves the base chain.
    Masquerade,
    /// The chain of this name, and back.
    Jump(String),
    /// The chain of this name, and not back.
    Goto(String),
    /// Back to where it was jumped from.
    Return,
    /// Something else that ends it, by the kernel's name.
    Other(String),
}

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Interface that it came by; `None` when it is not known.
    pub input: Option<String>,
    /// Interface that it leaves by; `None` when it is not known.
    pub output: Option<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
            Self::Other(name) => f.write_str(name),
        }
    }
}
