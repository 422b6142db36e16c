//! Many requests of which only failures are answered.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{ACK, CHUNK_BYTES, Conn, REQUEST};
use crate::error::Failure;
use crate::wire::{self, Answer, Frames};

/// Place of `nlmsg_flags` in `struct nlmsghdr`.
const FLAGS: std::ops::Range<usize> = 6..8;

/// What the kernel said to one send.
#[derive(Debug)]
struct Heard {
    /// Sequence number of the first request.
    first: u32,
    count: usize,
    /// Those that failed, by their place.
    failures: BTreeMap<usize, Failure>,
    /// The last one was answered, so that all answers are here.
    ended: bool,
}

impl Conn {
    /// Sends requests of one kind in few system calls. `write` appends what follows `struct nlmsghdr`.
    ///
    /// Only the last of a send asks for an answer. The kernel carries requests out in their order and tells every failure, so that
    /// those of which nothing was heard have succeeded by then; that spares it an answer each. For requests that are answered by
    /// nothing else. The failures are told by the place of their request; none stops the rest.
    pub fn quietly<T>(
        &mut self,
        kind: u16,
        requests: &[T],
        write: impl Fn(&T, Vec<u8>) -> Vec<u8>,
    ) -> BTreeMap<usize, Failure> {
        self.quietly_of_kinds(requests, |_| (kind, 0), write)
    }

    /// The same of several kinds: `header` gives message type and flags of each.
    pub fn quietly_of_kinds<T>(
        &mut self,
        requests: &[T],
        header: impl Fn(&T) -> (u16, u16),
        write: impl Fn(&T, Vec<u8>) -> Vec<u8>,
    ) -> BTreeMap<usize, Failure> {
        let mut failures = BTreeMap::new();
        let mut datagram = std::mem::take(&mut self.outgoing);
        datagram.reserve(2 * CHUNK_BYTES);
        let mut done = 0;
        while done < requests.len() {
            datagram.clear();
            let first = self.sequence.wrapping_add(1);
            let (mut count, mut last) = (0, 0);
            for request in requests.iter().skip(done).take(self.chunk_requests) {
                self.sequence = self.sequence.wrapping_add(1);
                last = datagram.len();
                let (kind, flags) = header(request);
                let flags = flags | REQUEST;
                datagram = wire::append_with(datagram, kind, flags, self.sequence, |d| write(request, d));
                count += 1;
                if datagram.len() >= CHUNK_BYTES {
                    break;
                }
            }
            ask_for_answer(&mut datagram, last);
            let heard = self.hear(&datagram, first, count);
            failures.extend(heard.into_iter().map(|(place, failure)| (done + place, failure)));
            done += count;
        }
        datagram.clear();
        self.outgoing = datagram;
        failures
    }

    /// Sends and reads until the last request is answered.
    fn hear(&mut self, datagram: &[u8], first: u32, count: usize) -> BTreeMap<usize, Failure> {
        let mut heard = Heard {
            first,
            count,
            failures: BTreeMap::new(),
            ended: false,
        };
        let mut result = self.send(datagram);
        let begin = Instant::now();
        while result.is_ok() && !heard.ended {
            result = self.receive(begin).and_then(|()| heard.take(&self.buffer));
        }
        heard.finish(result)
    }
}

impl Heard {
    fn take(&mut self, datagram: &[u8]) -> Result<(), Failure> {
        for frame in Frames(datagram) {
            let frame = frame.map_err(|reason| Failure::Malformed { reason })?;
            // Answers to requests of earlier calls match none.
            let place = usize::try_from(frame.sequence.wrapping_sub(self.first)).unwrap_or(usize::MAX);
            if place >= self.count {
                continue;
            }
            match frame.answer() {
                Answer::Data | Answer::Ignored => continue,
                Answer::Acknowledged | Answer::Done => {}
                Answer::Failed(failure) => {
                    self.failures.insert(place, failure);
                }
            }
            self.ended |= place + 1 == self.count;
        }
        Ok(())
    }

    /// Without the last answer nothing is known of those that were not answered.
    fn finish(mut self, result: Result<(), Failure>) -> BTreeMap<usize, Failure> {
        if let Err(failure) = result {
            for place in 0..self.count {
                self.failures.entry(place).or_insert_with(|| failure.clone());
            }
        }
        self.failures
    }
}

/// Has the kernel answer the message that begins at `at`.
fn ask_for_answer(datagram: &mut [u8], at: usize) {
    let flags = datagram.get_mut(at..).and_then(|message| message.get_mut(FLAGS));
    if let Some(flags) = flags
        && let Ok(known) = <[u8; 2]>::try_from(&*flags)
    {
        flags.copy_from_slice(&(u16::from_ne_bytes(known) | ACK).to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::CREATE;
    use super::*;
    use crate::wire::status;

    fn heard() -> Heard {
        Heard {
            first: u32::MAX,
            count: 3,
            failures: BTreeMap::new(),
            ended: false,
        }
    }

    fn errnos(failures: &BTreeMap<usize, Failure>) -> Vec<(usize, i32)> {
        let errno = |failure: &Failure| match failure {
            Failure::Refused { errno, .. } => *errno,
            _ => -1,
        };
        failures.iter().map(|(place, f)| (*place, errno(f))).collect()
    }

    #[test]
    fn the_last_answer_stands_for_all_that_did_not_fail() {
        let mut heard = heard();
        heard.take(&status(40, -1)).unwrap();
        heard.take(&status(0, -17)).unwrap();
        assert!(!heard.ended, "around the wrap of sequence numbers");
        heard.take(&status(1, -2)).unwrap();
        assert!(heard.ended);
        assert_eq!(errnos(&heard.finish(Ok(()))), [(1, 17), (2, 2)]);
    }

    #[test]
    fn without_the_last_answer_nothing_is_known() {
        let mut heard = heard();
        heard.take(&status(u32::MAX, -17)).unwrap();
        let failures = heard.finish(Err(Failure::Lost));
        assert_eq!(errnos(&failures), [(0, 17), (1, -1), (2, -1)]);
    }

    #[test]
    fn only_the_last_message_asks() {
        let mut datagram = Vec::new();
        for sequence in 0..3 {
            wire::append(&mut datagram, 24, REQUEST | CREATE, sequence, &[0; 5]);
        }
        let last = datagram.len() - 24;
        ask_for_answer(&mut datagram, last);
        let flags: Vec<u16> = Frames(&datagram).map(|f| f.unwrap().flags).collect();
        assert_eq!(
            flags,
            [REQUEST | CREATE, REQUEST | CREATE, REQUEST | CREATE | ACK]
        );
    }
}
