//! What a source of Services tells.

use tokio::time::Instant;

use crate::services::Record;

/// What a source tells.
#[derive(Debug)]
pub enum News {
    /// A record came or changed.
    Put(Box<Record>, Stamp),
    /// The record of this name is gone.
    Gone(String, Stamp),
    /// Everything that there is was told once: absence means something from now on.
    Complete,
    /// The zone of this node.
    Zone(Option<String>),
    /// The source cannot be followed, and why; what is known stays.
    Lost(String),
    /// It can be followed again.
    Resumed,
}

/// Where and when a change happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Revision of the source.
    pub revision: u64,
    /// When the cause of the change happened, in milliseconds since 1970, where the source says so.
    pub triggered: Option<i64>,
    /// When it was heard of here.
    pub heard: Option<Instant>,
}
