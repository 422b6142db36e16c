//! Writing attributes (`struct nlattr`): length and type of 16 bits each, the value, padding to four bytes.

use crate::wire::align;

/// `NLA_F_NESTED` (linux/netlink.h): the value is a list of attributes.
const NESTED: u16 = 0x8000;
/// `struct genlmsghdr` has a command, a version and two reserved bytes.
const GENERIC_HEADER: usize = 4;

/// The payload of a generic netlink message: its header and attributes.
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn new(command: u8, version: u8) -> Self {
        Self::behind(Vec::new(), command, version)
    }

    /// One that is appended to what is there already, which ends aligned.
    pub(crate) fn behind(mut bytes: Vec<u8>, command: u8, version: u8) -> Self {
        bytes.extend_from_slice(&[command, version, 0, 0]);
        Self(bytes)
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    pub(crate) fn u16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A text with its closing zero.
    pub(crate) fn text(mut self, kind: u16, value: &str) -> Self {
        let length = u16::try_from(value.len() + 5).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// An attribute that holds whatever `fill` writes.
    pub(crate) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let begin = self.0.len();
        self = fill(self.bytes(kind | NESTED, &[]));
        let length = u16::try_from(self.0.len() - begin).unwrap_or(u16::MAX);
        if let Some(field) = self.0.get_mut(begin..begin + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// The attributes of a generic netlink message, past its header.
pub(crate) fn attributes_of(payload: &[u8]) -> &[u8] {
    payload.get(GENERIC_HEADER..).unwrap_or_default()
}
