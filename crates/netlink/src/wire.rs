//! Framing of netlink messages: bytes in, borrowed messages out. Never panics, whatever the bytes are.

use crate::error::Failure;

/// Size of `struct nlmsghdr` (linux/netlink.h).
pub(crate) const HEADER: usize = 16;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// In an acknowledgement: only the header of the request is echoed, not its payload.
const NLM_F_CAPPED: u16 = 0x100;
/// In an acknowledgement: attributes follow the echoed request.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Nested and byte-order bits of an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// One message as it lies in the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Whose request it answers or, in a notification, whose request changed something.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// What a message means for the request it answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A message of the family itself.
    Data,
    /// Success of a request.
    Acknowledged,
    /// The end of a listing.
    Done,
    /// Refused, or the listing ended with an error.
    Failed(Failure),
    /// Nothing to act upon.
    Ignored,
}

impl Frame<'_> {
    /// Whether the kernel says that the table changed while it was being listed.
    pub(crate) fn interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// What this message means for the request with its sequence number.
    pub(crate) fn answer(&self) -> Answer {
        match self.kind {
            NLMSG_NOOP => Answer::Ignored,
            NLMSG_OVERRUN => Answer::Failed(Failure::Lost),
            NLMSG_ERROR => self.status(HEADER).unwrap_or(Answer::Acknowledged),
            // Old kernels end a listing without a status.
            NLMSG_DONE if self.payload.is_empty() => Answer::Done,
            NLMSG_DONE => self.status(0).unwrap_or(Answer::Done),
            _ => Answer::Data,
        }
    }

    /// The failure in a message that begins with an error number and is followed by an echo of `echo` bytes.
    fn status(&self, echo: usize) -> Option<Answer> {
        let Some(code) = read_i32(self.payload, 0) else {
            let reason = format!("a status of {} bytes where 4 are needed", self.payload.len());
            return Some(Answer::Failed(Failure::Malformed { reason }));
        };
        if code >= 0 {
            return None;
        }
        let explanation = self
            .attributes_of_status(echo)
            .and_then(explanation)
            .unwrap_or_default();
        Some(Answer::Failed(Failure::Refused {
            errno: code.saturating_neg(),
            explanation,
        }))
    }

    fn attributes_of_status(&self, echo: usize) -> Option<&[u8]> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let echoed = if echo == 0 || self.flags & NLM_F_CAPPED != 0 {
            echo
        } else {
            align(usize::try_from(read_u32(self.payload, 4)?).ok()?)
        };
        self.payload.get(4usize.checked_add(echoed)?..)
    }
}

/// The text attribute among the attributes of an acknowledgement.
fn explanation(attributes: &[u8]) -> Option<String> {
    Attributes(attributes)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| {
            let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
            String::from_utf8_lossy(&value[..end]).into_owned()
        })
}

/// Splits a datagram into its messages. A message that claims more than there is ends the walk with an error.
pub(crate) struct Frames<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        let Some((frame, length)) = frame(whole) else {
            return Some(Err(format!(
                "a message header that does not fit its {} bytes",
                whole.len()
            )));
        };
        self.0 = whole.get(align(length)..).unwrap_or_default();
        Some(Ok(frame))
    }
}

fn frame(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let length = usize::try_from(read_u32(bytes, 0)?).ok()?;
    let payload = bytes.get(HEADER..length)?;
    let frame = Frame {
        kind: read_u16(bytes, 4)?,
        flags: read_u16(bytes, 6)?,
        sequence: read_u32(bytes, 8)?,
        port: read_u32(bytes, 12)?,
        payload,
    };
    Some((frame, length))
}

/// Walks attributes (`struct nlattr`), and ends at the first that does not fit.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The attributes in `bytes`.
pub(crate) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

/// Appends one request to a datagram under construction.
pub(crate) fn append(datagram: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let whole = std::mem::take(datagram);
    *datagram = append_with(whole, kind, flags, sequence, |mut d| {
        d.extend_from_slice(payload);
        d
    });
}

/// The same with a payload that `write` appends.
pub(crate) fn append_with(
    mut datagram: Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    write: impl FnOnce(Vec<u8>) -> Vec<u8>,
) -> Vec<u8> {
    let begin = datagram.len();
    datagram.extend_from_slice(&[0; 4]);
    datagram.extend_from_slice(&kind.to_ne_bytes());
    datagram.extend_from_slice(&flags.to_ne_bytes());
    datagram.extend_from_slice(&sequence.to_ne_bytes());
    // Port 0: the kernel.
    datagram.extend_from_slice(&0u32.to_ne_bytes());
    let mut datagram = write(datagram);
    let length = u32::try_from(datagram.len().saturating_sub(begin)).unwrap_or(u32::MAX);
    if let Some(field) = datagram.get_mut(begin..begin + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
    datagram.resize(align(datagram.len()), 0);
    datagram
}

/// Rounds up to the four bytes on which messages and attributes begin.
pub(crate) fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The kernel's answer to a request: 0, or an errno below zero (`struct nlmsgerr`).
#[cfg(test)]
pub(crate) fn status(sequence: u32, code: i32) -> Vec<u8> {
    let mut payload = code.to_ne_bytes().to_vec();
    payload.resize(20, 0);
    let mut bytes = Vec::new();
    append(&mut bytes, 2, 0, sequence, &payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, kind, flags, 7, payload);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    #[test]
    fn messages_are_split_at_aligned_ends() {
        let mut bytes = message(30, 0, &[1, 2, 3]);
        bytes.extend(message(31, 0x10, &[]));
        let frames: Vec<_> = Frames(&bytes).map(Result::unwrap).collect();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].payload, [1, 2, 3]);
        assert!(frames[1].interrupted() && !frames[0].interrupted());
        assert_eq!(frames[0].answer(), Answer::Data);
    }

    #[test]
    fn an_acknowledgement_is_told_from_a_refusal_and_its_words_are_kept() {
        let mut ack = 0i32.to_ne_bytes().to_vec();
        ack.resize(20, 0);
        assert_eq!(
            Frames(&message(2, 0, &ack)).next().unwrap().unwrap().answer(),
            Answer::Acknowledged
        );

        let mut nack = (-22i32).to_ne_bytes().to_vec();
        nack.resize(20, 0);
        nack.extend(attribute(2, &[0; 4]));
        nack.extend(attribute(1, b"Invalid gateway\0"));
        let bytes = message(2, NLM_F_CAPPED | NLM_F_ACK_TLVS, &nack);
        let expected = Failure::Refused {
            errno: 22,
            explanation: "Invalid gateway".into(),
        };
        assert_eq!(
            Frames(&bytes).next().unwrap().unwrap().answer(),
            Answer::Failed(expected)
        );
    }

    #[test]
    fn an_uncapped_echo_is_skipped_by_its_own_length() {
        let mut nack = (-1i32).to_ne_bytes().to_vec();
        let mut echoed = Vec::new();
        append(&mut echoed, 24, 0, 7, &[9; 5]);
        nack.extend(&echoed);
        nack.extend(attribute(1, b"no"));
        let bytes = message(2, NLM_F_ACK_TLVS, &nack);
        let expected = Failure::Refused {
            errno: 1,
            explanation: "no".into(),
        };
        assert_eq!(
            Frames(&bytes).next().unwrap().unwrap().answer(),
            Answer::Failed(expected)
        );
    }

    #[test]
    fn a_listing_may_end_in_an_error() {
        let bytes = message(3, 0, &(-4i32).to_ne_bytes());
        let expected = Failure::Refused {
            errno: 4,
            explanation: String::new(),
        };
        assert_eq!(
            Frames(&bytes).next().unwrap().unwrap().answer(),
            Answer::Failed(expected)
        );
        assert_eq!(
            Frames(&message(3, 0, &[])).next().unwrap().unwrap().answer(),
            Answer::Done
        );
    }

    #[test]
    fn no_bytes_make_it_panic_or_run_for_ever() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..20_000 {
            let mut bytes: Vec<u8> = (0..round % 97)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed.to_ne_bytes()[0]
                })
                .collect();
            // Half of the rounds get a length that fits, so that the walk goes on beyond the first header.
            if round % 2 == 0 && bytes.len() >= HEADER {
                let length = u32::try_from(bytes.len() - round % 5).unwrap();
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
                bytes[4] = 2 + u8::try_from(round % 2).unwrap();
                bytes[5] = 0;
                bytes[7] |= 2;
            }
            let frames = Frames(&bytes).take(100).inspect(|f| {
                if let Ok(frame) = f {
                    frame.answer();
                }
            });
            assert!(frames.count() <= 7);
        }
    }
}
