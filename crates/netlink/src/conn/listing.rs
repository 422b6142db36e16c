//! One listing: the messages that answer it, up to its end.

use crate::error::Failure;
use crate::wire::{Answer, Frame, Frames};

/// A listing under way.
#[derive(Debug)]
pub(super) struct Listing {
    sequence: u32,
    disturbed: bool,
}

impl Listing {
    /// The answers to the request of this number.
    pub(super) fn new(sequence: u32) -> Self {
        Self {
            sequence,
            disturbed: false,
        }
    }

    /// Takes one datagram and hands each message of the family to `each`. At the end it answers whether the table held still meanwhile:
    /// the kernel marks messages, the last one among them, when it was changed (NLM_F_DUMP_INTR), and then objects may be missing.
    pub(super) fn take(
        &mut self,
        datagram: &[u8],
        mut each: impl FnMut(&Frame<'_>),
    ) -> Result<Option<bool>, Failure> {
        for frame in Frames(datagram) {
            let frame = frame.map_err(|reason| Failure::Malformed { reason })?;
            if frame.sequence != self.sequence {
                continue;
            }
            self.disturbed |= frame.interrupted();
            match frame.answer() {
                Answer::Data => each(&frame),
                Answer::Done | Answer::Acknowledged => return Ok(Some(!self.disturbed)),
                Answer::Failed(failure) => return Err(failure),
                Answer::Ignored => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DUMP_ATTEMPTS, until_undisturbed};
    use super::*;
    use crate::conn::Reply;
    use crate::wire::append;

    const NEW_ROUTE: u16 = 24;
    const DONE: u16 = 3;
    const MULTI: u16 = 2;
    const INTERRUPTED: u16 = 0x10;
    const SEQUENCE: u32 = 7;

    fn datagram(messages: &[(u16, u16, u8)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, flags, payload) in messages {
            let payload: &[u8] = match *kind {
                DONE => &[0; 4],
                _ => &[*payload; 12],
            };
            append(&mut bytes, *kind, MULTI | flags, SEQUENCE, payload);
        }
        bytes
    }

    /// What a listing of these datagrams comes to, as the connection reads it: `None` when it was disturbed.
    fn list(datagrams: &[Vec<u8>]) -> Result<Option<Vec<Reply>>, Failure> {
        let mut listing = Listing::new(SEQUENCE);
        let mut replies = Vec::new();
        for datagram in datagrams {
            if let Some(undisturbed) = listing.take(datagram, |frame| replies.push(Reply::from(frame)))? {
                return Ok(undisturbed.then_some(replies));
            }
        }
        panic!("no end in {datagrams:?}")
    }

    #[test]
    fn a_table_that_held_still_is_whole() {
        let first = datagram(&[(NEW_ROUTE, 0, 1), (NEW_ROUTE, 0, 2)]);
        let last = datagram(&[(NEW_ROUTE, 0, 3), (DONE, 0, 0)]);
        assert_eq!(list(&[first, last]).unwrap().unwrap().len(), 3);
    }

    #[test]
    fn a_mark_on_any_message_makes_it_worthless() {
        for marked in 0..3 {
            let flag = |n| if n == marked { INTERRUPTED } else { 0 };
            let first = datagram(&[(NEW_ROUTE, flag(0), 1)]);
            let last = datagram(&[(NEW_ROUTE, flag(1), 2), (DONE, flag(2), 0)]);
            assert_eq!(list(&[first, last]).unwrap(), None, "message {marked}");
        }
    }

    #[test]
    fn after_a_disturbed_listing_the_whole_table_is_read_again() {
        let disturbed = [datagram(&[(NEW_ROUTE, INTERRUPTED, 1), (DONE, INTERRUPTED, 0)])];
        let whole = [datagram(&[(NEW_ROUTE, 0, 1), (NEW_ROUTE, 0, 2), (DONE, 0, 0)])];
        let mut begun = 0;
        let replies = until_undisturbed(|| {
            begun += 1;
            list(if begun < 4 { &disturbed } else { &whole })
        })
        .unwrap();
        let payloads: Vec<u8> = replies.iter().map(|reply| reply.payload[0]).collect();
        assert_eq!(
            (begun, payloads),
            (4, vec![1, 2]),
            "nothing of the disturbed ones is left"
        );
        // A table that never holds still is an error, which the caller takes for no knowledge at all.
        let never = until_undisturbed(|| list(&disturbed));
        assert_eq!(
            never,
            Err(Failure::Inconsistent {
                attempts: DUMP_ATTEMPTS
            })
        );
    }

    #[test]
    fn answers_to_other_requests_are_passed_over() {
        let mut bytes = Vec::new();
        append(&mut bytes, NEW_ROUTE, MULTI | INTERRUPTED, SEQUENCE - 1, &[9; 12]);
        append(&mut bytes, DONE, MULTI, SEQUENCE - 1, &[0; 4]);
        bytes.extend(datagram(&[(NEW_ROUTE, 0, 1), (DONE, 0, 0)]));
        assert_eq!(list(&[bytes]).unwrap().unwrap().len(), 1);
    }
}
