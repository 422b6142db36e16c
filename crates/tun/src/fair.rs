//! Shares under overload: a peer that floods does not starve the others. Pure.

use crate::table::PeerIndex;

/// How far a peer above its share is cut down: to 1/64 of it.
const TIGHTEST: u32 = 6;
/// Batches without loss after which the limit is eased by one step.
const EASE_AFTER: u32 = 64;

/// Batches for which a peer counts as one that sends. A batch is filled by a flood alone, most of the time.
const WINDOW: u64 = 256;

/// The peers that sent something lately.
#[derive(Debug, Default)]
struct Recent {
    /// The batch in which each peer was last seen; 0 for none.
    seen: Vec<u64>,
    batch: u64,
    /// Who was seen before it does not count.
    horizon: u64,
    active: u32,
}

impl Recent {
    fn clear(&mut self) {
        self.seen.clear();
        (self.batch, self.horizon, self.active) = (0, 0, 0);
    }

    fn next_batch(&mut self) {
        self.batch += 1;
        if self.batch > self.horizon + 2 * WINDOW {
            self.horizon = self.batch - WINDOW;
            let active = self.seen.iter().filter(|seen| **seen > self.horizon).count();
            self.active = u32::try_from(active).unwrap_or(u32::MAX);
        }
    }

    fn note(&mut self, peer: PeerIndex) {
        if self.seen.len() <= peer.get() {
            self.seen.resize(peer.get() + 1, 0);
        }
        let seen = &mut self.seen[peer.get()];
        if *seen <= self.horizon {
            self.active += 1;
        }
        *seen = self.batch;
    }
}

/// How a socket stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Strain {
    /// Datagrams dropped so far, when the last one of the batch was queued. What was lost behind it is only known once all that waits was read.
    pub lost: Option<u32>,
    /// The room for what waits is half used: the time to act, before anything is lost.
    pub filling: bool,
    /// More may wait behind the batch. What was all that waited takes nobody's place.
    pub waiting: bool,
}

/// Watches whether the socket fills up or loses datagrams, and limits whoever takes more than a fair part of a batch while it does: as many
/// as sent something lately share it.
#[derive(Debug, Default)]
pub struct Shares {
    /// Datagrams that the kernel had dropped when it was last asked.
    lost: u32,
    tightness: u32,
    calm: u32,
    recent: Recent,
    /// Packets of each peer in the batch.
    counts: Vec<u32>,
    /// What each may have in the batch; `None` when there is no limit.
    limit: Option<u32>,
}

impl Shares {
    /// Begins a batch: what the kernel says about the socket, and the packets of each sender in it.
    pub fn begin(&mut self, strain: Strain, senders: impl Iterator<Item = (PeerIndex, u32)>) {
        self.note(strain);
        self.counts.clear();
        self.limit = None;
        if self.tightness == 0 {
            self.recent.clear();
            return;
        }
        self.recent.next_batch();
        let mut all = 0_u32;
        for (peer, packets) in senders {
            if self.counts.len() <= peer.get() {
                self.counts.resize(peer.get() + 1, 0);
            }
            self.counts[peer.get()] += packets;
            all += packets;
            self.recent.note(peer);
        }
        // Alone, a peer takes nothing from others.
        let active = self.recent.active;
        if active > 1 && strain.waiting {
            let fair = (all / active).max(1);
            self.limit = Some((fair >> self.tightness).max(1));
            for count in &mut self.counts {
                // Who has no more than a fair part keeps all of it.
                if *count <= fair {
                    *count = 0;
                }
            }
        }
    }

    fn note(&mut self, strain: Strain) {
        let lost = strain.lost.unwrap_or(self.lost);
        if lost != self.lost || strain.filling {
            self.lost = lost;
            self.tightness = (self.tightness + 1).min(TIGHTEST);
            self.calm = 0;
        } else if self.tightness > 0 {
            self.calm += 1;
            if self.calm >= EASE_AFTER {
                self.calm = 0;
                self.tightness -= 1;
            }
        }
    }

    /// Whether one more packet of `peer` may go on.
    pub fn admit(&mut self, peer: PeerIndex) -> bool {
        let (Some(limit), Some(count)) = (self.limit, self.counts.get_mut(peer.get())) else {
            return true;
        };
        if *count == 0 {
            return true;
        }
        // Counts down what is left of this batch; only the last `limit` packets of it go on.
        *count -= 1;
        *count < limit
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::fake;
    use crate::table::Table;

    /// What a node can do in one step, in units of work: to receive a datagram costs one, to pass it on ten more.
    const WORK: u32 = 1000;
    const PASS_ON: u32 = 10;
    /// Datagrams that the socket holds.
    const QUEUE: usize = 2000;
    const BATCH: usize = 32;

    /// A socket in front of a node that is too slow for what a flooding peer sends.
    struct Node {
        /// Who sent each datagram, and what was lost when it was queued: that is what the kernel tells with it.
        queue: VecDeque<(PeerIndex, u32)>,
        lost: u32,
        shares: Shares,
        knows: Knows,
        passed: [u32; 3],
    }

    /// What the shares are told.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Knows {
        Nothing,
        Losses,
        HowFull,
    }

    fn peers() -> (Table, Vec<PeerIndex>) {
        let endpoints: Vec<std::net::SocketAddr> = (2..5).map(|n| ([192, 0, 2, n], 8285).into()).collect();
        let table = fake::table(&endpoints);
        let indices = endpoints
            .iter()
            .map(|endpoint| table.sender(*endpoint).unwrap())
            .collect();
        (table, indices)
    }

    impl Node {
        fn new(knows: Knows) -> Self {
            Self {
                queue: VecDeque::new(),
                lost: 0,
                shares: Shares::default(),
                knows,
                passed: [0; 3],
            }
        }

        /// What each peer sends arrives evenly mixed; the socket drops what does not fit, whoever sent it.
        fn arrive(&mut self, peers: &[PeerIndex], packets: [u32; 3]) {
            let all: u32 = packets.iter().sum();
            for number in 0..all {
                // A packet of the second and the third now and then, the rest of the first.
                let of = |share: u32| share > 0 && number % (all / share) == share % 3;
                let peer = (1..3).find(|peer| of(packets[*peer])).unwrap_or(0);
                if self.queue.len() < QUEUE {
                    self.queue.push_back((peers[peer], self.lost));
                } else {
                    self.lost += 1;
                }
            }
        }

        fn work(&mut self) {
            let mut left = WORK;
            while left > 0 && !self.queue.is_empty() {
                let count = BATCH.min(self.queue.len());
                let batch: Vec<(PeerIndex, u32)> = self.queue.drain(..count).collect();
                let strain = Strain {
                    lost: batch
                        .last()
                        .map(|(_, lost)| *lost)
                        .filter(|_| self.knows != Knows::Nothing),
                    filling: self.knows == Knows::HowFull && self.queue.len() > QUEUE / 2,
                    waiting: count == BATCH,
                };
                self.shares
                    .begin(strain, batch.iter().map(|(peer, _)| (*peer, 1)));
                for (peer, _) in batch {
                    let admitted = self.shares.admit(peer);
                    self.passed[peer.get()] += u32::from(admitted);
                    left = left.saturating_sub(if admitted { 1 + PASS_ON } else { 1 });
                }
            }
        }
    }

    /// Packets passed on of each peer, of those that it sent, after a thousand steps; the first hundred do not count.
    fn share_of_others(knows: Knows) -> f64 {
        let (_table, peers) = peers();
        let mut node = Node::new(knows);
        let sent = [600, 6, 4];
        for step in 0..1000 {
            if step == 100 {
                node.passed = [0; 3];
            }
            node.arrive(&peers, sent);
            node.work();
        }
        f64::from(node.passed[1] + node.passed[2]) / f64::from((sent[1] + sent[2]) * 900)
    }

    fn losses(lost: u32) -> Strain {
        Strain {
            lost: Some(lost),
            filling: false,
            waiting: true,
        }
    }

    #[test]
    fn a_peer_that_floods_does_not_starve_the_others() {
        let [without, losses, how_full] =
            [Knows::Nothing, Knows::Losses, Knows::HowFull].map(share_of_others);
        assert!(without < 0.3, "the flood is none: {without}");
        // A kernel that does not say how full a socket is.
        assert!(
            losses > 2.0 * without,
            "{losses} of the others' packets went on, {without} without shares"
        );
        assert!(
            how_full > 0.95,
            "{how_full} of the others' packets went on, {losses} without the early word"
        );
    }

    #[test]
    fn without_losses_nobody_is_limited_and_after_them_the_limit_is_eased() {
        let (_table, peers) = peers();
        let mut shares = Shares::default();
        let mut batch = |lost: u32| -> [u32; 2] {
            let senders = [(peers[0], 30), (peers[1], 2)];
            shares.begin(losses(lost), senders.into_iter());
            let mut admitted =
                |peer: usize, count: u32| (0..count).filter(|_| shares.admit(peers[peer])).count() as u32;
            [admitted(0, 30), admitted(1, 2)]
        };
        assert_eq!(batch(0), [30, 2]);
        // 16 is a fair part of 32; each loss halves what is left of it.
        assert_eq!(batch(1), [8, 2]);
        assert_eq!(batch(2), [4, 2]);
        assert_eq!((3..9).map(&mut batch).last(), Some([1, 2]));
        let calm = TIGHTEST * EASE_AFTER;
        assert_eq!((0..calm).map(|_| batch(8)).last(), Some([30, 2]));
    }

    #[test]
    fn what_was_all_that_waited_goes_on() {
        let (_table, peers) = peers();
        let mut shares = Shares::default();
        for lost in 1..10 {
            shares.begin(losses(lost), [(peers[0], 60), (peers[1], 1)].into_iter());
        }
        // The flood is over: more of the other peer than of its rest.
        let rest = Strain {
            waiting: false,
            ..losses(9)
        };
        shares.begin(rest, [(peers[0], 1), (peers[1], 3)].into_iter());
        assert!((0..3).all(|_| shares.admit(peers[1])));
        assert!(shares.admit(peers[0]));
        shares.begin(losses(9), [(peers[0], 60), (peers[1], 1)].into_iter());
        assert!(!shares.admit(peers[0]) && shares.admit(peers[1]));
    }

    #[test]
    fn alone_a_peer_has_it_all() {
        let (_table, peers) = peers();
        let mut shares = Shares::default();
        for lost in 1..10 {
            shares.begin(losses(lost), std::iter::once((peers[2], 100)));
            assert!((0..100).all(|_| shares.admit(peers[2])));
        }
    }
}
