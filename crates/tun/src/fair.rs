//! Shares under overload: a peer that floods does not starve the others. Pure.

use crate::table::PeerIndex;

/// How far a peer above its share is cut down: to 1/64 of it.
const TIGHTEST: u32 = 6;
/// Batches without loss after which the limit is eased by one step.
const EASE_AFTER: u32 = 64;

/// Watches whether the socket loses datagrams, and limits whoever takes more than a fair part of a batch while it does.
#[derive(Debug, Default)]
pub struct Shares {
    /// Datagrams that the kernel had dropped when it was last asked.
    lost: u32,
    tightness: u32,
    calm: u32,
    /// Packets of each peer in the batch.
    counts: Vec<u32>,
    /// What each may have in the batch; `None` when there is no limit.
    limit: Option<u32>,
}

impl Shares {
    /// Begins a batch: what the kernel says about losses so far, and the packets of each sender in it.
    pub fn begin(&mut self, lost: Option<u32>, senders: impl Iterator<Item = (PeerIndex, u32)>) {
        self.note_losses(lost);
        self.counts.clear();
        self.limit = None;
        if self.tightness == 0 {
            return;
        }
        let mut all = 0_u32;
        for (peer, packets) in senders {
            if self.counts.len() <= peer.get() {
                self.counts.resize(peer.get() + 1, 0);
            }
            self.counts[peer.get()] += packets;
            all += packets;
        }
        let active = self.counts.iter().filter(|count| **count > 0).count();
        // Alone in the batch, a peer takes nothing from others.
        if active > 1 {
            let fair = all / u32::try_from(active).unwrap_or(1);
            self.limit = Some((fair >> self.tightness).max(1));
            for count in &mut self.counts {
                // Who has no more than a fair part keeps all of it.
                if *count <= fair {
                    *count = 0;
                }
            }
        }
    }

    fn note_losses(&mut self, lost: Option<u32>) {
        let lost = lost.unwrap_or(self.lost);
        if lost != self.lost {
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
