//! Which answer belongs to which request.

use super::{Outcome, Reply, Request};
use crate::error::{Failure, NetlinkError};
use crate::wire::{Answer, Frame};

/// The requests of one send that still want an answer.
pub(super) struct Pending {
    first: u32,
    slots: Vec<Slot>,
    open: usize,
}

#[derive(Default)]
struct Slot {
    reply: Option<Reply>,
    result: Option<Result<(), Failure>>,
}

impl Pending {
    pub(super) fn new(first: u32, count: usize) -> Self {
        Self {
            first,
            slots: std::iter::repeat_with(Slot::default).take(count).collect(),
            open: count,
        }
    }

    pub(super) fn complete(&self) -> bool {
        self.open == 0
    }

    /// Files a message under its request; answers to requests of earlier calls match none.
    pub(super) fn take(&mut self, frame: &Frame<'_>) {
        let index = usize::try_from(frame.sequence.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let result = match frame.answer() {
            Answer::Data => {
                slot.reply.get_or_insert_with(|| Reply::from(frame));
                return;
            }
            Answer::Ignored => return,
            Answer::Acknowledged | Answer::Done => Ok(()),
            Answer::Failed(failure) => Err(failure),
        };
        if slot.result.replace(result).is_none() {
            self.open -= 1;
        }
    }

    /// The outcomes in order; what has no answer failed for the reason that ended the wait.
    pub(super) fn finish(self, requests: &[Request], unanswered: &Failure) -> Vec<Outcome> {
        let outcome = |(slot, request): (Slot, &Request)| match slot.result {
            Some(Ok(())) => Ok(slot.reply),
            Some(Err(failure)) => Err(NetlinkError {
                what: request.what.clone(),
                failure,
            }),
            None => Err(NetlinkError {
                what: request.what.clone(),
                failure: unanswered.clone(),
            }),
        };
        self.slots.into_iter().zip(requests).map(outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Frames, status};

    fn request(what: &str) -> Request {
        Request {
            kind: 24,
            flags: 0,
            payload: vec![0; 8],
            what: what.into(),
        }
    }

    #[test]
    fn answers_find_their_request_by_sequence_number_even_around_the_wrap() {
        let mut pending = Pending::new(u32::MAX, 3);
        for bytes in [status(0, -17), status(u32::MAX, 0), status(40, -1), status(0, 0)] {
            pending.take(&Frames(&bytes).next().unwrap().unwrap());
        }
        assert!(
            !pending.complete(),
            "the third has no answer, and a second answer does not count"
        );
        let requests = [request("a"), request("b"), request("c")];
        let outcomes = pending.finish(&requests, &Failure::Lost);
        assert_eq!(outcomes[0], Ok(None));
        assert!(outcomes[1].is_ok(), "the later answer stands");
        assert_eq!(outcomes[2].as_ref().unwrap_err().failure, Failure::Lost);
        assert_eq!(outcomes[2].as_ref().unwrap_err().what, "c");
    }
}
